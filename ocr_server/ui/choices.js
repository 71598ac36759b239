// The form's choices: the prompt, and the mode with the number of vision tokens that it takes.

import { $, element } from "./dom.js";
import { t } from "./i18n.js";
import { MODES, maxVisionTokens, visionTokens } from "./modes.js";
import { FAMILY } from "./family.js";

const PROMPTS = FAMILY.prompts;

export function setUpChoices(onModeChange) {
  for (const name of Object.keys(PROMPTS)) {
    const radio = element("input", { type: "radio", name: "task", value: name });
    $("prompts").append(element("label.chip", {}, radio, element("span", { "data-text": `prompt_${name}` })));
  }
  $("prompts").addEventListener("change", (event) => choosePrompt(event.target.value));
  $("prompt").addEventListener("input", syncPromptButtons);
  $("prompt").value = PROMPTS.markdown;
  syncPromptButtons();
  $("mode").append(element("option", { value: "", "data-text": "mode_default" }));
  for (const name of Object.keys(MODES)) $("mode").append(element("option", { value: name }, name));
  $("mode").addEventListener("change", onModeChange);
}

// Shows the vision tokens of the selected mode. `picture` is null while its size is unknown; `defaultTokens` is the
// maximum of the server's default mode.
export function showTokens(picture, defaultTokens) {
  const mode = $("mode").value;
  const maximum = mode ? maxVisionTokens(mode) : defaultTokens;
  const exact = mode && picture ? t("tokens", { count: visionTokens(mode, picture.width, picture.height) }) : "";
  $("tokens").textContent = exact || (maximum ? t("tokens_most", { count: maximum }) : "");
}

function choosePrompt(name) {
  const prompt = $("prompt");
  prompt.value = PROMPTS[name];
  if (name !== "locate") return;
  prompt.focus();
  const start = prompt.value.indexOf("text");
  prompt.setSelectionRange(start, start + "text".length);
}

// Checks the button whose prompt is in the text field. With a custom prompt, no button is checked.
function syncPromptButtons() {
  for (const radio of $("prompts").querySelectorAll("input")) radio.checked = PROMPTS[radio.value] === $("prompt").value;
}
