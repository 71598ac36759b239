// Turns the model's answer into blocks and markdown as ocr_server/output does. Tests check that both agree.

import { FAMILY } from "./family.js";

const { labels: LABELS, figure_label: FIGURE, box_scale: BOX_SCALE } = FAMILY;

const LABEL_PATTERN = /^[a-z_]{1,32}$/;
const MAX_REF_LENGTH = 10000;
const SPACE = "[ \\t\\n\\r\\v\\f]*";
const NUMBER = "-?[0-9]{1,5}(?:\\.[0-9]+)?";
const BOX = `\\[${SPACE}${Array(4).fill(NUMBER).join(`${SPACE},${SPACE}`)}${SPACE}\\]`;
const MARKER = new RegExp(
  `<\\|ref\\|>((?:(?!<\\|/?(?:ref|det)\\|>)[^]){0,${MAX_REF_LENGTH}})<\\|/ref\\|>${SPACE}` +
    `<\\|det\\|>${SPACE}(\\[${SPACE}${BOX}(?:${SPACE},${SPACE}${BOX})*${SPACE}\\])${SPACE}<\\|/det\\|>`,
  "g",
);
const LATEX_REPLACEMENTS = { "\\coloneqq": ":=", "\\eqqcolon": "=:" };

// Splits an answer into texts and markers, in order: {text} or {ref, boxes}, each with its start and end offsets.
export function parse(answer) {
  const events = [];
  let end = 0;
  const addText = (until) => {
    if (until > end) events.push({ text: answer.slice(end, until), start: end, end: until });
  };
  for (const match of answer.matchAll(MARKER)) {
    addText(match.index);
    end = match.index + match[0].length;
    const numbers = match[2].match(new RegExp(NUMBER, "g")).map(roundHalfAwayFromZero);
    const boxes = Array.from({ length: numbers.length / 4 }, (_, at) => numbers.slice(4 * at, 4 * at + 4));
    events.push({ ref: match[1], boxes, start: match.index, end });
  }
  addText(answer.length);
  return events;
}

// Returns the part of an unfinished answer that can be shown: everything except an incomplete marker at its end.
export function completePart(answer) {
  const last = answer.lastIndexOf("<|ref|>");
  if (last >= 0 && !/<\|\/det\|>/.test(answer.slice(last))) return answer.slice(0, last);
  return answer.replace(/<(?:\|(?:r(?:e(?:f\|?)?)?)?)?$/, "");
}

// Returns the blocks of an answer: {label, text, modelBoxes, start, end}. Model boxes are in 0 to 999 of the page's
// width and height; start and end are offsets in the answer.
export function blocksOf(answer) {
  const found = [];
  const events = parse(answer);
  events.forEach((event, at) => {
    if (event.text !== undefined) {
      const label = events[at - 1];
      const text = event.text.trim();
      if (label && isLabel(label.ref, event.text)) {
        Object.assign(found.at(-1), { label: label.ref, text, end: event.end });
      } else if (text) {
        found.push({ label: "text", text, modelBoxes: [], start: event.start, end: event.end });
      }
      return;
    }
    const known = LABELS.includes(event.ref);
    found.push({
      label: known ? event.ref : "text",
      text: known ? "" : event.ref.trim(),
      modelBoxes: event.boxes,
      start: event.start,
      end: event.end,
    });
  });
  return found;
}

// Returns the answer without markers and with figures as image links. `figureName(number)` returns the file name of a
// figure by its number on the page, counted from 1.
export function toMarkdown(answer, figureName) {
  let out = "";
  let figures = 0;
  let afterLocated = false;
  const write = (text) => {
    if (!text) return;
    if (afterLocated && !/^\s/.test(text)) out += "\n"; // texts from different positions must not join into one word
    afterLocated = false;
    out += text;
  };
  const events = parse(answer);
  events.forEach((event, at) => {
    if (event.text !== undefined) {
      write(event.text);
    } else if (event.ref === FIGURE) {
      event.boxes.forEach(() => write(`![](${figureName(++figures)})\n`));
    } else if (!LABELS.includes(event.ref) && !isLabel(event.ref, events[at + 1]?.text ?? "")) {
      write(event.ref.trim());
      afterLocated ||= event.ref !== "";
    }
  });
  return cleanUp(out);
}

export function cleanUp(text) {
  for (const [command, replacement] of Object.entries(LATEX_REPLACEMENTS)) text = text.replaceAll(command, replacement);
  return text.trim().replace(/\n{3,}/g, "\n\n");
}

// Converts a model box to pixels: [left, top, right, bottom].
export function pixelBox([x1, y1, x2, y2], width, height) {
  const pixel = (value, side) => Math.min(Math.max(Math.trunc((value / BOX_SCALE) * side), 0), side);
  const [left, right] = [pixel(x1, width), pixel(x2, width)].sort((a, b) => a - b);
  const [top, bottom] = [pixel(y1, height), pixel(y2, height)].sort((a, b) => a - b);
  return [left, top, right, bottom];
}

export function isFigure(block) {
  return block.label === FIGURE;
}

// The colour of a label as a hue in degrees, the same as on the server's overlays.
export function hue(label) {
  const index = LABELS.indexOf(label);
  const number = index >= 0 ? index : LABELS.length + [...label].reduce((sum, char) => sum + char.codePointAt(0), 0);
  return ((number * 0.618034) % 1) * 360;
}

function isLabel(ref, following) {
  const text = following.trimStart();
  return LABELS.includes(ref) || (text !== "" && !text.startsWith("<|ref|>") && LABEL_PATTERN.test(ref));
}

function roundHalfAwayFromZero(number) {
  const value = Number(number);
  return Math.sign(value) * Math.round(Math.abs(value)) || 0; // never -0
}
