// The page as a whole: a file comes in, is read, and is shown.

import { key, models, unavailable, url } from "./api.js";
import { setUpChoices, showTokens } from "./choices.js";
import { $, dataUriOf, setText } from "./dom.js";
import * as download from "./download.js";
import { setUpFiles } from "./files.js";
import { switchLanguage, t, translate } from "./i18n.js";
import { PageView } from "./page_view.js";
import { loadImage } from "./pictures.js";
import { Reading, requestOf } from "./reading.js";
import { ResultView } from "./result_view.js";
import * as snippets from "./snippets.js";

const SHOWN_BY_BROWSERS = /^image\/(png|jpeg|webp|gif|bmp|avif)$/;
const POLL_MS = 3000;
const SHOW_MS = 60;
const NOTE_MS = 2500;

const state = {
  model: "", // as the API calls it
  defaultTokens: 0,
  file: null,
  picture: null, // of a file that the browser can show: {url, width, height}
  reading: null,
  picked: null, // index of the page that was picked in the strip
  note: "", // shown in the status's place
};
const left = new PageView(pointed, (index) => {
  state.picked = index;
  show();
});
const right = new ResultView(pointed);

// A file comes in

async function take(file) {
  state.reading?.dispose();
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  Object.assign(state, { file, picture: null, reading: null });
  const isDocument = !SHOWN_BY_BROWSERS.test(file.type);
  document.body.classList.toggle("document", isDocument);
  $("pages").value = $("password").value = "";
  const picture = isDocument ? null : await pictureOf(file);
  if (file !== state.file) return; // another one has come meanwhile
  state.picture = picture;
  $("read").disabled = false;
  await read();
}

async function pictureOf(file) {
  const address = URL.createObjectURL(file);
  try {
    const { naturalWidth: width, naturalHeight: height } = await loadImage(address);
    return { url: address, width, height };
  } catch {
    URL.revokeObjectURL(address);
    return null; // the server will say what is wrong with it
  }
}

async function read() {
  const { file, picture } = state;
  state.reading?.dispose();
  showError(null);
  rememberKey();
  if (!state.model && !(await meet())) return;
  const dataUri = await dataUriOf(file).catch(() => null);
  if (file !== state.file) return;
  if (dataUri === null) {
    showError("error_unreadable");
    return;
  }
  const body = requestOf({
    model: state.model,
    name: file.name,
    type: file.type,
    dataUri,
    shown: picture !== null,
    prompt: $("prompt").value,
    mode: $("mode").value,
    pages: $("pages").value.trim(),
    password: $("password").value,
  });
  const reading = new Reading(body, picture, () => reading === state.reading && showSoon());
  Object.assign(state, { reading, picked: null });
  right.clear();
  show();
  if (matchMedia("(max-width: 860px)").matches) $("viewer").scrollIntoView({ behavior: "smooth" });
  await reading.run();
  if (reading === state.reading && reading.failure) showFailure(reading.failure);
}

// What is shown

let showing = 0;
function showSoon() {
  showing ||= setTimeout(() => {
    showing = 0;
    show();
  }, SHOW_MS);
}

// The page that was picked, else the one that is being read, else the one that was read last.
function currentIndex() {
  const begun = state.reading?.pages.findLastIndex((page) => page.state !== "waiting") ?? 0;
  return state.picked ?? Math.max(begun, 0);
}

function currentPage() {
  return state.reading?.pages[currentIndex()];
}

function show() {
  const { reading, file } = state;
  const page = currentPage();
  const running = reading?.state === "reading";
  $("drop").hidden = file !== null;
  $("viewer").hidden = file === null;
  $("name").textContent = file?.name ?? "";
  $("nothing").hidden = Boolean(page?.raw);
  $("actions").hidden = !reading;
  $("read").hidden = running;
  $("stop").hidden = !running;
  $("progress").hidden = !running;
  showTokens(page?.picture ?? state.picture, state.defaultTokens);
  if (!reading) return;
  if (page) {
    left.show(page);
    left.showStrip(reading.pages, currentIndex());
    right.show(page);
  }
  $("save-overlay").disabled = !page?.picture;
  $("save-pdf").disabled = running || reading.pages.length < 2;
  if (reading.pages.length > 1) {
    $("progress").max = reading.pages.length;
    $("progress").value = reading.pagesDone;
  } else {
    $("progress").removeAttribute("value");
  }
  $("clock").textContent = `${reading.seconds.toFixed(1)} s`;
  setText($("status"), state.note || statusOf(reading));
}

