// The left side: the page image with its boxes, and the strip of page thumbnails.

import { $, element, rovingTabIndex } from "./dom.js";
import { hue } from "./grounding.js";
import { t } from "./i18n.js";

const STATE_ICONS = { waiting: "·", reading: "…", stop: "✓", length: "✂", repetition: "↻", error: "!", stopped: "■" };

export class PageView {
  // `onPoint(block index or null, clicked)` is called when the pointer or the focus is on a box, or leaves it;
  // `onSelectPage(index)` when a thumbnail is clicked.
  constructor(onPoint, onSelectPage) {
    this._boxes = $("boxes");
    this._strip = $("strip");
    this._drawnBoxes = "";
    rovingTabIndex(this._boxes, ".box");
    rovingTabIndex(this._strip, "button");
    const block = (event) => event.target.closest?.(".box")?.dataset.block ?? null;
    for (const kind of ["pointerover", "focusin"]) this._boxes.addEventListener(kind, (event) => onPoint(block(event)));
    for (const kind of ["pointerleave", "focusout"]) this._boxes.addEventListener(kind, () => onPoint(null));
    this._boxes.addEventListener("click", (event) => block(event) !== null && onPoint(block(event), true));
    this._strip.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) onSelectPage(Number(button.dataset.page));
    });
  }

  show(page) {
    const sheet = $("sheet");
    const image = $("picture");
    const { url, width, height } = page.picture ?? {};
    if (url && image.getAttribute("src") !== url) image.src = url;
    if (!url) image.removeAttribute("src");
    image.alt = t("page_picture", { number: page.number });
    sheet.style.setProperty("--ratio", width ? width / height : 0.707);
    sheet.classList.toggle("no-picture", !url);
    sheet.classList.toggle("reading", page.state === "reading");
    this._draw(page);
  }

  highlight(block) {
    for (const box of this._boxes.children) box.classList.toggle("highlighted", box.dataset.block === block);
  }

  reveal(block) {
    this._boxes.querySelector(`[data-block="${block}"]`)?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  showStrip(pages, current) {
    this._strip.hidden = pages.length < 2;
    while (this._strip.children.length > pages.length) this._strip.lastChild.remove();
    pages.forEach((page, index) => {
      const button =
        this._strip.children[index] ??
        this._strip.appendChild(
          element("button.page-button", { type: "button", "data-page": index, tabindex: index ? -1 : 0 },
            element("span.thumb"), element("span.page-button-number"), element("span.page-button-state", { "aria-hidden": "true" })),
        );
      const [thumb, number, state] = button.children;
      if (page.picture && !thumb.firstChild) {
        thumb.append(element("img", { src: page.picture.url, alt: "", loading: "lazy" }));
      } else if (page.picture && thumb.firstChild.getAttribute("src") !== page.picture.url) {
        thumb.firstChild.src = page.picture.url;
      } else if (!page.picture) {
        thumb.replaceChildren();
      }
      number.textContent = page.number;
      state.textContent = STATE_ICONS[page.state];
      button.dataset.state = page.state;
      button.setAttribute("aria-label", t("page_state", { number: page.number, state: t(`state_${page.state}`) }));
      if (index === current) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
    });
  }

  // Adds and removes boxes, keeping those that have not changed, so that the keyboard focus is not lost.
  _draw(page) {
    const wanted = page.blocks.flatMap((block, index) => block.modelBoxes.map((box) => ({ block, index, box })));
    const names = wanted.map(({ box, index }) => `${page.number}:${index}:${box}`);
    const firstChange = this._drawnBoxes.length ? names.findIndex((name, at) => this._drawnBoxes[at] !== name) : 0;
    const kept = firstChange < 0 ? names.length : firstChange;
    while (this._boxes.children.length > kept) this._boxes.lastChild.remove();
    wanted.forEach(({ block, index, box }, at) => {
      const label = `${index + 1} ${block.label}: ${block.text.slice(0, 80)}`;
      const button = this._boxes.children[at] ?? this._boxes.appendChild(boxButton(box, index, at));
      button.style.setProperty("--hue", hue(block.label));
      button.dataset.tag = `${index + 1} ${block.label}`;
      button.setAttribute("aria-label", label);
    });
    this._drawnBoxes = names;
  }
}

// A box at its position on the page, in percent of the page's size.
function boxButton([x1, y1, x2, y2], index, at) {
  const button = element("button.box", { type: "button", "data-block": index, tabindex: at ? -1 : 0 });
  const percent = (value) => `${(Math.min(Math.max(value, 0), 999) / 999) * 100}%`;
  button.style.left = percent(Math.min(x1, x2));
  button.style.top = percent(Math.min(y1, y2));
  button.style.right = `calc(100% - ${percent(Math.max(x1, x2))})`;
  button.style.bottom = `calc(100% - ${percent(Math.max(y1, y2))})`;
  return button;
}
