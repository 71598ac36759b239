// Vision tokens of a picture, as deepseek_ocr/modes.py counts them: a test holds the two together.

export const MODES = {
  tiny: { base: 512, tile: 512, crop: false },
  small: { base: 640, tile: 640, crop: false },
  base: { base: 1024, tile: 1024, crop: false },
  large: { base: 1280, tile: 1280, crop: false },
  gundam: { base: 1024, tile: 640, crop: true },
  "gundam-m": { base: 1280, tile: 1024, crop: true },
};

const [FEWEST, MOST] = [2, 6]; // tiles

export function visionTokens(name, width, height) {
  return tokens(MODES[name], cropGrid(MODES[name], width, height));
}

// For a page whose size is not known.
export function mostVisionTokens(name) {
  const mode = MODES[name];
  return Math.max(...(mode.crop ? grids() : [[1, 1]]).map((grid) => tokens(mode, grid)));
}

function tokens(mode, [wide, tall]) {
  const [overview, side] = [viewSide(mode.base), viewSide(mode.tile)];
  const tiles = wide * tall > 1 ? tall * side * (wide * side + 1) : 0;
  return tiles + overview * (overview + 1) + 1;
}

function viewSide(pixels) {
  return Math.ceil(Math.floor(pixels / 16) / 4);
}

function cropGrid(mode, width, height) {
  if (!mode.crop || (width <= mode.tile && height <= mode.tile)) return [1, 1];
  const aspect = width / height;
  let [best, least] = [[1, 1], Infinity];
  for (const [wide, tall] of grids()) {
    const difference = Math.abs(aspect - wide / tall);
    if (difference < least) {
      [best, least] = [[wide, tall], difference];
    } else if (difference === least && width * height > 0.5 * mode.tile ** 2 * wide * tall) {
      best = [wide, tall];
    }
  }
  return best;
}

// By area; within one, wide ones last.
function grids() {
  const found = [];
  for (let wide = 1; wide <= MOST; wide++) {
    for (let tall = 1; tall <= MOST; tall++) {
      if (wide * tall >= FEWEST && wide * tall <= MOST) found.push([wide, tall]);
    }
  }
  return found.sort((a, b) => a[0] * a[1] - b[0] * b[1]);
}
