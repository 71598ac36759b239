// Page images: loading them, cropping figures, drawing boxes.

import { hue, pixelBox } from "./grounding.js";

export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the browser can't display this image"));
    image.src = url;
  });
}

// Crops a model box (0 to 999) out of a page image. Returns a JPEG blob, or null if the box is empty.
export async function crop(picture, box) {
  const image = await loadImage(picture.url);
  const [left, top, right, bottom] = pixelBox(box, image.naturalWidth, image.naturalHeight);
  if (right <= left || bottom <= top) return null;
  const canvas = new OffscreenCanvas(right - left, bottom - top);
  canvas.getContext("2d").drawImage(image, -left, -top);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

// Draws the numbered boxes of the blocks on a page image. Returns a PNG blob.
export async function drawOverlay(picture, blocks) {
  const image = await loadImage(picture.url);
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const size = Math.sqrt(width * height);
  const font = Math.max(9, Math.round(size / 75));
  context.lineWidth = Math.max(1, Math.round(size / 500));
  context.font = `600 ${font}px system-ui, sans-serif`;
  context.textBaseline = "top";
  blocks.forEach((block, index) => {
    for (const box of block.modelBoxes) {
      const [left, top, right, bottom] = pixelBox(box, width, height);
      const colour = `hsl(${hue(block.label)} 85% 28%)`;
      context.fillStyle = colour.replace(")", " / 0.15)");
      context.fillRect(left, top, right - left, bottom - top);
      context.strokeStyle = context.fillStyle = colour;
      context.strokeRect(left, top, right - left, bottom - top);
      const tag = `${index + 1} ${block.label}`;
      const above = top - font - 4 >= 0 ? top - font - 4 : top;
      context.fillRect(left, above, context.measureText(tag).width + 6, font + 4);
      context.fillStyle = "white";
      context.fillText(tag, left + 3, above + 2);
    }
  });
  return canvas.convertToBlob({ type: "image/png" });
}
