// The page as a whole: opens a file, has it read, and shows the result.

import { apiKey, listModels, unavailableReason, url } from "./api.js";
import { setUpChoices, showTokens } from "./choices.js";
import { $, blobToDataUri, setText } from "./dom.js";
import * as download from "./download.js";
import { setUpFiles } from "./files.js";
import { switchLanguage, t, translate } from "./i18n.js";
import { buildRequest, Job } from "./job.js";
import { PageView } from "./page_view.js";
import { loadImage } from "./pictures.js";
import { ResultView } from "./result_view.js";
import * as snippets from "./snippets.js";

const BROWSER_IMAGE_TYPES = /^image\/(png|jpeg|webp|gif|bmp|avif)$/;
const HEALTH_POLL_MS = 3000;
const REFRESH_MS = 60;
const NOTE_DURATION_MS = 2500;

const state = {
  model: "", // its id in the API
  defaultTokens: 0,
  file: null,
  picture: null, // {url, width, height} if the browser can display the file, else null
  job: null,
  selectedPage: null, // index of the page that was selected in the strip
  note: "", // shown instead of the status
};
const pageView = new PageView(highlightBlock, (index) => {
  state.selectedPage = index;
  show();
});
const resultView = new ResultView(highlightBlock);

// Reading a file

async function openFile(file) {
  state.job?.dispose();
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  Object.assign(state, { file, picture: null, job: null });
  const isDocument = !BROWSER_IMAGE_TYPES.test(file.type);
  document.body.classList.toggle("document", isDocument);
  $("pages").value = $("password").value = "";
  const picture = isDocument ? null : await loadPicture(file);
  if (file !== state.file) return; // another file has been opened meanwhile
  state.picture = picture;
  $("read").disabled = false;
  await read();
}

async function loadPicture(file) {
  const address = URL.createObjectURL(file);
  try {
    const { naturalWidth: width, naturalHeight: height } = await loadImage(address);
    return { url: address, width, height };
  } catch {
    URL.revokeObjectURL(address);
    return null; // the server's error will say what is wrong with it
  }
}

async function read() {
  const { file, picture } = state;
  state.job?.dispose();
  showError(null);
  rememberKey();
  if (!state.model && !(await connect())) return;
  const dataUri = await blobToDataUri(file).catch(() => null);
  if (file !== state.file) return;
  if (dataUri === null) {
    showError("error_unreadable");
    return;
  }
  const body = buildRequest({
    model: state.model,
    name: file.name,
    type: file.type,
    dataUri,
    displayable: picture !== null,
    prompt: $("prompt").value,
    mode: $("mode").value,
    pages: $("pages").value.trim(),
    password: $("password").value,
  });
  const job = new Job(body, picture, () => job === state.job && scheduleShow());
  Object.assign(state, { job, selectedPage: null });
  resultView.clear();
  show();
  if (matchMedia("(max-width: 860px)").matches) $("viewer").scrollIntoView({ behavior: "smooth" });
  await job.run();
  if (job === state.job && job.error) showRequestError(job.error);
}

// Showing the state

let showTimer = 0;
function scheduleShow() {
  showTimer ||= setTimeout(() => {
    showTimer = 0;
    show();
  }, REFRESH_MS);
}

// The selected page, else the page that is being read, else the page that was read last.
function currentIndex() {
  const latest = state.job?.pages.findLastIndex((page) => page.state !== "waiting") ?? 0;
  return state.selectedPage ?? Math.max(latest, 0);
}

function currentPage() {
  return state.job?.pages[currentIndex()];
}

