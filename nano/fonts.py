"""The fonts that pages are set in: free ones, from Debian's packages.

    apt-get install fonts-dejavu fonts-liberation2 fonts-freefont-ttf fonts-roboto-unhinted fonts-open-sans \
        fonts-lato fonts-ebgaramond fonts-linuxlibertine fonts-crosextra-carlito fonts-crosextra-caladea \
        fonts-inconsolata fonts-hack fonts-cantarell fonts-cabin fonts-tuffy fonts-quicksand fonts-b612 libfribidi0

A family is for training or for evaluation, never for both. Pages can be made where some are missing; a checkpoint that
is trained there forgets what those look like. Without libfribidi no page is kerned.
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
    """What the names of its files begin with."""
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
UNFIT = (
    "Italic Oblique Thin Hairline ExtraLight Light Cond Black Heavy ExtraBold Initials"
    " _DR _I _RI _RBI _RZI"  # Linux Libertine's display, initials and italics
).split()
"""Only upright faces of usual weight and width are used."""
ADVICE = "install the packages that nano/fonts.py names"


@cache
def fonts(split: Split) -> tuple[Path, ...]:
    """The files of `split` on this machine, in an order that does not depend on it.

    Raises:
        RuntimeError: there are none.
    """
    found = _found(split)
    if not found:
        raise RuntimeError(f"no font for {split}: {ADVICE}")
    return found


def _found(split: Split) -> tuple[Path, ...]:
    prefixes = tuple(family.prefix for family in FAMILIES if family.split == split)
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")):
            name = path.stem
            if path.suffix.lower() not in (".ttf", ".otf") or not name.startswith(prefixes):
                continue
            if not any(unfit in name for unfit in UNFIT):
                found.setdefault(name, path)
    return tuple(found[name] for name in sorted(found))


def missing() -> list[str]:
    """The families of which this machine has no file."""
    there = [path.stem for split in SPLITS for path in _found(split)]
    return [family.prefix for family in FAMILIES if not any(name.startswith(family.prefix) for name in there)]


@cache
def font(path: Path, size: int, *, kerned: bool = False) -> ImageFont.FreeTypeFont:
    """A face at `size` pixels.

    Args:
        kerned: whether letters move together as the font's tables of pairs say, as most programs print them (it takes
            libraqm and libfribidi; without them they don't).
    """
    layout = ImageFont.Layout.RAQM if kerned else ImageFont.Layout.BASIC
    return ImageFont.truetype(str(path), size, layout_engine=layout)
