"""Converts pictures in any of Pillow's modes to 8-bit RGB, as a viewer would show them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import ImageCms

_WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a new picture in mode RGB, of the same size and without metadata.

    Transparent areas become white. Grey of more than 8 bits is scaled, not clipped (see `_grey`). CMYK is converted
    with the ICC profile in `image.info` if there is a valid one. Loads `image`, and raises what that raises.
    """
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        rgb = _grey(image).convert("RGB")
    elif image.mode == "CMYK":
        rgb = _cmyk(image)
    elif image.has_transparency_data:
        rgb = _on_white(image)
    else:
        rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    transparency = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparency, tuple) and max(transparency) > 255:
        # A 16-bit PNG: Pillow keeps the high byte of each pixel, but both bytes of the transparent colour.
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        from PIL import ImageCms  # rarely needed and slow to import, as is numpy

        try:
            return _to_srgb(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass  # the profile is damaged, or for another colour space
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Convert the picture, whose colours `profile` describes, to sRGB."""
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(profile, srgb, image.mode, "RGB").apply(image)


def _grey(image: Image.Image) -> Image.Image:
    """Convert grey of 12, 16 or 32 bits or in floating point to 8 bits.

    - 12 and 16 bits: black to white is the whole range of the bits.
    - 32-bit integers: the range of 8 bits if all values fit, otherwise that of 16 bits if they fit, otherwise from the
      lowest to the highest value.
    - Floating point: 0 to 1 if all values fit, otherwise from the lowest to the highest value.
    """
    import numpy as np

    values = np.asarray(image)
    white_is_zero = False
    bits = 16
    if isinstance(image, TiffImageFile):  # Pillow ignores these two tags here
        white_is_zero = image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO
        bits = 12 if image.tag_v2.get(ExifTags.Base.BitsPerSample) == (12,) else 16
    if image.mode.startswith("I;16"):
        grey = _from_bits(values, bits)
    elif image.mode == "F":
        grey = _from_range(values, 0.0, 1.0)
    elif values.min() >= 0 and values.max() <= 0xFF:
        grey = values.astype(np.uint8)
    elif values.min() >= 0 and values.max() <= 0xFFFF:
        grey = _from_bits(values, 16)
    else:
        grey = _from_range(values, 0, 0)
    if white_is_zero:
        grey = 255 - grey
    if isinstance(image.info.get("transparency"), int):  # the one grey value that a PNG declares transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _from_bits(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Scale integers from 0 to 2**bits - 1 to 0 to 255, rounded; larger values become white."""
    import numpy as np

    white = (1 << bits) - 1
    scaled = (np.arange(1 << 16, dtype=np.uint32) * 255 + white // 2) // white
    table: npt.NDArray[np.uint8] = np.minimum(scaled, 255).astype(np.uint8)
    return np.take(table, values)


def _from_range(values: npt.NDArray[Any], black: float, white: float) -> npt.NDArray[np.uint8]:
    """Scale `black` to `white`, or the lowest to the highest value if some lie outside, to 0 to 255; NaN is white."""
    import numpy as np

    finite = values[np.isfinite(values)]
    if finite.size and (finite.min() < black or finite.max() > white):
        black, white = float(finite.min()), float(finite.max())
    span = white - black
    if span <= 0:  # all values are the same
        return np.full(values.shape, 255, dtype=np.uint8)
    scaled = (values.astype(np.float64) - black) * (255 / span)
    return np.rint(np.clip(np.nan_to_num(scaled, nan=255.0), 0, 255)).astype(np.uint8)
