"""Pictures in any of Pillow's modes → 8-bit RGB as a person would see them."""

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
    """A new picture in mode RGB, without metadata, of the same size.

    Transparency shows white. Grey of more than 8 bits is scaled, not clipped (`_grey`). CMYK goes through the
    ICC profile in `image.info` if there is a valid one. Loads `image`, and raises whatever that raises.
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
        # A 16-bit PNG: Pillow keeps the high bytes of the pixels, but all of the transparent colour.
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        from PIL import ImageCms  # most pictures need neither this nor numpy, which are slow to import

        try:
            return _to_srgb(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass  # a damaged profile, or one for another kind of colour
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """The picture, whose colours `profile` describes, in sRGB."""
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(profile, srgb, image.mode, "RGB").apply(image)


def _grey(image: Image.Image) -> Image.Image:
    """8-bit grey from grey of 12, 16 or 32 bits or floating point.

    12 and 16 bits: black to white is the whole range the bits have. 32-bit integers: that of 8 bits if all
    values fit, else of 16 bits if they do, else from the lowest to the highest value. Floating point: 0 to 1
    if all values fit, else from the lowest to the highest.
    """
    import numpy as np

    values = np.asarray(image)
    white_is_zero = False
    bits = 16
    if isinstance(image, TiffImageFile):  # two things that Pillow leaves to us
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
    """Integers from 0 to 2**bits - 1 → 0 to 255, rounded; larger ones are white."""
    import numpy as np

    white = (1 << bits) - 1
    scaled = (np.arange(1 << 16, dtype=np.uint32) * 255 + white // 2) // white
    table: npt.NDArray[np.uint8] = np.minimum(scaled, 255).astype(np.uint8)
    return np.take(table, values)


def _from_range(values: npt.NDArray[Any], black: float, white: float) -> npt.NDArray[np.uint8]:
    """`black` to `white` → 0 to 255, or lowest to highest value if some lie outside; NaN is white."""
    import numpy as np

    finite = values[np.isfinite(values)]
    if finite.size and (finite.min() < black or finite.max() > white):
        black, white = float(finite.min()), float(finite.max())
    span = white - black
    if span <= 0:  # one value all over
        return np.full(values.shape, 255, dtype=np.uint8)
    scaled = (values.astype(np.float64) - black) * (255 / span)
    return np.rint(np.clip(np.nan_to_num(scaled, nan=255.0), 0, 255)).astype(np.uint8)
