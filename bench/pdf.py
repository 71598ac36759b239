"""A long PDF. This server reads it in one request; vLLM's server receives its pages as images, one at a time."""

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
        asyncio.run(_whole(mine, short.read_bytes()))  # warm-up of both servers
        asyncio.run(_page_by_page(plain, short))
        with mine.watching_memory() as short_memory:
            asyncio.run(_whole(mine, short.read_bytes()))
        with mine.watching_memory() as long_memory:
            seconds = asyncio.run(_whole(mine, document.read_bytes()))
        theirs = asyncio.run(_page_by_page(plain, document))
    rates = Series([count / seconds]), Series([count / theirs])
    return [
        compared(
            f"a PDF of {count} pages, tiny mode, {MAX_TOKENS} tokens per page",
            "pages/s",
            rates,
            compared_with="a client that sends one page after another to vLLM's server",
            at_least=2,
        ),
        Row(
            f"API process, peak memory: {count} pages compared with {max(2, count // 10)}",
            "MB",
            Series([max(long_memory) / 1e6]),
            Series([max(short_memory) / 1e6]),
            "ours, with a tenth of the pages",
            "flat",
            max(long_memory) < 1.15 * max(short_memory),
        ),
    ]


def make_pdf(path: Path, pages: int) -> None:
    """Write a PDF of scanned letter pages at 113 dpi. Four scans are repeated."""
    scans = []
    for number in range(4):
        file = io.BytesIO()
        page(number).convert("L").resize((960, 1240)).save(file, "JPEG", quality=20)
        scans.append(file.getvalue())
    with pypdfium2.PdfDocument.new() as document:
        for number in range(pages):
            image = pypdfium2.PdfImage.new(document)
            image.load_jpeg(io.BytesIO(scans[number % len(scans)]), inline=True)
            image.set_matrix(pypdfium2.PdfMatrix().scale(612, 792))
            sheet = document.new_page(612, 792)
            sheet.insert_obj(image)
            sheet.gen_content()
        document.save(path)


async def _whole(server: Server, pdf: bytes) -> float:
    """Send the PDF in one request, and return the seconds that it took."""
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
    """Render the pages and send them one after another, and return the seconds that it took."""
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
