// What leaves the page: files to keep, and text for the clipboard.

import { post } from "./api.js";
import { element } from "./dom.js";
import { cut, overlay } from "./pictures.js";
import { pretty } from "./reading.js";

const { fflate } = globalThis;
const BETWEEN_PAGES = "\n\n";

export const wholeMarkdown = (reading) => reading.pages.map((page) => page.markdown).join(BETWEEN_PAGES);
export const wholeRaw = (reading) => reading.pages.map((page) => page.raw).join(BETWEEN_PAGES);
export const wholeJson = (reading) => pretty({ pages: reading.pages.map((page) => page.json) });

export async function saveMarkdown(reading, name) {
  const files = { [`${name}.md`]: fflate.strToU8(`${wholeMarkdown(reading)}\n`) };
  for (const page of reading.pages.filter((each) => each.picture)) {
    for (const figure of page.figures) {
      const jpeg = await cut(page.picture, figure.box).catch(() => null);
      if (jpeg) files[`images/${figure.name}`] = [new Uint8Array(await jpeg.arrayBuffer()), { level: 0 }];
    }
  }
  save(new Blob([fflate.zipSync(files)], { type: "application/zip" }), `${name}.zip`);
}

export function saveJson(reading, name) {
  save(new Blob([wholeJson(reading)], { type: "application/json" }), `${name}.json`);
}

export async function saveOverlay(page, name) {
  save(await overlay(page.picture, page.blocks), `${name}-page-${page.number}.png`);
}

// The server draws a PDF only of what it has just read, so it reads the document once more.
export async function saveOverlayPdf(reading, name) {
  const { ocr: { mode, password } = {}, messages, model } = reading.body;
  const [{ file, image_url: image }, { text: prompt }] = messages[0].content;
  const request = {
    model,
    document: { document_url: file?.file_data ?? image.url },
    pages: reading.pages.map((page) => page.number - 1),
    prompt,
    output: "overlay",
    ...(mode ? { mode } : {}),
    ...(password ? { password } : {}),
  };
  save(await (await post("v1/ocr", request)).blob(), `${name}-boxes.pdf`);
}

// navigator.clipboard is there only over HTTPS and on localhost.
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const before = document.activeElement;
  const area = element("textarea.unseen-area", { "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  before?.focus();
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
