// One file being read: the request, and what has come of it, page by page.

import { Failure, chunks } from "./api.js";
import { blobOf } from "./dom.js";
import { blocksOf, isFigure, pixelBox, settled, toMarkdown } from "./grounding.js";

const SEPARATOR = "\n\n<--- Page Split --->\n\n"; // the server's own between pages

// The body of a chat completion. `shown`: whether the browser can show the file without the server's help.
export function requestOf({ model, name, type, dataUri, shown, prompt, mode, pages, password }) {
  const ocr = {};
  if (mode) ocr.mode = mode;
  if (pages) ocr.pages = pages;
  if (password) ocr.password = password;
  if (!shown) ocr.include_page_images = true;
  const part =
    type === "application/pdf"
      ? { type: "file", file: { filename: name, file_data: dataUri } }
      : { type: "image_url", image_url: { url: dataUri } };
  return {
    model,
    messages: [{ role: "user", content: [part, { type: "text", text: prompt }] }],
    stream: true,
    stream_options: { include_usage: true },
    ...(Object.keys(ocr).length ? { ocr } : {}),
  };
}

// JSON with each box on one line; within texts there are no line breaks.
export function pretty(value) {
  const numbers = /\[\n[-\d,\s]+\]/g;
  return JSON.stringify(value, null, 2).replace(numbers, (list) => list.replace(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"));
}

export class Page {
  constructor(number) {
    this.number = number; // in its document, from 1
    this.state = "waiting"; // then reading, and stop, length, repetition, error or stopped
    this.raw = "";
    this.picture = null; // {url, width, height}
    this.error = null;
    this.report = null;
  }

  get done() {
    return this.state !== "waiting" && this.state !== "reading";
  }

  get answer() {
    return this.done ? this.raw : settled(this.raw);
  }

  get blocks() {
    return blocksOf(this.answer);
  }

  get markdown() {
    return toMarkdown(this.answer, (number) => `images/${this.figureName(number)}`);
  }

  figureName(number) {
    return `page-${this.number}-figure-${number}.jpeg`;
  }

  // {name, box} of each figure, in the order in which the markdown links them; boxes of 0 to 999.
  get figures() {
    const boxes = this.blocks.filter(isFigure).flatMap((block) => block.modelBoxes);
    return boxes.map((box, at) => ({ name: this.figureName(at + 1), box }));
  }

  // As the API reports pages.
  get json() {
    const { width = 0, height = 0 } = this.picture ?? {};
    const pixels = (box) => pixelBox(box, width, height);
    return {
      page: this.number,
      width,
      height,
      finish_reason: this.state,
      ...(this.error ? { error: this.error } : {}),
      blocks: this.blocks.map(({ label, text, modelBoxes }) => ({
        label,
        text,
        boxes: modelBoxes.map(pixels),
        model_boxes: modelBoxes,
      })),
      figures: this.figures.map(({ name, box }) => ({ name, box: pixels(box) })),
    };
  }
}

export class Reading {
  // `picture` of a file that the browser itself can show, else null; `changed` is called with a page, or with none.
  constructor(body, picture, changed) {
    this.body = body;
    this.pages = picture ? [Object.assign(new Page(1), { picture })] : [];
    this.current = 0; // the page that text comes for
    this.tokens = 0;
    this.seconds = 0;
    this.state = "reading"; // then done, stopped or failed
    this.failure = null;
    this._abort = new AbortController();
    this._changed = changed;
  }

  get pagesDone() {
    return this.pages.filter((page) => page.done).length;
  }

  stop() {
    this._abort.abort();
  }

  async run() {
    const started = performance.now();
    const clock = setInterval(() => {
      this.seconds = (performance.now() - started) / 1000;
      this._changed(null);
    }, 200);
    try {
      for await (const chunk of chunks(this.body, this._abort.signal)) this._take(chunk);
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      if (this.state === "failed") this.failure = error instanceof Failure ? error : new Failure("broken", error.message);
    }
    clearInterval(clock);
    this.seconds = (performance.now() - started) / 1000;
    for (const page of this.pages) {
      if (!page.done) this._end(page, this.state === "done" ? "stop" : "stopped");
    }
    this._changed(null);
  }

  dispose() {
    this.stop();
    for (const page of this.pages) if (page.picture?.own) URL.revokeObjectURL(page.picture.url);
  }

  _take({ choices, usage }) {
    if (usage) this.tokens = usage.completion_tokens;
    for (const { delta, finish_reason: finish } of choices) {
      if (delta.ocr_page) this._open(delta.ocr_page);
      if (delta.content) this._write(delta.content);
      for (const report of delta.ocr?.pages ?? []) this._report(report);
      if (finish && this.pages.length === 1 && !this.pages[0].done) this._end(this.pages[0], finish);
    }
  }

  _open({ index, page: number, pages, width, height, image }) {
    const page = this._page(pages - 1) && this.pages[index];
    this.pages.slice(index).forEach((each, at) => (each.number = number + at)); // of those to come, a guess
    page.picture = { url: URL.createObjectURL(blobOf(image)), width, height, own: true };
    page.state = "reading";
    this._changed(page);
  }

  _write(text) {
    const page = this._page(this.current);
    if (this.current > 0 && page.raw === "" && text.startsWith(SEPARATOR)) text = text.slice(SEPARATOR.length);
    page.raw += text;
    page.state = "reading";
    this._changed(page);
  }

  _report(report) {
    const page = this._page(report.index);
    page.number = report.page;
    page.report = report;
    page.error = report.error ?? null;
    this.current = report.index + 1;
    this._end(page, report.finish_reason);
  }

  _page(index) {
    while (this.pages.length <= index) this.pages.push(new Page(this.pages.length + 1));
    return this.pages[index];
  }

  _end(page, state) {
    page.state = state;
    this._changed(page);
  }
}
