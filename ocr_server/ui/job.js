// One file that is being read: the request, and the results of its pages.

import { RequestError, streamChat } from "./api.js";
import { dataUriToBlob } from "./dom.js";
import { blocksOf, completePart, isFigure, pixelBox, toMarkdown } from "./grounding.js";

const PAGE_SEPARATOR = "\n\n<--- Page Split --->\n\n"; // the server writes it between pages

// Returns the body of a chat completion. `displayable`: whether the browser can display the file itself; otherwise the
// server is asked for page images.
export function buildRequest({ model, name, type, dataUri, displayable, prompt, mode, pages, password }) {
  const ocr = { output: "raw" }; // whatever the server's default is: the page makes everything else of it
  if (mode) ocr.mode = mode;
  if (pages) ocr.pages = pages;
  if (password) ocr.password = password;
  if (!displayable) ocr.include_page_images = true;
  const part =
    type === "application/pdf"
      ? { type: "file", file: { filename: name, file_data: dataUri } }
      : { type: "image_url", image_url: { url: dataUri } };
  return {
    model,
    messages: [{ role: "user", content: [part, { type: "text", text: prompt }] }],
    stream: true,
    stream_options: { include_usage: true },
    ocr,
  };
}

// Formats JSON with each box on one line. JSON strings contain no literal line breaks, so they are left as they are.
export function prettyJson(value) {
  const numbers = /\[\n[-\d,\s]+\]/g;
  return JSON.stringify(value, null, 2).replace(numbers, (list) => list.replace(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"));
}

export class Page {
  constructor(number) {
    this.number = number; // in its document, from 1
    this.state = "waiting"; // then "reading", and finally "stop", "length", "repetition", "error" or "stopped"
    this.raw = "";
    this.picture = null; // {url, width, height}
    this.error = null;
    this.report = null;
  }

  get done() {
    return this.state !== "waiting" && this.state !== "reading";
  }

  get answer() {
    return this.done ? this.raw : completePart(this.raw);
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

  // {name, box} of each figure, in the order of the links in the markdown. Boxes are in 0 to 999.
  get figures() {
    const boxes = this.blocks.filter(isFigure).flatMap((block) => block.modelBoxes);
    return boxes.map((box, at) => ({ name: this.figureName(at + 1), box }));
  }

  // The page in the format of the API's page reports.
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

export class Job {
  // `picture`: the image if the browser can display the file, else null.
  // `onChange(page or null)` is called after each change.
  constructor(body, picture, onChange) {
    this.body = body;
    this.pages = picture ? [Object.assign(new Page(1), { picture })] : [];
    this.current = 0; // index of the page whose text is being streamed
    this.tokens = 0;
    this.seconds = 0;
    this.state = "reading"; // then "done", "stopped" or "failed"
    this.error = null;
    this._abort = new AbortController();
    this._onChange = onChange;
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
      this._onChange(null);
    }, 200);
    try {
      for await (const chunk of streamChat(this.body, this._abort.signal)) this._handleChunk(chunk);
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      if (this.state === "failed") this.error = error instanceof RequestError ? error : new RequestError("broken", error.message);
    }
    clearInterval(clock);
    this.seconds = (performance.now() - started) / 1000;
    for (const page of this.pages) {
      if (!page.done) this._setState(page, this.state === "done" ? "stop" : "stopped");
    }
    this._onChange(null);
  }

  dispose() {
    this.stop();
    for (const page of this.pages) if (page.picture?.ownsUrl) URL.revokeObjectURL(page.picture.url);
  }

  _handleChunk({ choices, usage }) {
    if (usage) this.tokens = usage.completion_tokens;
    for (const { delta, finish_reason: finish } of choices) {
      if (delta.ocr_page) this._startPage(delta.ocr_page);
      if (delta.content) this._addText(delta.content);
      for (const report of delta.ocr?.pages ?? []) this._finishPage(report);
      if (finish && this.pages.length === 1 && !this.pages[0].done) this._setState(this.pages[0], finish);
    }
  }

  _startPage({ index, page: number, pages, width, height, image }) {
    const page = this._page(pages - 1) && this.pages[index];
    // Until their own events arrive, the following pages are assumed to have consecutive numbers.
    this.pages.slice(index).forEach((each, at) => (each.number = number + at));
    page.picture = { url: URL.createObjectURL(dataUriToBlob(image)), width, height, ownsUrl: true };
    page.state = "reading";
    this._onChange(page);
  }

  _addText(text) {
    const page = this._page(this.current);
    if (this.current > 0 && page.raw === "" && text.startsWith(PAGE_SEPARATOR)) text = text.slice(PAGE_SEPARATOR.length);
    page.raw += text;
    page.state = "reading";
    this._onChange(page);
  }

  _finishPage(report) {
    const page = this._page(report.index);
    page.number = report.page;
    page.report = report;
    page.error = report.error ?? null;
    this.current = report.index + 1;
    this._setState(page, report.finish_reason);
  }

  _page(index) {
    while (this.pages.length <= index) this.pages.push(new Page(this.pages.length + 1));
    return this.pages[index];
  }

  _setState(page, state) {
    page.state = state;
    this._onChange(page);
  }
}
