// What the page says, in the language of the browser or the one that was chosen.

import { en } from "./words_en.js";
import { zh } from "./words_zh.js";

const WORDS = { en, zh };
const CHOSEN = "language";

let language = sessionStorage.getItem(CHOSEN) ?? (/^zh\b/i.test(navigator.language) ? "zh" : "en");

export function t(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, value) => values[value]);
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  sessionStorage.setItem(CHOSEN, language);
  translate();
}

// Puts the words into elements with data-text, data-label (aria-label) and data-hint (placeholder).
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  const each = (attribute, put) => {
    for (const item of document.querySelectorAll(`[${attribute}]`)) put(item, t(item.getAttribute(attribute)));
  };
  each("data-text", (item, words) => (item.textContent = words));
  each("data-label", (item, words) => item.setAttribute("aria-label", words));
  each("data-hint", (item, words) => (item.placeholder = words));
}
