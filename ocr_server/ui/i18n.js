// The page's texts, in the browser's language or the one that the user has chosen.

import { en } from "./words_en.js";
import { zh } from "./words_zh.js";

const WORDS = { en, zh };
const STORAGE_KEY = "language";

let language = sessionStorage.getItem(STORAGE_KEY) ?? (/^zh\b/i.test(navigator.language) ? "zh" : "en");

// Returns the text with this name, its {placeholders} replaced by `values`.
export function t(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, value) => values[value]);
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  sessionStorage.setItem(STORAGE_KEY, language);
  translate();
}

// Translates all elements with data-text (content), data-label (aria-label) or data-hint (placeholder).
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  const each = (attribute, apply) => {
    for (const item of document.querySelectorAll(`[${attribute}]`)) apply(item, t(item.getAttribute(attribute)));
  };
  each("data-text", (item, words) => (item.textContent = words));
  each("data-label", (item, words) => item.setAttribute("aria-label", words));
  each("data-hint", (item, words) => (item.placeholder = words));
}
