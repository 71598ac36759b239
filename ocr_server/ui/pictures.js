// Pictures of pages: to be shown, to cut figures out of, and to draw boxes on.

import { hue, pixelBox } from "./grounding.js";

export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the browser can't show this picture"));
    image.src = url;
  });
}

// The part of a picture within a box of 0 to 999, as a JPEG; null if there is nothing in it.
export async function cut(picture, box) {
  const image = await loadImage(picture.url);
  const [left, top, right, bottom] = pixelBox(box, image.naturalWidth, image.naturalHeight);
  if (right <= left || bottom <= top) return null;
  const canvas = new OffscreenCanvas(right - left, bottom - top);
  canvas.getContext("2d").drawImage(image, -left, -top);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

// The page with its blocks' boxes drawn on it, numbered, as a PNG.
export async function overlay(picture, blocks) {
  const image = await loadImage(picture.url);
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const size = Math.sqrt(width * height);
  const font = Math.max(9, Math.round(size / 75));
  pen.lineWidth = Math.max(1, Math.round(size / 500));
  pen.font = `600 ${font}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  blocks.forEach((block, index) => {
    for (const box of block.modelBoxes) {
      const [left, top, right, bottom] = pixelBox(box, width, height);
      const colour = `hsl(${hue(block.label)} 85% 28%)`;
      pen.fillStyle = colour.replace(")", " / 0.15)");
      pen.fillRect(left, top, right - left, bottom - top);
      pen.strokeStyle = pen.fillStyle = colour;
      pen.strokeRect(left, top, right - left, bottom - top);
      const tag = `${index + 1} ${block.label}`;
      const above = top - font - 4 >= 0 ? top - font - 4 : top;
      pen.fillRect(left, above, pen.measureText(tag).width + 6, font + 4);
      pen.fillStyle = "white";
      pen.fillText(tag, left + 3, above + 2);
    }
  });
  return canvas.convertToBlob({ type: "image/png" });
}