function statusOf({ pages, pagesDone, state: stage, tokens }) {
  const total = pages.length;
  if (stage === "reading") {
    return total > 1
      ? t("reading", { page: Math.min(pagesDone + 1, total), pages: total })
      : t("reading_file", { name: state.file.name });
  }
  if (stage === "stopped") return t("status_stopped");
  if (stage === "failed") return "";
  const cut = pages.filter((page) => page.state !== "stop");
  if (!cut.length) return t(total > 1 ? "status_done" : "status_done_one", { total, tokens });
  const list = cut.map((page) => t("page_state", { number: page.number, state: t(`state_${page.state}`) }));
  return t("status_incomplete", { list: list.join("; ") });
}

function note(text, { stays = false } = {}) {
  state.note = text;
  show();
  if (text && !stays) setTimeout(() => state.note === text && note(""), NOTE_MS);
}

function showError(name, values = {}) {
  $("error").hidden = name === null;
  $("error").textContent = name === null ? "" : t(name, values);
}

function showFailure({ kind, message, code, retryAfter }) {
  if (kind === "key") {
    $("key-field").hidden = false;
    $("key").focus();
    showError(key.get() ? "error_key_wrong" : "error_key");
    return;
  }
  showError(`error_${kind}`, { message, seconds: retryAfter ?? 5 });
  if (code?.startsWith("pdf_password")) $("password").focus();
}

function pointed(block, chosen = false) {
  left.light(block);
  right.light(block);
  if (!chosen) return;
  left.reveal(block);
  right.reveal(block);
}

// The server

function rememberKey() {
  key.set($("key").value.trim());
}

// Asks what is served here; whether it has said so.
async function meet() {
  try {
    const reason = await unavailable();
    const { data } = await models();
    Object.assign(state, { model: data[0].id, defaultTokens: data[0].max_vision_tokens });
    $("model").textContent = data[0].root.split("/").slice(-2).join("/");
    show();
    showError(reason === null ? null : "error_unavailable", { message: reason });
    if (reason !== null) setTimeout(meet, POLL_MS);
    return true;
  } catch (failure) {
    showFailure(failure);
    return false;
  }
}

// Buttons

function setUpButtons() {
  const on = (id, action) => $(id).addEventListener("click", action);
  const copies = (id, text) => on(id, () => download.copy(text()).then(() => note(t("copied"))));
  const name = () => state.file.name.replace(/\.[^.]*$/, "") || "page";
  const whole = { markdown: download.wholeMarkdown, raw: download.wholeRaw, json: download.wholeJson };
  const snippet = (make, path) => make(state.reading.body, state.file.name, url(path), key.get() !== "");
  copies("copy", () => whole[right.tab](state.reading));
  copies("copy-curl", () => snippet(snippets.curl, "v1/chat/completions"));
  copies("copy-python", () => snippet(snippets.python, "v1"));
  on("save-markdown", () => download.saveMarkdown(state.reading, name()));
  on("save-json", () => download.saveJson(state.reading, name()));
  on("save-overlay", () => download.saveOverlay(currentPage(), name()));
  on("save-pdf", async () => {
    note(t("saving"), { stays: true });
    await download.saveOverlayPdf(state.reading, name()).catch(showFailure);
    note("");
  });
  on("stop", () => state.reading.stop());
  on("language", () => {
    switchLanguage();
    show();
  });
  for (const menu of document.querySelectorAll("details.menu")) {
    const close = () => (menu.open = false);
    menu.addEventListener("click", (event) => event.target.closest("button") && close());
    menu.addEventListener("keydown", (event) => event.key === "Escape" && close());
    document.addEventListener("pointerdown", (event) => menu.contains(event.target) || close());
  }
  $("key").addEventListener("change", () => {
    rememberKey();
    meet();
  });
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.file) read();
  });
}

setUpChoices(show);
setUpFiles(take);
setUpButtons();
$("key").value = key.get();
$("key-field").hidden = key.get() === "";
translate();
meet();
