// Counts the vision tokens of an image as deepseek_ocr/modes.py does. A test checks that both agree.

export const MODES = {
  tiny: { base: 512, tile: 512, crop: false },
  small: { base: 640, tile: 640, crop: false },
  base: { base: 1024, tile: 1024, crop: false },
  large: { base: 1280, tile: 1280, crop: false },
  gundam: { base: 1024, tile: 640, crop: true },
  "gundam-m": { base: 1280, tile: 1024, crop: true },
};

// Number of tiles in crop mode.
const [MIN_TILES, MAX_TILES] = [2, 6];

export function visionTokens(name, width, height) {
  return tokens(MODES[name], cropGrid(MODES[name], width, height));
}

// The largest possible number of vision tokens, for a page of unknown size.
export function maxVisionTokens(name) {
  const mode = MODES[name];
  return Math.max(...(mode.crop ? cropGrids() : [[1, 1]]).map((grid) => tokens(mode, grid)));
}

function tokens(mode, [wide, tall]) {
  const [globalSide, tileSide] = [viewSide(mode.base), viewSide(mode.tile)];
  const tiles = wide * tall > 1 ? tall * tileSide * (wide * tileSide + 1) : 0;
  return tiles + globalSide * (globalSide + 1) + 1;
}

// Vision tokens along one side of a view.
function viewSide(pixels) {
  return Math.ceil(Math.floor(pixels / 16) / 4);
}

function cropGrid(mode, width, height) {
  if (!mode.crop || (width <= mode.tile && height <= mode.tile)) return [1, 1];
  const aspect = width / height;
  let [best, smallest] = [[1, 1], Infinity];
  for (const [wide, tall] of cropGrids()) {
    const difference = Math.abs(aspect - wide / tall);
    if (difference < smallest) {
      [best, smallest] = [[wide, tall], difference];
    } else if (difference === smallest && width * height > 0.5 * mode.tile ** 2 * wide * tall) {
      best = [wide, tall];
    }
  }
  return best;
}

// All crop grids, sorted by number of tiles; of equal ones, the widest last.
function cropGrids() {
  const found = [];
  for (let wide = 1; wide <= MAX_TILES; wide++) {
    for (let tall = 1; tall <= MAX_TILES; tall++) {
      if (wide * tall >= MIN_TILES && wide * tall <= MAX_TILES) found.push([wide, tall]);
    }
  }
  return found.sort((a, b) => a[0] * a[1] - b[0] * b[1]);
}
