"""Hostile and damaged files, with the errors that each may cause. All are generated; the largest has about 3 MB."""

from __future__ import annotations

import io
import itertools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import pillow_heif
from PIL import Image

from tests.ocr_server.intake import pdfs

TIFF_CODECS = "raw tiff_ccitt group3 group4 tiff_lzw tiff_adobe_deflate tiff_deflate packbits jpeg lzma zstd".split()
BILEVEL = ("tiff_ccitt", "group3", "group4")


class Bad(NamedTuple):
    data: bytes
    codes: frozenset[str]
    """Codes of the errors with which it may be refused. If `pages` is set, reading it successfully is fine, too."""
    pages: bool = False


REFUSED = frozenset({"image_parse_error", "too_large", "image_timeout", "invalid_image_format"})
PDF_REFUSED = frozenset(
    {"pdf_damaged", "pdf_empty", "pdf_page_failed", "pdf_page_too_large", "pdf_failed", "pdf_timeout"}
)
NO_PICTURE = frozenset({"invalid_image_format"})


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    if format == "HEIF":
        pillow_heif.encode(image.mode, image.size, image.tobytes(), file, **options)
    else:
        image.save(file, format, **options)
    return file.getvalue()


def noise(size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3))


@cache
def good_files() -> dict[str, bytes]:
    """Return a small valid file of every supported kind."""
    files = {name.lower(): saved(noise(), name) for name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "HEIF")}
    files["lossless webp"] = saved(noise(), "WEBP", lossless=True)
    files["interlaced jpeg"] = saved(noise(), "JPEG", progressive=True)
    files["animation"] = saved(noise(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")])
    files["16 bits"] = saved(Image.frombytes("I;16", (8, 8), bytes(range(128))), "PNG")
    files["float"] = saved(Image.new("F", (8, 8), 0.5), "TIFF")
    files["cmyk"] = saved(Image.new("CMYK", (8, 8), (9, 99, 9, 9)), "JPEG")
    for codec in TIFF_CODECS:
        image = noise().convert("1" if codec in BILEVEL else "RGB")
        files[f"tiff {codec}"] = saved(image, "TIFF", compression=codec)
    files["pages"] = saved(noise(), "TIFF", save_all=True, append_images=[noise((9, 9))], compression="tiff_lzw")
    return files


def truncated() -> Iterator[tuple[str, Bad]]:
    for name, data in good_files().items():
        for share in (0.02, 0.2, 0.4, 0.6, 0.9):
            yield f"{name} cut at {share}", Bad(data[: int(len(data) * share)], REFUSED, pages=True)
    whole = pdfs.pdf(pdfs.text("Hello"), pdfs.filled(1, 0, 0))
    for share in (0.02, 0.2, 0.4, 0.6, 0.9):
        yield f"pdf cut at {share}", Bad(whole[: int(len(whole) * share)], PDF_REFUSED | NO_PICTURE, pages=True)


def png_of(width: int, height: int, body: bytes, colour: int = 2, *extra: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def deflated(size: int) -> bytes:
    """Return `size` zero bytes, compressed to less than a hundredth."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def claims(width: int, height: int) -> Iterator[tuple[str, bytes]]:
    """Yield small files that claim to have this size in pixels."""
    size = struct.pack("<HH", min(width, 65535), min(height, 65535))
    yield "png", png_of(width, height, zlib.compress(bytes(100)))
    yield "gif", b"GIF89a" + size + b"\0\0\0," + bytes(4) + size + b"\0\x02\x02\x44\x01\0;"
    yield (
        "bmp",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(46),
    )
    riff = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    riff += max(width - 1, 0).to_bytes(3, "little") + max(height - 1, 0).to_bytes(3, "little")
    yield "webp", b"RIFF" + struct.pack("<I", len(riff)) + riff
    jpeg = bytearray(good_files()["jpeg"])
    at = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, at + 5, min(height, 65535), min(width, 65535))
    yield "jpeg", bytes(jpeg)
    for codec in TIFF_CODECS:
        yield f"tiff {codec}", resized_tiff(good_files()[f"tiff {codec}"], width, height)


def resized_tiff(data: bytes, width: int, height: int) -> bytes:
    """Return the TIFF with another width, height and number of rows per strip in its tags."""
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in (256, 257, 278):
            struct.pack_into("<HHII", changed, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(changed)


def bombs() -> Iterator[tuple[str, Bad]]:
    for (width, height), what in (((60_000, 60_000), "giant"), ((9_000, 9_000), "empty")):
        for name, data in claims(width, height):
            yield f"{what} {name}", Bad(data, REFUSED, pages=what == "empty")
    yield "png bomb", Bad(png_of(9_000, 9_000, deflated(243 << 20)), REFUSED, pages=True)
    yield "png with more pixels than it says", Bad(png_of(10, 10, deflated(100 << 20)), REFUSED, pages=True)
    text = struct.pack(">I", 300_000) + b"zTXt" + b"a\0\0" + deflated(60 << 20)[: 300_000 - 3]
    yield "png with a text bomb", Bad(png_of(1, 1, zlib.compress(bytes(4)), 2, text + bytes(4)), REFUSED, pages=True)
    for codec in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "lzma", "zstd", "jpeg"):
        side = 6_000 if codec in BILEVEL else 3_000
        image = Image.new("1" if codec in BILEVEL else "RGB", (side, side))
        yield f"tiff bomb {codec}", Bad(saved(image, "TIFF", compression=codec), REFUSED, pages=True)
    frames = [Image.new("P", (3_000, 3_000), n) for n in range(3)]
    yield "gif of huge frames", Bad(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), REFUSED, True)
    yield "webp bomb", Bad(saved(Image.new("RGB", (3_000, 3_000)), "WEBP", lossless=True, method=0), REFUSED, True)
    yield "float tiff", Bad(saved(Image.new("F", (2_500, 2_500)), "TIFF", compression="tiff_lzw"), REFUSED, True)


def pdf_bombs() -> Iterator[tuple[str, Bad]]:
    yield "endless pdf", Bad(pdfs.endless(), PDF_REFUSED)
    for size in ((1e6, 1e6), (14_400, 14_400), (1e6, 1), (1, 1e6), (1e-3, 1e-3), (0, 0), (-5, 10)):
        yield f"pdf page of {size}", Bad(pdfs.pdf(pdfs.filled(1, 0, 0), size=size), PDF_REFUSED, pages=True)
    entries = b"/Filter/FlateDecode"
    for layers in (1, 2, 3):
        content = deflated(200 << 20)
        for _ in range(layers - 1):
            content = zlib.compress(content, 9)
        filters = b"/Filter[%s]" % (b"/FlateDecode" * layers)
        page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R>>"
        objects = [pdfs.CATALOG, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page, pdfs.stream(content, filters)]
        yield f"pdf with {layers} layers of deflation", Bad(pdfs.pdf_of(objects), PDF_REFUSED, pages=True)
    image = pdfs.stream(
        deflated(768_000_000),
        entries + b"/Type/XObject/Subtype/Image/Width 16000/Height 16000/BitsPerComponent 8/ColorSpace/DeviceRGB",
    )
    resources = b"/Resources<</XObject<</X 3 0 R>>>>"
    yield (
        "pdf with an image bomb",
        Bad(pdfs.pdf(b"99 0 0 99 0 0 cm /X Do", entries=resources, more=[image]), PDF_REFUSED, True),
    )
    deep = b"[" * 50_000 + b"]" * 50_000
    yield "pdf of deep arrays", Bad(pdfs.pdf(b"", entries=b"/Deep " + deep), PDF_REFUSED, pages=True)
    yield "pdf of deep content", Bad(pdfs.pdf(b"q " * 100_000 + deep + b" TJ"), PDF_REFUSED, pages=True)
    tree = [pdfs.CATALOG, b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 99>>"]
    yield "pdf whose pages hold themselves", Bad(pdfs.pdf_of(tree), PDF_REFUSED, pages=True)
    inner = b"4 0 5 6 " + b"<</Type/ObjStm/N 2/First 8/Length 1/Extends 3 0 R>> null"
    nested = pdfs.stream(inner, b"/Type/ObjStm/N 2/First 8/Extends 3 0 R")
    yield (
        "pdf of object streams in themselves",
        Bad(
            pdfs.pdf_of([pdfs.CATALOG, b"<</Type/Pages/Kids[4 0 R]/Count 1>>", nested, nested]), PDF_REFUSED, pages=True
        ),
    )
    yield (
        "pdf that says it has a billion pages",
        Bad(pdfs.pdf(b"").replace(b"/Count 1", b"/Count 999999999"), PDF_REFUSED | {"too_many_pages"}, pages=True),
    )


def polyglots() -> Iterator[tuple[str, Bad]]:
    document = pdfs.pdf(pdfs.filled(1, 0, 0))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("word/document.xml", "<w:document/>")
    good = good_files()
    yield "pdf and zip", Bad(document + archive.getvalue(), PDF_REFUSED, pages=True)
    yield "zip and pdf", Bad(archive.getvalue() + document, PDF_REFUSED | NO_PICTURE, pages=True)
    yield "jpeg and pdf", Bad(good["jpeg"] + document, REFUSED, pages=True)
    yield "html in a pdf", Bad(b"<html><script>alert(1)</script>\n" + document, PDF_REFUSED, pages=True)
    yield "gif and javascript", Bad(b"GIF89a/*" + good["gif"][8:] + b"*/=1;alert(1)", REFUSED, pages=True)
    yield "png and zip", Bad(good["png"] + archive.getvalue(), REFUSED, pages=True)
    yield "pdf behind a picture's signature", Bad(b"\x89PNG\r\n\x1a\n" + document, REFUSED)
    yield "tiff behind a webp's signature", Bad(b"RIFF\0\0\0\0WEBP" + good["tiff raw"], REFUSED)
    for one, other in itertools.permutations(("jpeg", "webp", "avif", "heif", "tiff raw"), 2):
        yield f"{one} that ends as {other}", Bad(good[one][:40] + good[other][40:], REFUSED, pages=True)


def wrong_types() -> Iterator[tuple[str, Bad]]:
    archive = io.BytesIO()
    zipfile.ZipFile(archive, "w").close()
    files = {
        "html": b"<!doctype html><p>Hello",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "entities": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbb">]><a>&b;</a>',
        "zip": archive.getvalue(),
        "mp4": b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(100),
        "text": "Grüße".encode() * 9,
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n/showpage",
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
        "executable": b"\x7fELF" + bytes(99),
        "zeros": bytes(1000),
        "one byte": b"B",
    }
    for name, data in files.items():
        yield name, Bad(data, NO_PICTURE)
    for start in (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
        b"II+\0",
        b"BM",
        b"RIFF\0\0\0\0WEBP",
    ):
        yield f"nothing but {start!r}", Bad(start, REFUSED)
    for brand in (b"avif", b"heic", b"mif1"):
        yield f"nothing but {brand!r}", Bad(b"\0\0\0\x14ftyp" + brand + bytes(4) + brand, REFUSED)


def sizes() -> Iterator[tuple[str, Bad]]:
    for width, height in ((0, 0), (0, 9), (9, 0)):
        for name, data in claims(width, height):
            if name != "webp":  # it can't say so
                yield f"{name} of {width} x {height}", Bad(data, REFUSED)
    for size in ((1, 1), (65_000, 1), (1, 65_000), (65_000, 3), (3, 65_000)):
        for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
            yield f"{name} of {size}", Bad(saved(Image.new("L", size), name), frozenset(), pages=True)


KINDS: dict[str, Callable[[], Iterator[tuple[str, Bad]]]] = {
    kind.__name__: kind for kind in (truncated, bombs, pdf_bombs, polyglots, wrong_types, sizes)
}
