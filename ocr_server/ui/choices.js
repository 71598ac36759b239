// What to do and how: the prompt, and the mode with what it costs.

import { $, element } from "./dom.js";
import { t } from "./i18n.js";
import { MODES, mostVisionTokens, visionTokens } from "./modes.js";
import { PROMPTS } from "./prompts.js";

export function setUpChoices(modeChanged) {
  for (const name of Object.keys(PROMPTS)) {
    const radio = element("input", { type: "radio", name: "task", value: name });
    $("prompts").append(element("label.chip", {}, radio, element("span", { "data-text": `prompt_${name}` })));
  }
  $("prompts").addEventListener("change", (event) => choosePrompt(event.target.value));
  $("prompt").addEventListener("input", checkPrompt);
  $("prompt").value = PROMPTS.markdown;
  checkPrompt();
  $("mode").append(element("option", { value: "", "data-text": "mode_default" }));
  for (const name of Object.keys(MODES)) $("mode").append(element("option", { value: name }, name));
  $("mode").addEventListener("change", modeChanged);
}

// `picture` is null while its size is not known; `defaultTokens` are the most of the server's own mode.
export function showTokens(picture, defaultTokens) {
  const mode = $("mode").value;
  const most = mode ? mostVisionTokens(mode) : defaultTokens;
  const words = mode && picture ? t("tokens", { count: visionTokens(mode, picture.width, picture.height) }) : "";
  $("tokens").textContent = words || (most ? t("tokens_most", { count: most }) : "");
}

function choosePrompt(name) {
  const prompt = $("prompt");
  prompt.value = PROMPTS[name];
  if (name !== "locate") return;
  prompt.focus();
  const start = prompt.value.indexOf("text");
  prompt.setSelectionRange(start, start + "text".length);
}

// A prompt of one's own is none of the buttons'.
function checkPrompt() {
  for (const radio of $("prompts").querySelectorAll("input")) radio.checked = PROMPTS[radio.value] === $("prompt").value;
}
