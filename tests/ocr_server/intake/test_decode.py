"""Decoding picture files gives the pages that a viewer would show, or a clear error."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageDraw

from ocr_server.intake.decode import find_pages, is_pdf
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.picture_worker import decode_page

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
CORNERS = {"top left": "red", "top right": "blue", "bottom left": "lime", "bottom right": "black"}

SAVED_AS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 95},
    "progressive jpeg": {"format": "JPEG", "quality": 95, "progressive": True},
    "mpo": {"format": "MPO", "quality": 95},
    "png": {"format": "PNG"},
    "bmp": {"format": "BMP"},
    "gif": {"format": "GIF"},
    "webp": {"format": "WEBP", "quality": 95},
    "lossless webp": {"format": "WEBP", "lossless": True},
    "tiff": {"format": "TIFF"},
    "lzw tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "jpeg tiff": {"format": "TIFF", "compression": "jpeg", "quality": 95},
    "avif": {"format": "AVIF", "quality": 95},
    "heic": {"format": "HEIF", "quality": 95},
}


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if options.get("format") == "HEIF":
        options.pop("format")
        pillow_heif.encode(image.mode, image.size, image.tobytes(), buffer, **options)
    else:
        image.save(buffer, **options)
    return buffer.getvalue()


def quadrants(colours: dict[str, str], size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture with one colour in each quarter."""
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    for corner, colour in colours.items():
        x = 0 if "left" in corner else size[0] // 2
        y = 0 if "top" in corner else size[1] // 2
        draw.rectangle((x, y, x + size[0] // 2 - 1, y + size[1] // 2 - 1), fill=colour)
    return image


def assert_upright(page: Image.Image, size: tuple[int, int] = (96, 64), tolerance: int = 12) -> None:
    assert page.mode == "RGB"
    assert page.size == size
    for corner, colour in CORNERS.items():
        x = size[0] // 4 if "left" in corner else size[0] * 3 // 4
        y = size[1] // 4 if "top" in corner else size[1] * 3 // 4
        expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert_close(page.getpixel((x, y)), expected, tolerance)


def assert_close(pixel: Any, expected: Any, tolerance: int = 12) -> None:
    assert all(abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True)), f"{pixel} != {expected}"


def decode_image(data: bytes, limits: IntakeLimits) -> list[Image.Image]:
    return [decode_page(data, page, limits) for page in find_pages(data)]


def only(data: bytes, limits: IntakeLimits) -> Image.Image:
    (page,) = decode_image(data, limits)
    assert page.mode == "RGB"
    return page


def refusal(data: bytes, limits: IntakeLimits) -> SourceError:
    with pytest.raises(SourceError) as caught:
        decode_image(data, limits)
    assert caught.value.about == "file"
    return caught.value


def png(size: tuple[int, int], depth: int, colour_type: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG of a variant that Pillow reads but does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    stride = len(pixels) // max(size[1], 1)
    rows = b"".join(b"\0" + pixels[y * stride : (y + 1) * stride] for y in range(size[1]))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))
    body = b"".join(chunk(name, content) for name, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_tiff(size: tuple[int, int], bits: int, pixels: bytes, photometric: int = 1) -> bytes:
    """Write an uncompressed little-endian greyscale TIFF, of a variant that Pillow does not write."""
    tags = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, size[1]), (279, len(pixels))]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


class TestFormats:
    @pytest.mark.parametrize("name", SAVED_AS)
    def test_every_format_is_decoded(self, name: str, limits: IntakeLimits) -> None:
        assert_upright(only(saved(quadrants(CORNERS), **SAVED_AS[name]), limits))

    @pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
    def test_no_shape_is_too_extreme(self, size: tuple[int, int], limits: IntakeLimits) -> None:
        assert only(saved(Image.new("RGB", size, "red"), format="PNG"), limits).size == size

    def test_a_page_has_no_metadata(self, limits: IntakeLimits) -> None:
        data = saved(quadrants(CORNERS), format="JPEG", comment="secret", dpi=(300, 300))
        assert only(data, limits).info == {}

    @pytest.mark.parametrize("brand", [b"mif1", b"msf1"])
    def test_compatible_brands_decide_if_the_major_brand_is_generic(self, brand: bytes, limits: IntakeLimits) -> None:
        for name in ("avif", "heic"):
            data = saved(quadrants(CORNERS), **SAVED_AS[name])
            assert_upright(only(data[:8] + brand + data[12:], limits))


