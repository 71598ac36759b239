// Ways in which a file comes to the page: chosen, photographed, pasted, dropped.

import { $ } from "./dom.js";

export function setUpFiles(take) {
  const given = (files) => files?.length && take(files[0]);
  for (const id of ["file", "photo", "other", "other-photo"]) {
    $(id).addEventListener("change", (event) => {
      given([...event.target.files]);
      event.target.value = ""; // so that the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => given(event.clipboardData.files));
  let inside = 0; // elements entered and not left
  const dragging = (entered) => {
    inside = Math.max(0, entered);
    document.body.classList.toggle("dragging", inside > 0);
  };
  document.addEventListener("dragenter", () => dragging(inside + 1));
  document.addEventListener("dragleave", () => dragging(inside - 1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dragging(0);
    given(event.dataTransfer.files);
  });
}
