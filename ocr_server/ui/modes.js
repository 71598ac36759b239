// Counts the vision tokens of an image as deepseek_ocr/modes.py does. A test checks that both agree.

import { FAMILY } from "./family.js";

export const MODES = FAMILY.modes;

export function visionTokens(name, width, height) {
  return tokens(MODES[name], cropGrid(MODES[name], width, height));
}

// The largest possible number of vision tokens, for a page of unknown size.
export function maxVisionTokens(name) {
  const mode = MODES[name];
  return Math.max(...(mode.crop_mode ? cropGrids(mode) : [[1, 1]]).map((grid) => tokens(mode, grid)));
}

function tokens(mode, [wide, tall]) {
  const [globalSide, tileSide] = [viewSide(mode.base_size), viewSide(mode.image_size)];
  const tiles = wide * tall > 1 ? tall * tileSide * (wide * tileSide + 1) : 0;
  return tiles + globalSide * (globalSide + 1) + 1;
}

// Vision tokens along one side of a view.
function viewSide(pixels) {
  return Math.ceil(Math.floor(pixels / 16) / 4);
}

function cropGrid(mode, width, height) {
  if (!mode.crop_mode || (width <= mode.image_size && height <= mode.image_size)) return [1, 1];
  const aspect = width / height;
  let [best, smallest] = [[1, 1], Infinity];
  for (const [wide, tall] of cropGrids(mode)) {
    const difference = Math.abs(aspect - wide / tall);
    if (difference < smallest) {
      [best, smallest] = [[wide, tall], difference];
    } else if (difference === smallest && width * height > 0.5 * mode.image_size ** 2 * wide * tall) {
      best = [wide, tall];
    }
  }
  return best;
}

// All crop grids, sorted by number of tiles; of equal ones, the widest last.
function cropGrids({ min_crops: fewest, max_crops: most }) {
  const found = [];
  for (let wide = 1; wide <= most; wide++) {
    for (let tall = 1; tall <= most; tall++) {
      if (wide * tall >= fewest && wide * tall <= most) found.push([wide, tall]);
    }
  }
  return found.sort((a, b) => a[0] * a[1] - b[0] * b[1]);
}