class TestOrientation:
    # TIFF 6.0, tag 274: the side of the upright picture that the first row and the first column are.
    SIDES = (
        ("top", "left"),
        ("top", "right"),
        ("bottom", "right"),
        ("bottom", "left"),
        ("left", "top"),
        ("right", "top"),
        ("right", "bottom"),
        ("left", "bottom"),
    )
    OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}  # noqa: RUF012

    def stored(self, orientation: int) -> Image.Image:
        """The picture as a camera held that way stores it."""
        row, column = self.SIDES[orientation - 1]
        colours = {}
        for vertical, row_side in (("top", row), ("bottom", self.OPPOSITE[row])):
            for horizontal, column_side in (("left", column), ("right", self.OPPOSITE[column])):
                sides = {row_side, column_side}
                corner = next(corner for corner in CORNERS if set(corner.split()) == sides)
                colours[f"{vertical} {horizontal}"] = CORNERS[corner]
        return quadrants(colours, size=(96, 64) if orientation < 5 else (64, 96))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "lzw tiff", "avif", "heic"])
    def test_the_orientation_is_applied(self, name: str, orientation: int, limits: IntakeLimits) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored = self.stored(orientation)
        data = saved(stored, exif=exif.tobytes(), **SAVED_AS[name])
        assert_upright(only(data, limits))

    def test_each_page_of_a_tiff_has_its_own_orientation(self, limits: IntakeLimits) -> None:
        pages = [self.stored(orientation) for orientation in (1, 6, 3)]
        for page, orientation in zip(pages, (1, 6, 3), strict=True):
            page.encoderinfo = {"tiffinfo": {274: orientation}}
        data = saved(pages[0], format="TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
        decoded = decode_image(data, limits)
        assert len(decoded) == 3
        for page in decoded:
            assert_upright(page)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
    @pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
    def test_damaged_metadata_is_ignored(self, name: str, exif: bytes, limits: IntakeLimits) -> None:
        assert_upright(only(saved(quadrants(CORNERS), exif=exif, **SAVED_AS[name]), limits))


class TestTransparency:
    @pytest.mark.parametrize(
        ("mode", "clear", "solid"),
        [("RGBA", (0, 0, 0, 0), (255, 0, 0, 255)), ("LA", (0, 0), (76, 255))],
    )
    @pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
    def test_alpha_is_on_white(self, mode: str, clear: Any, solid: Any, format: str, limits: IntakeLimits) -> None:
        image = Image.new(mode, (40, 20), clear)
        image.paste(solid, (0, 0, 20, 20))
        page = only(saved(image, format=format), limits)
        assert_close(page.getpixel((5, 10)), (255, 0, 0) if mode == "RGBA" else (76, 76, 76))
        assert page.getpixel((35, 10)) == WHITE

    def test_half_transparent_black_is_grey(self, limits: IntakeLimits) -> None:
        page = only(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), format="PNG"), limits)
        assert page.getpixel((4, 4)) == (127, 127, 127)

    @pytest.mark.parametrize("format", ["AVIF", "HEIF"])
    def test_alpha_of_photo_formats(self, format: str, limits: IntakeLimits) -> None:
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        image.paste((255, 0, 0, 255), (0, 0, 32, 64))
        page = only(saved(image, format=format, quality=95), limits)
        assert_close(page.getpixel((5, 30)), (255, 0, 0))
        assert_close(page.getpixel((60, 30)), WHITE)

    @pytest.mark.parametrize("format", ["PNG", "GIF"])
    def test_transparent_palette_index(self, format: str, limits: IntakeLimits) -> None:
        image = Image.new("P", (40, 20), 1)
        image.putpalette([255, 0, 0, 0, 0, 0])
        image.paste(0, (0, 0, 20, 20))
        page = only(saved(image, format=format, transparency=1), limits)
        assert page.getpixel((5, 10)) == (255, 0, 0)
        assert page.getpixel((35, 10)) == WHITE

    def test_palette_with_an_alpha_for_each_entry(self, limits: IntakeLimits) -> None:
        pixels = bytes([0, 1, 2])
        data = png((3, 1), 8, 3, pixels, (b"PLTE", bytes(9)), (b"tRNS", bytes([255, 128, 0])))
        page = only(data, limits)
        assert [page.getpixel((x, 0)) for x in range(3)] == [BLACK, (127, 127, 127), WHITE]

    def test_palette_with_an_alpha_channel_in_a_tiff(self, limits: IntakeLimits) -> None:
        image = Image.new("PA", (2, 1), (0, 255))
        image.putpalette([255, 0, 0])
        image.putpixel((1, 0), (0, 0))
        page = only(saved(image, format="TIFF"), limits)
        assert [page.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), WHITE]

    @pytest.mark.parametrize(
        ("depth", "colour_type", "clear", "solid", "seen"),
        [
            (1, 0, b"\0\0", None, None),
            (8, 0, b"\0\x10", b"\x80", (128, 128, 128)),
            (8, 2, b"\0\x01\0\x02\0\x03", b"\xff\0\0", (255, 0, 0)),
            (16, 0, b"\x12\x34", b"\x80\0", (128, 128, 128)),
            (16, 2, b"\x12\x34\x56\x78\x9a\xbc", b"\xff\xff\0\0\0\0", (255, 0, 0)),
        ],
    )
    def test_one_colour_declared_transparent(
        self, depth: int, colour_type: int, clear: bytes, solid: bytes | None, seen: Any, limits: IntakeLimits
    ) -> None:
        if solid is None:  # one bit: black is clear, white is white
            page = only(png((8, 1), 1, 0, b"\x0f", (b"tRNS", clear)), limits)
            assert {page.getpixel((x, 0)) for x in range(8)} == {WHITE}
            return
        clear_pixel = clear if depth == 16 else clear[1::2]
        page = only(png((2, 1), depth, colour_type, clear_pixel + solid, (b"tRNS", clear)), limits)
        assert page.getpixel((0, 0)) == WHITE
        assert page.getpixel((1, 0)) == seen