function show() {
  const { job, file } = state;
  const page = currentPage();
  const running = job?.state === "reading";
  $("drop").hidden = file !== null;
  $("viewer").hidden = file === null;
  $("name").textContent = file?.name ?? "";
  $("empty-hint").hidden = Boolean(page?.raw);
  $("actions").hidden = !job;
  $("read").hidden = running;
  $("stop").hidden = !running;
  $("progress").hidden = !running;
  showTokens(page?.picture ?? state.picture, state.defaultTokens);
  if (!job) return;
  if (page) {
    pageView.show(page);
    pageView.showStrip(job.pages, currentIndex());
    resultView.show(page);
  }
  $("save-overlay").disabled = !page?.picture;
  $("save-pdf").disabled = running || job.pages.length < 2;
  if (job.pages.length > 1) {
    $("progress").max = job.pages.length;
    $("progress").value = job.pagesDone;
  } else {
    $("progress").removeAttribute("value");
  }
  $("clock").textContent = `${job.seconds.toFixed(1)} s`;
  setText($("status"), state.note || statusOf(job));
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
  const incomplete = pages.filter((page) => page.state !== "stop");
  if (!incomplete.length) return t(total > 1 ? "status_done" : "status_done_one", { total, tokens });
  const list = incomplete.map((page) => t("page_state", { number: page.number, state: t(`state_${page.state}`) }));
  return t("status_incomplete", { list: list.join("; ") });
}

function showNote(text, { permanent = false } = {}) {
  state.note = text;
  show();
  if (text && !permanent) setTimeout(() => state.note === text && showNote(""), NOTE_DURATION_MS);
}

function showError(name, values = {}) {
  $("error").hidden = name === null;
  $("error").textContent = name === null ? "" : t(name, values);
}

function showRequestError({ kind, message, code, retryAfter }) {
  if (kind === "key") {
    $("key-field").hidden = false;
    $("key").focus();
    showError(apiKey.get() ? "error_key_wrong" : "error_key");
    return;
  }
  showError(`error_${kind}`, { message, seconds: retryAfter ?? 5 });
  if (code?.startsWith("pdf_password")) $("password").focus();
}

// Highlights a block on both sides; `reveal` also scrolls to it.
function highlightBlock(block, reveal = false) {
  pageView.highlight(block);
  resultView.highlight(block);
  if (!reveal) return;
  pageView.reveal(block);
  resultView.reveal(block);
}

// Connecting to the server

function rememberKey() {
  apiKey.set($("key").value.trim());
}

// Asks the server for its model. Returns whether it has answered.
async function connect() {
  try {
    const reason = await unavailableReason();
    const { data } = await listModels();
    Object.assign(state, { model: data[0].id, defaultTokens: data[0].max_vision_tokens });
    $("model").textContent = data[0].root.split("/").slice(-2).join("/");
    show();
    showError(reason === null ? null : "error_unavailable", { message: reason });
    if (reason !== null) setTimeout(connect, HEALTH_POLL_MS);
    return true;
  } catch (error) {
    showRequestError(error);
    return false;
  }
}

// Buttons

function setUpButtons() {
  const on = (id, action) => $(id).addEventListener("click", action);
  const onCopy = (id, text) => on(id, () => download.copy(text()).then(() => showNote(t("copied"))));
  const name = () => state.file.name.replace(/\.[^.]*$/, "") || "page";
  const exports = { markdown: download.allMarkdown, raw: download.allRaw, json: download.allJson };
  const snippet = (make, path) => make(state.job.body, state.file.name, url(path), apiKey.get() !== "");
  onCopy("copy", () => exports[resultView.tab](state.job));
  onCopy("copy-curl", () => snippet(snippets.curl, "v1/chat/completions"));
  onCopy("copy-python", () => snippet(snippets.python, "v1"));
  on("save-markdown", () => download.saveMarkdown(state.job, name()));
  on("save-json", () => download.saveJson(state.job, name()));
  on("save-overlay", () => download.saveOverlay(currentPage(), name()));
  on("save-pdf", async () => {
    showNote(t("saving"), { permanent: true });
    await download.saveOverlayPdf(state.job, name()).catch(showRequestError);
    showNote("");
  });
  on("stop", () => state.job.stop());
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
    connect();
  });
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.file) read();
  });
}

setUpChoices(show);
setUpFiles(openFile);
setUpButtons();
$("key").value = apiKey.get();
$("key-field").hidden = apiKey.get() === "";
translate();
connect();
