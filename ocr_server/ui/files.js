// The ways to open a file: choose it, take a photo, paste it, or drop it.

import { $ } from "./dom.js";

export function setUpFiles(onFile) {
  const open = (files) => files?.length && onFile(files[0]);
  for (const id of ["file", "photo", "other", "other-photo"]) {
    $(id).addEventListener("change", (event) => {
      open([...event.target.files]);
      event.target.value = ""; // otherwise choosing the same file again fires no event
    });
  }
  document.addEventListener("paste", (event) => open(event.clipboardData.files));
  let depth = 0; // dragenter events without their dragleave; both also fire for child elements
  const setDepth = (value) => {
    depth = Math.max(0, value);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", () => setDepth(depth + 1));
  document.addEventListener("dragleave", () => setDepth(depth - 1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    setDepth(0);
    open(event.dataTransfer.files);
  });
}