class TestDeepGrey:
    @pytest.mark.parametrize(("value", "seen"), [(0, 0), (0x8000, 128), (0xFFFF, 255), (255, 1)])
    @pytest.mark.parametrize("name", ["png", "tiff", "lzw tiff", "big-endian tiff"])
    def test_sixteen_bits_are_scaled(self, name: str, value: int, seen: int, limits: IntakeLimits) -> None:
        image = Image.new("I;16", (4, 4), value)
        if name == "big-endian tiff":
            image = Image.frombytes("I;16B", (4, 4), struct.pack(">H", value) * 16)
        data = saved(image, **SAVED_AS[name.removeprefix("big-endian ")])
        assert only(data, limits).getpixel((1, 1)) == (seen,) * 3

    def test_twelve_bits_are_scaled_by_twelve_bits(self, limits: IntakeLimits) -> None:
        page = only(grey_tiff((2, 1), 12, bytes([0xFF, 0xF8, 0x00])), limits)
        assert [page.getpixel((x, 0)) for x in range(2)] == [WHITE, (128, 128, 128)]

    def test_sixteen_bits_with_zero_for_white(self, limits: IntakeLimits) -> None:
        page = only(grey_tiff((2, 1), 16, struct.pack("<HH", 0, 0xFFFF), photometric=0), limits)
        assert [page.getpixel((x, 0)) for x in range(2)] == [WHITE, BLACK]

    @pytest.mark.parametrize(
        ("values", "seen"),
        [
            ([0, 128, 255], [0, 128, 255]),
            ([0, 0x8000, 0xFFFF], [0, 128, 255]),
            ([-1000, 0, 1000], [0, 128, 255]),
            ([0, 1 << 30, (1 << 31) - 1], [0, 127, 255]),
            ([70_000, 70_000, 70_000], [255, 255, 255]),
        ],
    )
    def test_thirty_two_bit_integers(self, values: list[int], seen: list[int], limits: IntakeLimits) -> None:
        image = Image.frombytes("I", (3, 1), struct.pack("=3i", *values))
        page = only(saved(image, format="TIFF"), limits)
        for x, grey in enumerate(seen):
            assert_close(page.getpixel((x, 0)), (grey,) * 3, tolerance=1)

    @pytest.mark.parametrize(
        ("values", "seen"),
        [
            ([0.0, 0.5, 1.0], [0, 128, 255]),
            ([0.25, 0.5, 0.75], [64, 128, 191]),
            ([0.0, 128.0, 255.0], [0, 128, 255]),
            ([-3.0, 0.0, 3.0], [0, 128, 255]),
            ([-3e38, 0.0, 3e38], [0, 128, 255]),
            ([255.0, 255.0, 255.0], [255, 255, 255]),
            ([0.0, float("nan"), 1.0], [0, 255, 255]),
            ([float("-inf"), 0.0, float("inf")], [0, 0, 255]),
        ],
    )
    def test_floating_point(self, values: list[float], seen: list[int], limits: IntakeLimits) -> None:
        image = Image.frombytes("F", (3, 1), struct.pack("=3f", *values))
        page = only(saved(image, format="TIFF"), limits)
        for x, grey in enumerate(seen):
            assert_close(page.getpixel((x, 0)), (grey,) * 3, tolerance=1)


