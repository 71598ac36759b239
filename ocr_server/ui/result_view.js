// The right side: the result of a page, as rendered blocks, as raw text, and as JSON.

import { $, element, rovingTabIndex, setText } from "./dom.js";
import { cleanUp, isFigure } from "./grounding.js";
import { t } from "./i18n.js";
import { prettyJson } from "./job.js";
import { crop } from "./pictures.js";
import { renderMarkdown } from "./render.js";

export const TABS = ["markdown", "raw", "json"];

export class ResultView {
  // `onPoint(block index or null, clicked)` is called when the pointer or the focus is on a block, or leaves it.
  constructor(onPoint) {
    this._blocks = $("blocks");
    this._page = null;
    this._shown = []; // the source of each rendered block, to render only what has changed
    this._figures = new Map(); // "page box" → promise of an object URL, or of null
    this.tab = "markdown";
    rovingTabIndex(this._blocks, ".block");
    const block = (event) => event.target.closest?.(".block")?.dataset.block ?? null;
    for (const kind of ["pointerover", "focusin"]) this._blocks.addEventListener(kind, (event) => onPoint(block(event)));
    for (const kind of ["pointerleave", "focusout"]) this._blocks.addEventListener(kind, () => onPoint(null));
    this._blocks.addEventListener("click", (event) => block(event) !== null && onPoint(block(event), true));
    this._setUpTabs();
  }

  clear() {
    for (const figure of this._figures.values()) figure.then((url) => url && URL.revokeObjectURL(url));
    this._figures.clear();
    this._page = null;
    $("live-region").replaceChildren();
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
    if (this.tab === "json") setText($("json"), prettyJson(page.json));
    $("page-error").hidden = !page.error;
    $("page-error").textContent = page.error ? t("page_failed", { number: page.number, message: page.error.message }) : "";
    if (atEnd && page.state === "reading") panel.scrollTop = panel.scrollHeight;
  }

  highlight(block) {
    for (const each of this._blocks.children) each.classList.toggle("highlighted", each.dataset.block === block);
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
      const container =
        this._blocks.children[index] ??
        this._blocks.appendChild(
          element("div.block", { role: "group", "data-block": index, tabindex: index ? -1 : 0 }),
        );
      container.classList.toggle("located", block.modelBoxes.length > 0);
      container.setAttribute("aria-label", `${index + 1} ${block.label}`);
      container.replaceChildren(renderMarkdown(cleanUp(block.text)));
      if (isFigure(block)) block.modelBoxes.forEach((box, at) => this._addFigure(container, page, box, at));
    });
    this._shown.length = blocks.length;
    this._announce(page, blocks);
  }

  // Adds an empty figure, and its image once it has been cropped. By then, another page may be shown.
  async _addFigure(container, page, box, at) {
    const figure = element("figure.figure");
    container.insertBefore(figure, container.children[at] ?? null);
    if (!page.picture) return;
    const name = `${page.number} ${box}`;
    if (!this._figures.has(name)) {
      const url = crop(page.picture, box).then((jpeg) => jpeg && URL.createObjectURL(jpeg));
      this._figures.set(name, url.catch(() => null));
    }
    const url = await this._figures.get(name);
    if (url) figure.append(element("img", { src: url, alt: t("figure", { number: at + 1 }) }));
  }

  // Adds finished blocks to the live region, so that screen readers announce them.
  _announce(page, blocks) {
    const region = $("live-region");
    const finished = page.done ? blocks.length : blocks.length - 1;
    if (region.dataset.page !== String(page.number)) {
      region.dataset.page = page.number;
      region.replaceChildren();
    }
    while (region.children.length < finished) {
      region.append(element("p", {}, blocks[region.children.length].text));
    }
  }

  _setUpTabs() {
    const list = $("tabs");
    rovingTabIndex(list, "[role=tab]");
    list.addEventListener("focusin", (event) => this.selectTab(event.target.dataset.tab));
    list.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) this.selectTab(tab.dataset.tab);
    });
  }

  selectTab(name) {
    if (!TABS.includes(name)) return;
    this.tab = name;
    for (const tab of $("tabs").children) {
      const selected = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", selected);
      tab.tabIndex = selected ? 0 : -1;
      if (selected) $("panel").setAttribute("aria-labelledby", tab.id);
    }
    $("blocks").hidden = name !== "markdown";
    $("raw").hidden = name !== "raw";
    $("json").hidden = name !== "json";
    if (this._page) this.show(this._page);
  }
}
