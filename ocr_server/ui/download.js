// Files to download, and text for the clipboard.

import { post } from "./api.js";
import { element } from "./dom.js";
import { prettyJson } from "./job.js";
import { crop, drawOverlay } from "./pictures.js";

const { fflate } = globalThis;
const PAGE_SEPARATOR = "\n\n";

export const allMarkdown = (job) => job.pages.map((page) => page.markdown).join(PAGE_SEPARATOR);
export const allRaw = (job) => job.pages.map((page) => page.raw).join(PAGE_SEPARATOR);
export const allJson = (job) => prettyJson({ pages: job.pages.map((page) => page.json) });

export async function saveMarkdown(job, name) {
  const files = { [`${name}.md`]: fflate.strToU8(`${allMarkdown(job)}\n`) };
  for (const page of job.pages.filter((each) => each.picture)) {
    for (const figure of page.figures) {
      const jpeg = await crop(page.picture, figure.box).catch(() => null);
      if (jpeg) files[`images/${figure.name}`] = [new Uint8Array(await jpeg.arrayBuffer()), { level: 0 }];
    }
  }
  save(new Blob([fflate.zipSync(files)], { type: "application/zip" }), `${name}.zip`);
}

export function saveJson(job, name) {
  save(new Blob([allJson(job)], { type: "application/json" }), `${name}.json`);
}

export async function saveOverlay(page, name) {
  save(await drawOverlay(page.picture, page.blocks), `${name}-page-${page.number}.png`);
}

// The server draws boxes only on pages that it reads in the same request, so this reads the document again.
export async function saveOverlayPdf(job, name) {
  const { ocr: { mode, password } = {}, messages, model } = job.body;
  const [{ file, image_url: image }, { text: prompt }] = messages[0].content;
  const request = {
    model,
    document: { document_url: file?.file_data ?? image.url },
    pages: job.pages.map((page) => page.number - 1),
    prompt,
    output: "overlay",
    ...(mode ? { mode } : {}),
    ...(password ? { password } : {}),
  };
  save(await (await post("v1/ocr", request)).blob(), `${name}-boxes.pdf`);
}

// navigator.clipboard exists only over HTTPS and on localhost.
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const before = document.activeElement;
  const area = element("textarea.visually-hidden", { "aria-hidden": "true" });
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