class TestColourSpaces:
    @pytest.mark.parametrize(
        "options", [{"format": "PNG"}, {"format": "TIFF"}, {"format": "TIFF", "compression": "group4"}]
    )
    def test_black_and_white(self, options: dict[str, Any], limits: IntakeLimits) -> None:
        image = Image.new("1", (16, 8), 1)
        image.paste(0, (0, 0, 8, 8))
        page = only(saved(image, **options), limits)
        assert [page.getpixel((x, 4)) for x in (2, 14)] == [BLACK, WHITE]

    @pytest.mark.parametrize(
        "options",
        [
            {"format": "TIFF"},
            {"format": "TIFF", "compression": "tiff_lzw"},
            {"format": "JPEG", "quality": 95},
        ],
        ids=["tiff", "lzw tiff", "jpeg as Adobe writes it, inverted"],
    )
    def test_cmyk(self, options: dict[str, Any], limits: IntakeLimits) -> None:
        image = Image.new("CMYK", (48, 16), (0, 0, 0, 0))
        image.paste((0, 255, 255, 0), (16, 0, 32, 16))
        image.paste((0, 0, 0, 255), (32, 0, 48, 16))
        page = only(saved(image, **options), limits)
        for x, seen in ((4, WHITE), (24, (255, 0, 0)), (44, BLACK)):
            assert_close(page.getpixel((x, 8)), seen)

    @pytest.mark.parametrize("format", ["TIFF", "JPEG"])
    def test_cmyk_goes_through_its_profile(self, format: str, limits: IntakeLimits) -> None:
        image = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
        image.paste((255, 0, 0, 0), (0, 0, 16, 16))
        profile = cmyk_profile(cyan_prints_as=(88, -79 + 128, 81 + 128))  # sRGB's lime, in Lab
        page = only(saved(image, format=format, icc_profile=profile), limits)
        assert_close(page.getpixel((4, 8)), (0, 255, 0), tolerance=50)
        assert_close(page.getpixel((28, 8)), WHITE)

    @pytest.mark.parametrize(
        "profile", [b"nonsense", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
    )
    def test_cmyk_with_a_useless_profile_is_plain_cmyk(self, profile: bytes, limits: IntakeLimits) -> None:
        data = saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), format="TIFF", icc_profile=profile)
        assert_close(only(data, limits).getpixel((4, 4)), (0, 255, 255))

    def test_lab(self, limits: IntakeLimits) -> None:
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(quadrants(CORNERS), srgb, lab, outputMode="LAB")
        assert image is not None
        # Eight bits of Lab are coarse, and blue is at the edge of what they hold.
        assert_upright(only(saved(image, format="TIFF"), limits), tolerance=25)

    def test_ycbcr(self, limits: IntakeLimits) -> None:
        assert_upright(only(saved(quadrants(CORNERS).convert("YCbCr"), format="TIFF"), limits))

    def test_palette(self, limits: IntakeLimits) -> None:
        assert_upright(only(saved(quadrants(CORNERS).quantize(4), format="BMP"), limits))


