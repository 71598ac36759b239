"""The free fonts in which pages are rendered. All of them are packaged by Debian:

    apt-get install fonts-dejavu fonts-liberation2 fonts-freefont-ttf fonts-roboto-unhinted fonts-open-sans \
        fonts-lato fonts-ebgaramond fonts-linuxlibertine fonts-crosextra-carlito fonts-crosextra-caladea \
        fonts-inconsolata fonts-hack fonts-cantarell fonts-cabin fonts-tuffy fonts-quicksand fonts-b612 libfribidi0

Each family belongs either to training or to evaluation. Pages can be rendered on a machine where some families are
missing, but a checkpoint that is trained there forgets what these look like. Without libfribidi, no page is kerned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ImageFont

from nano.words import SPLITS, Split

FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".local/share/fonts")


@dataclass(frozen=True)
class Family:
    prefix: str
    """The beginning of the names of its font files."""
    licence: str
    split: Split = "train"


FAMILIES = (
    Family("DejaVuSans", "Bitstream Vera"),
    Family("DejaVuSerif", "Bitstream Vera"),
    Family("LiberationSans", "OFL 1.1"),
    Family("LiberationSerif", "OFL 1.1"),
    Family("LiberationMono", "OFL 1.1"),
    Family("FreeSans", "GPL 3 with font exception"),
    Family("FreeSerif", "GPL 3 with font exception"),
    Family("FreeMono", "GPL 3 with font exception"),
    Family("Roboto", "Apache 2.0"),
    Family("Carlito", "OFL 1.1"),
    Family("EBGaramond", "OFL 1.1"),
    Family("Inconsolata", "OFL 1.1"),
    Family("Hack", "MIT"),
    Family("Tuffy", "public domain"),
    Family("B612", "OFL 1.1"),
    Family("Quicksand", "OFL 1.1"),
    Family("OpenSans", "Apache 2.0", "eval"),
    Family("Lato", "OFL 1.1", "eval"),
    Family("LinLibertine", "OFL 1.1", "eval"),
    Family("Caladea", "Apache 2.0", "eval"),
    Family("Cantarell", "OFL 1.1", "eval"),
    Family("Cabin", "OFL 1.1", "eval"),
)
EXCLUDED = (
    "Italic Oblique Thin Hairline ExtraLight Light Cond Black Heavy ExtraBold Initials"
    " _DR _I _RI _RBI _RZI"  # Linux Libertine's display, initials and italics
).split()
"""Parts of the names of files that are not used: only upright faces of regular weight and width are."""
ADVICE = "install the packages listed in nano/fonts.py"
"""What to do about missing fonts, for the end of an error message."""


@cache
def fonts(split: Split) -> tuple[Path, ...]:
    """Return the installed font files of a split, sorted by name, so that the order is the same on every machine.

    Raises:
        RuntimeError: no font of the split is installed.
    """
    installed = _installed(split)
    if not installed:
        raise RuntimeError(f"no font of the split '{split}' is installed: {ADVICE}")
    return installed


def _installed(split: Split) -> tuple[Path, ...]:
    prefixes = tuple(family.prefix for family in FAMILIES if family.split == split)
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")):
            name = path.stem
            if path.suffix.lower() not in (".ttf", ".otf") or not name.startswith(prefixes):
                continue
            if not any(part in name for part in EXCLUDED):
                found.setdefault(name, path)
    return tuple(found[name] for name in sorted(found))


def missing() -> list[str]:
    """Return the prefixes of the families that are not installed."""
    installed = [path.stem for split in SPLITS for path in _installed(split)]
    return [family.prefix for family in FAMILIES if not any(name.startswith(family.prefix) for name in installed)]


@cache
def font(path: Path, size: int, *, kerned: bool = False) -> ImageFont.FreeTypeFont:
    """Load a font.

    Args:
        path: the font file.
        size: font size in pixels.
        kerned: apply the font's kerning tables, as most programs do. This requires libraqm and libfribidi; without
            them, Pillow does not kern.
    """
    layout = ImageFont.Layout.RAQM if kerned else ImageFont.Layout.BASIC
    return ImageFont.truetype(str(path), size, layout_engine=layout)
