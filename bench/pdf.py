"""A long PDF: our server reads it as it is, vLLM's gets its pages as pictures, one at a time."""

from __future__ import annotations

import asyncio
import base64
import io
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pypdfium2

from bench import load
from bench.compare import Row, Series, compared
from bench.images import page
from bench.load import body
from bench.processes import Server, ours, running, vllms
from bench.servers import TINY

PAGES = 300
MAX_TOKENS = 16
DPI = 144


def run(quick: bool) -> list[Row]:
    count = 6 if quick else PAGES
    folder = Path(tempfile.mkdtemp())
    short, document = folder / "short.pdf", folder / "long.pdf"
    make_pdf(document, count)
    make_pdf(short, max(2, count // 10))
    with ExitStack() as stack:
        mine = stack.enter_context(running(ours(folder / "ours.log")))
        plain = stack.enter_context(running(vllms(folder / "vllm.log")))
        asyncio.run(_whole(mine, short.read_bytes()))  # warms both up
        asyncio.run(_page_by_page(plain, short))
        with mine.watching_memory() as little:
            asyncio.run(_whole(mine, short.read_bytes()))
        with mine.watching_memory() as much:
            seconds = asyncio.run(_whole(mine, document.read_bytes()))
        theirs = asyncio.run(_page_by_page(plain, document))
    rates = Series([count / seconds]), Series([count / theirs])
    return [
        compared(
            f"a PDF of {count} pages, tiny mode, {MAX_TOKENS} tokens a page",
            "pages/s",
            rates,
            compared_with="a client that sends one page after the other to vLLM's server",
            at_least=2,
        ),
        Row(
            f"API process, most memory: {count} pages beside {max(2, count // 10)}",
            "MB",
            Series([max(much) / 1e6]),
            Series([max(little) / 1e6]),
            "ours, with a tenth of the pages",
            "flat",
            max(much) < 1.15 * max(little),
        ),
    ]


def make_pdf(path: Path, pages: int) -> None:
    """Scanned letter pages of 113 dpi, which take turns."""
    scans = []
    for number in range(4):
        file = io.BytesIO()
        page(number).convert("L").resize((960, 1240)).save(file, "JPEG", quality=20)
        scans.append(file.getvalue())
    with pypdfium2.PdfDocument.new() as document:
        for number in range(pages):
            picture = pypdfium2.PdfImage.new(document)
            picture.load_jpeg(io.BytesIO(scans[number % len(scans)]), inline=True)
            picture.set_matrix(pypdfium2.PdfMatrix().scale(612, 792))
            sheet = document.new_page(612, 792)
            sheet.insert_obj(picture)
            sheet.gen_content()
        document.save(path)


async def _whole(server: Server, pdf: bytes) -> float:
    """Seconds for all of it in one request."""
    data = base64.b64encode(pdf).decode()
    request: dict[str, Any] = {
        "model": "deepseek-ocr:tiny",
        "max_tokens": MAX_TOKENS,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "file", "file": {"filename": "scans.pdf", "file_data": data}},
                    {"type": "text", "text": "Free OCR."},
                ],
            }
        ],
    }
    started = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=3600)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{server.url}/chat/completions", json=request) as response,
    ):
        answer = await response.json()
        if response.status != 200:
            raise RuntimeError(str(answer)[:1000])
    return time.perf_counter() - started


async def _page_by_page(server: Server, path: Path) -> float:
    """Seconds for rendering each page and asking for it."""
    started = time.perf_counter()
    with pypdfium2.PdfDocument(path) as document:
        for sheet in document:
            file = io.BytesIO()
            sheet.render(scale=DPI / 72).to_pil().convert("RGB").save(file, "PNG", compress_level=1)
            bodies = [body(file.getvalue(), max_tokens=MAX_TOKENS, **TINY)]
            report = await load.run(server.url, bodies, requests=1, clients=1)
            if not report.done:
                raise RuntimeError("\n".join(report.lines()))
    return time.perf_counter() - started