def cmyk_profile(cyan_prints_as: tuple[int, int, int]) -> bytes:
    """A minimal ICC v2 printer profile: no ink is white, all cyan is as given (8-bit Lab), more is darker."""
    grid = []
    for corner in range(16):  # C is the most significant bit
        cyan, others = corner >> 3, bin(corner & 7).count("1")
        lightness, a, b = cyan_prints_as if cyan else (100, 128, 128)
        grid += [lightness * 255 // 100 // (others + 1), a, b]
    identity = b"".join(struct.pack(">i", 65536 if i % 4 == 0 else 0) for i in range(9))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(grid) + ramp * 3
    table += bytes(-len(table) % 4)
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"Test\0" + bytes(12 + 67)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    tags = [(b"A2B0", table), (b"desc", name), (b"wtpt", white)]
    offset, directory, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, content in tags:
        directory += tag + struct.pack(">II", offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0\0\0\0", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + directory + body


class TestManyFrames:
    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF"])
    def test_an_animation_shows_its_first_frame(self, format: str, limits: IntakeLimits) -> None:
        later = [Image.new("RGB", (64, 64), colour) for colour in ("blue", "lime")]
        data = saved(Image.new("RGB", (64, 64), "red"), format=format, save_all=True, append_images=later, duration=50)
        assert_close(only(data, limits).getpixel((30, 30)), (255, 0, 0))

    def test_a_heic_collection_shows_its_main_picture(self, limits: IntakeLimits) -> None:
        collection = pillow_heif.from_pillow(Image.new("RGB", (64, 64), "blue"))
        for colour in ("red", "lime"):
            collection.add_from_pillow(Image.new("RGB", (64, 64), colour))
        buffer = io.BytesIO()
        collection.save(buffer, primary_index=1, quality=95)
        assert_close(only(buffer.getvalue(), limits).getpixel((30, 30)), (255, 0, 0))

    @staticmethod
    def tiff(*frames: Image.Image, thumbnails: tuple[int, ...] = (), **options: Any) -> bytes:
        for index, frame in enumerate(frames):
            frame.encoderinfo = {"tiffinfo": {254: 1}} if index in thumbnails else {}
        return saved(frames[0], format="TIFF", save_all=True, append_images=list(frames[1:]), **options)

    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
    def test_every_page_of_a_tiff_comes_in_order(self, compression: str | None, limits: IntakeLimits) -> None:
        frames = [Image.new("RGB", (30, 20), "red"), Image.new("L", (10, 40), 128), Image.new("RGB", (5, 5))]
        pages = decode_image(self.tiff(*frames, compression=compression), limits)
        assert [page.size for page in pages] == [(30, 20), (10, 40), (5, 5)]
        assert [page.getpixel((2, 2)) for page in pages] == [(255, 0, 0), (128, 128, 128), BLACK]

    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "group4"])
    @pytest.mark.parametrize("big", [False, True])
    def test_pages_can_be_taken_in_any_order(self, compression: str | None, big: bool, limits: IntakeLimits) -> None:
        frames = [Image.new("1", (10 + number, 10), number % 2) for number in range(5)]
        data = self.tiff(*frames, compression=compression, big_tiff=big)
        pages = find_pages(data)
        assert [(page.width, page.height) for page in pages] == [frame.size for frame in frames]
        for number in (3, 0, 4, 4, 1, 2):
            page = decode_page(data, pages[number], limits)
            assert page.size == frames[number].size
            assert page.getpixel((5, 5)) == (WHITE if number % 2 else BLACK)

    def test_a_damaged_page_leaves_the_others_readable(self, limits: IntakeLimits) -> None:
        data = damaged_second_page([Image.effect_noise((40, 40), 90) for _ in range(3)])
        first, second, third = find_pages(data)
        for page in (first, third):
            assert decode_page(data, page, limits).size == (40, 40)
        for _ in range(2):
            with pytest.raises(SourceError) as caught:
                decode_page(data, second, limits)
            assert caught.value.code == "image_parse_error"

    @pytest.mark.parametrize("first", [b"\x08\0\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x07"])
    def test_a_tiff_without_a_directory(self, first: bytes, limits: IntakeLimits) -> None:
        assert refusal(b"II*\0" + first, limits).code == "image_parse_error"

    def test_pages_before_the_end_of_a_truncated_file_are_readable(self, limits: IntakeLimits) -> None:
        frames = [Image.effect_noise((40, 40), 90) for _ in range(3)]
        data = self.tiff(*frames)
        pages = find_pages(data)
        cut = data[: pages[2].at + 10]
        whole, also_whole, missing = find_pages(cut)
        for page in (whole, also_whole):
            assert decode_page(cut, page, limits).size == (40, 40)
        with pytest.raises(SourceError):
            decode_page(cut, missing, limits)

    def test_a_cycle_of_directories_ends(self, limits: IntakeLimits) -> None:
        data = bytearray(self.tiff(Image.new("L", (8, 8)), Image.new("L", (8, 8))))
        first, second = find_pages(bytes(data))
        (entries,) = struct.unpack_from("<H", data, second.at)
        struct.pack_into("<I", data, second.at + 2 + 12 * entries, first.at)
        assert find_pages(bytes(data)) == [first, second]

    def test_too_many_pages_are_refused(self, limits: IntakeLimits) -> None:
        chain = b"".join(struct.pack("<HI", 0, 8 + 6 * number) for number in range(1, 20_000))
        error = refusal(b"II*\0\x08\0\0\0" + chain, limits)
        assert type(error) is SourceError
        assert "10,000" in error.message

    def test_overlapping_directories_are_not_followed_without_end(self) -> None:
        """Each has 500 tags, most of them those of the others: 160 MB of tags in a file of 0.4 MB."""
        data, size, step = bytearray(400_000), 2 + 500 * 12, 14
        data[:8] = b"II*\0" + (8).to_bytes(4, "little")
        starts = range(8, len(data) - size - 4, step)
        for start in starts:
            struct.pack_into("<H", data, start, 500)
            struct.pack_into("<I", data, start + size, start + step)
        for start in starts:
            assert struct.unpack_from("<H", data, start) == (500,), "the pointers leave the counts as they are"
        pages = find_pages(bytes(data))
        assert len(pages) <= len(data) // size + 1

    def test_thumbnails_in_a_tiff_are_not_pages(self, limits: IntakeLimits) -> None:
        small, large = Image.new("RGB", (4, 4), "blue"), Image.new("RGB", (40, 40), "red")
        pages = decode_image(self.tiff(small, large, small.copy(), large.copy(), thumbnails=(0, 2)), limits)
        assert [page.size for page in pages] == [(40, 40), (40, 40)]

    def test_a_tiff_of_nothing_but_a_thumbnail_shows_it(self, limits: IntakeLimits) -> None:
        assert only(self.tiff(Image.new("RGB", (4, 4), "red"), thumbnails=(0,)), limits).size == (4, 4)

    def test_too_many_thumbnails_are_refused(self, limits: IntakeLimits) -> None:
        thumbnail = struct.pack("<HHHII", 1, 254, 4, 1, 1)
        chain = b"".join(thumbnail + struct.pack("<I", 8 + 18 * number) for number in range(1, 30_000))
        assert "10,000" in refusal(b"II*\0\x08\0\0\0" + chain, limits).message


