// Small helpers for DOM elements.

export const $ = (id) => document.getElementById(id);

// Creates an element: element("button.tab", {type: "button"}, "text", child, …)
export function element(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Sets the text only if it has changed, so that the selection is kept and screen readers do not repeat the text.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Makes a list of elements one tab stop; arrow keys, Home and End move the focus within it ("roving tabindex").
export function rovingTabIndex(container, selector) {
  container.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const items = [...container.querySelectorAll(selector)];
    const at = items.indexOf(event.target);
    if (at < 0) return;
    const next = event.key === "Home" ? items[0] : event.key === "End" ? items.at(-1) : step && items[at + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  container.addEventListener("focusin", (event) => {
    const item = event.target.closest(selector);
    if (!item) return;
    for (const each of container.querySelectorAll(selector)) each.tabIndex = each === item ? 0 : -1;
  });
}

export function dataUriToBlob(dataUri) {
  const [head, base64] = dataUri.split(",", 2);
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

export function blobToDataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
