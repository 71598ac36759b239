// The right side: what was read of a page, as blocks of markdown, as raw text, and as JSON.

import { $, element, roving, setText } from "./dom.js";
import { isFigure, tidied } from "./grounding.js";
import { t } from "./i18n.js";
import { cut } from "./pictures.js";
import { pretty } from "./reading.js";
import { rendered } from "./render.js";

export const TABS = ["markdown", "raw", "json"];

export class ResultView {
  // `pointed(block or null, chosen)`: which block is pointed at.
  constructor(pointed) {
    this._blocks = $("blocks");
    this._page = null;
    this._shown = []; // of each block, what it was made of
    this._figures = new Map(); // "page box" → promise of a URL
    this.tab = "markdown";
    roving(this._blocks, ".block");
    const block = (event) => event.target.closest?.(".block")?.dataset.block ?? null;
    for (const kind of ["pointerover", "focusin"]) this._blocks.addEventListener(kind, (event) => pointed(block(event)));
    for (const kind of ["pointerleave", "focusout"]) this._blocks.addEventListener(kind, () => pointed(null));
    this._blocks.addEventListener("click", (event) => block(event) !== null && pointed(block(event), true));
    this._setUpTabs();
  }

  clear() {
    for (const made of this._figures.values()) made.then((url) => url && URL.revokeObjectURL(url));
    this._figures.clear();
    this._page = null;
    $("spoken").replaceChildren();
  }

  show(page) {
    if (page !== this._page) {
      this._page = page;
      this._shown = [];
      this._blocks.replaceChildren();
      $("panel").scrollTop = 0;
    }
    const panel = $("panel");
    const atEnd = panel.scrollHeight - panel.scrollTop - panel.clientHeight < 60;
    if (this.tab === "markdown") this._showBlocks(page);
    if (this.tab === "raw") setText($("raw"), page.raw);
    if (this.tab === "json") setText($("json"), pretty(page.json));
    $("page-error").hidden = !page.error;
    $("page-error").textContent = page.error ? t("page_failed", { number: page.number, message: page.error.message }) : "";
    if (atEnd && page.state === "reading") panel.scrollTop = panel.scrollHeight;
  }

  light(block) {
    for (const each of this._blocks.children) each.classList.toggle("lit", each.dataset.block === block);
  }

  reveal(block) {
    this._blocks.querySelector(`[data-block="${block}"]`)?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  _showBlocks(page) {
    const blocks = page.blocks;
    while (this._blocks.children.length > blocks.length) this._blocks.lastChild.remove();
    blocks.forEach((block, index) => {
      const source = `${block.label}\n${block.text}\n${block.modelBoxes}\n${isFigure(block) && page.picture?.url}`;
      if (this._shown[index] === source) return;
      this._shown[index] = source;
      const place =
        this._blocks.children[index] ??
        this._blocks.appendChild(
          element("div.block", { role: "group", "data-block": index, tabindex: index ? -1 : 0 }),
        );
      place.classList.toggle("located", block.modelBoxes.length > 0);
      place.setAttribute("aria-label", `${index + 1} ${block.label}`);
      place.replaceChildren(rendered(tidied(block.text)));
      if (isFigure(block)) block.modelBoxes.forEach((box, at) => this._addFigure(place, page, box, at));
    });
    this._shown.length = blocks.length;
    this._speak(page, blocks);
  }

  // The picture appears when it has been cut out of the page; by then another page may be shown.
  async _addFigure(place, page, box, at) {
    const figure = element("figure.figure");
    place.insertBefore(figure, place.children[at] ?? null);
    if (!page.picture) return;
    const name = `${page.number} ${box}`;
    if (!this._figures.has(name)) {
      const made = cut(page.picture, box).then((jpeg) => jpeg && URL.createObjectURL(jpeg));
      this._figures.set(name, made.catch(() => null));
    }
    const url = await this._figures.get(name);
    if (url) figure.append(element("img", { src: url, alt: t("figure", { number: at + 1 }) }));
  }

  // Finished blocks, for screen readers.
  _speak(page, blocks) {
    const spoken = $("spoken");
    const finished = page.done ? blocks.length : blocks.length - 1;
    if (spoken.dataset.page !== String(page.number)) {
      spoken.dataset.page = page.number;
      spoken.replaceChildren();
    }
    while (spoken.children.length < finished) {
      spoken.append(element("p", {}, blocks[spoken.children.length].text));
    }
  }

  _setUpTabs() {
    const list = $("tabs");
    roving(list, "[role=tab]");
    list.addEventListener("focusin", (event) => this.choose(event.target.dataset.tab));
    list.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) this.choose(tab.dataset.tab);
    });
  }

  choose(name) {
    if (!TABS.includes(name)) return;
    this.tab = name;
    for (const tab of $("tabs").children) {
      const chosen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      if (chosen) $("panel").setAttribute("aria-labelledby", tab.id);
    }
    $("blocks").hidden = name !== "markdown";
    $("raw").hidden = name !== "raw";
    $("json").hidden = name !== "json";
    if (this._page) this.show(this._page);
  }
}