class TestLimits:
    @pytest.mark.parametrize("name", SAVED_AS)
    def test_pixels(self, name: str, limits: IntakeLimits) -> None:
        data = saved(quadrants(CORNERS), **SAVED_AS[name])
        assert_upright(only(data, dataclasses.replace(limits, max_image_pixels=96 * 64)))
        error = refusal(data, dataclasses.replace(limits, max_image_pixels=96 * 64 - 1))
        assert isinstance(error, SourceTooLarge)
        assert "96 x 64" in error.message

    def test_pixels_are_counted_before_decoding(self, limits: IntakeLimits) -> None:
        # Decoding it would find that the data is missing.
        assert isinstance(refusal(png((60_000, 60_000), 8, 2, b""), limits), SourceTooLarge)

    def test_pixels_of_each_page_of_a_tiff(self, limits: IntakeLimits) -> None:
        data = TestManyFrames.tiff(Image.new("1", (8, 8)), Image.new("1", (1001, 1000)), compression="group4")
        small, large = find_pages(data)
        assert decode_page(data, small, limits).size == (8, 8)
        with pytest.raises(SourceTooLarge):
            decode_page(data, large, limits)
        with pytest.raises(SourceTooLarge):  # also where only Pillow knows the size
            decode_page(data, large._replace(width=0, height=0), limits)


