"""Generates PDFs byte by byte for the tests. All irregularities are intended."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import md5

CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
LETTER = (612.0, 792.0)


def pdf_of(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """Return a file of these objects, numbered from 1; the first is the catalog."""
    body, places = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, len(body))
    return body + table + end


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), entries, content)


def box(size: tuple[float, float]) -> bytes:
    return b"[0 0 %s %s]" % (f"{size[0]:f}".encode(), f"{size[1]:f}".encode())


def pdf(*pages: bytes, size: tuple[float, float] = LETTER, entries: bytes = b"", more: Sequence[bytes] = ()) -> bytes:
    """A document with a page for each content stream.

    `entries` go into every page's dictionary; `more` are further objects, numbered from 3.
    """
    objects = [CATALOG, b"", *more]
    kids = []
    for content in pages:
        kids.append(b"%d 0 R" % (len(objects) + 1))
        font = b"<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"
        resources = b"" if b"/Resources" in entries else b"/Resources" + font
        place = b"/MediaBox" + box(size) + b"/Contents %d 0 R" % (len(objects) + 2)
        objects += [b"<</Type/Page/Parent 2 0 R" + place + resources + entries + b">>", stream(content)]
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (b" ".join(kids), len(kids))
    return pdf_of(objects)


NO_PAGES = pdf_of([CATALOG, b"<</Type/Pages/Kids[]/Count 0>>"])


def filled(red: float, green: float, blue: float, where: tuple[float, float, float, float] = (0, 0, 2e4, 2e4)) -> bytes:
    """Content: a rectangle (x, y, width, height in points from the lower left) of one colour."""
    return b"%s rg %s re f" % (
        " ".join(f"{value:f}" for value in (red, green, blue)).encode(),
        " ".join(f"{value:f}" for value in where).encode(),
    )


def text(*lines: str, size: float = 12) -> bytes:
    """Content: lines of text down the page."""
    shown = "".join(f"({line}) Tj 0 {-1.2 * size:f} Td " for line in lines)
    return f"BT /F {size:f} Tf 50 720 Td {shown} ET".encode()


def slow() -> bytes:
    """Return a page that takes about a second to render."""
    return endless(depth=4)


def endless(depth: int = 12) -> bytes:
    """Return a page that takes practically forever to render: each form draws the next one thirty times."""
    first = 3
    forms = []
    for level in range(depth):
        following = first + level + 1
        inner = b"/X Do " * 30 if level < depth - 1 else b"0 0 1 1 re f"
        resources = b"/Resources<</XObject<</X %d 0 R>>>>" % following if level < depth - 1 else b""
        forms.append(stream(inner, b"/Type/XObject/Subtype/Form/BBox[0 0 100 100]" + resources))
    return pdf(b"/X Do", entries=b"/Resources<</XObject<</X %d 0 R>>>>" % first, more=forms)


def encrypted(content: bytes, password: str, owner_password: str = "owner") -> bytes:
    """A one-page document under the 40-bit encryption of ISO 32000-1, 7.6 (revision 2)."""

    def padded(text: str) -> bytes:
        filler = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
        return (text.encode("latin-1") + filler)[:32]

    identity, permissions = b"0123456789abcdef", (-4).to_bytes(4, "little", signed=True)
    owner = rc4(md5(padded(owner_password)).digest()[:5], padded(password))
    key = md5(padded(password) + owner + permissions + identity).digest()[:5]
    user = rc4(key, padded(""))
    secret = rc4(md5(key + (4).to_bytes(3, "little") + b"\0\0").digest()[:10], content)
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 4 0 R>>"
    encryption = b"<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>" % (owner.hex().encode(), user.hex().encode())
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    entries = b"/Encrypt 5 0 R/ID[<%s><%s>]" % (identity.hex().encode(), identity.hex().encode())
    return pdf_of([CATALOG, pages, page, stream(secret), encryption], entries)


def rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
