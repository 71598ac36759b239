// Small helpers for elements.

export const $ = (id) => document.getElementById(id);

// element("button.tab", {type: "button"}, "text", child, …)
export function element(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Left alone where nothing changes: a selection stays, and nothing is read aloud again.
export function setText(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

// One stop of the Tab key for a list of elements; arrow keys go from one to the next.
export function roving(container, selector) {
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

export function blobOf(dataUri) {
  const [head, base64] = dataUri.split(",", 2);
  const bytes = Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

export function dataUriOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