class TestRefusals:
    def test_an_empty_file(self, limits: IntakeLimits) -> None:
        assert type(refusal(b"", limits)) is SourceError

    def test_pdf(self) -> None:
        start = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"
        assert is_pdf(start)
        assert is_pdf(b"x" * 1024 + start)
        assert not is_pdf(b"x" * 1025 + start)
        assert not is_pdf(saved(Image.new("L", (8, 8)), format="JPEG", comment=start))

    @pytest.mark.parametrize("format", ["EPS", "PPM", "ICO", "JPEG2000", "TGA", "PCX"])
    def test_other_picture_formats_are_not_decoded(self, format: str, limits: IntakeLimits) -> None:
        error = refusal(saved(quadrants(CORNERS), format=format), limits)
        assert type(error) is SourceError
        assert "JPEG, PNG" in error.message

    @pytest.mark.parametrize(
        "data",
        [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0\0\0\x18ftypisom\0\0\2\0isommp41"],
    )
    def test_files_that_are_not_pictures(self, data: bytes, limits: IntakeLimits) -> None:
        error = refusal(data, limits)
        assert type(error) is SourceError
        assert "JPEG, PNG" in error.message

    @pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
    def test_pictures_without_area(self, size: tuple[int, int], limits: IntakeLimits) -> None:
        gif = b"GIF89a" + struct.pack("<HH", *size) + b"\0\0\0,\0\0\0\0" + struct.pack("<HH", *size) + b"\0\2\0;"
        assert type(refusal(gif, limits)) is SourceError
        assert type(refusal(png(size, 8, 2, b""), limits)) is SourceError

    @pytest.mark.parametrize("name", SAVED_AS)
    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.8])
    def test_truncated_files(self, name: str, kept: float, limits: IntakeLimits) -> None:
        noisy = Image.effect_noise((96, 64), 80).convert("RGB")  # so that the pixels are most of the file
        data = saved(noisy, **SAVED_AS[name])
        if name == "mpo":
            data = saved(noisy, format="JPEG")
        error = refusal(data[: int(len(data) * kept)], limits)
        assert type(error) is SourceError
        assert not any(leak in error.message for leak in ("0x", "<", "/tmp", "BytesIO", "PIL"))


def damaged_second_page(frames: list[Image.Image]) -> bytes:
    """A TIFF whose second page is compressed nonsense."""
    data = TestManyFrames.tiff(*frames, compression="tiff_adobe_deflate")
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        (place,) = image.tag_v2[273]  # type: ignore[attr-defined]
        (length,) = image.tag_v2[279]  # type: ignore[attr-defined]
    return data[:place] + b"?" * length + data[place + length :]


FILES: dict[str, bytes] = {
    name: saved(quadrants(CORNERS, size=(24, 16)), **options) for name, options in SAVED_AS.items()
} | {
    "pages": TestManyFrames.tiff(*(Image.new("RGB", (8, 8)) for _ in range(3)), compression="tiff_lzw"),
    "16-bit tiff": saved(Image.new("I;16", (8, 8), 5), format="TIFF"),
    "float tiff": saved(Image.new("F", (8, 8), 5), format="TIFF"),
    "cmyk jpeg": saved(Image.new("CMYK", (8, 8)), format="JPEG", icc_profile=cmyk_profile((50, 0, 0))),
    "rgba png": saved(Image.new("RGBA", (8, 8)), format="PNG"),
    "palette png": saved(Image.new("P", (8, 8)), format="PNG", transparency=0),
    "animated gif": saved(
        Image.new("L", (8, 8)), format="GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]
    ),
}

hostile: Callable[[Any], Any] = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about files that it then decodes
class TestHostileBytes:
    """Whatever the bytes: pages within the limits, or a SourceError about the file."""

    def attempt(self, data: bytes, limits: IntakeLimits) -> None:
        refused: SourceError | None = None
        pages: list[Image.Image] = []
        try:
            pages = decode_image(data, limits)
        except SourceError as error:
            refused = error
        if refused is None:
            assert pages
            assert all(0 < page.width * page.height <= limits.max_image_pixels for page in pages)
        else:
            assert refused.about == "file"
            assert "0x" not in refused.message

    @hostile
    @given(data=st.binary(max_size=200))
    def test_anything(self, data: bytes, limits: IntakeLimits) -> None:
        self.attempt(data, limits)

    @hostile
    @given(name=st.sampled_from(sorted(FILES)), length=st.integers(4, 40), rest=st.binary(max_size=300))
    def test_a_good_beginning(self, name: str, length: int, rest: bytes, limits: IntakeLimits) -> None:
        self.attempt(FILES[name][:length] + rest, limits)

    @hostile
    @given(name=st.sampled_from(sorted(FILES)), where=st.floats(0, 1))
    def test_a_file_cut_short(self, name: str, where: float, limits: IntakeLimits) -> None:
        self.attempt(FILES[name][: int(len(FILES[name]) * where)], limits)

    @hostile
    @given(
        name=st.sampled_from(sorted(FILES)),
        changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    )
    def test_bytes_changed(self, name: str, changes: list[tuple[int, int]], limits: IntakeLimits) -> None:
        data = bytearray(FILES[name])
        for position, value in changes:
            data[position % len(data)] = value
        self.attempt(bytes(data), limits)
