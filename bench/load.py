"""Load on an OpenAI server that reads pictures: how many pages a second, and how long each takes.

    python -m bench.load --url http://localhost:8000/v1 --image page.png --clients 32 --requests 200
    python -m bench.load --url http://localhost:8000/v1 --pdf report.pdf --clients 8 --plot load.png

A PDF's pages are rendered here, before the clock starts, and sent as pictures, so that any server can be asked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from tqdm import tqdm

from nano.packages import require_packages

REQUEST_SECONDS = 600


@dataclass(frozen=True)
class Outcome:
    """One request. Times are seconds since the run began."""

    started: float
    first: float
    """When the first text came; without streaming, when the answer did."""
    ended: float
    tokens: int
    text: str
    error: str | None = None


@dataclass(frozen=True)
class Report:
    outcomes: Sequence[Outcome]
    seconds: float

    @property
    def done(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def pages_per_second(self) -> float:
        return len(self.done) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return sum(outcome.tokens for outcome in self.done) / self.seconds

    def first_text(self, percent: float) -> float:
        return float(np.percentile([outcome.first - outcome.started for outcome in self.done], percent))

    def whole(self, percent: float) -> float:
        return float(np.percentile([outcome.ended - outcome.started for outcome in self.done], percent))

    def lines(self) -> Iterator[str]:
        failed = Counter(outcome.error for outcome in self.outcomes if outcome.error is not None)
        yield f"{len(self.done)} of {len(self.outcomes)} requests answered in {self.seconds:.1f} s"
        for error, count in failed.most_common():
            yield f"{count} × {error}"
        if self.done:
            yield f"{self.pages_per_second:.2f} pages/s, {self.tokens_per_second:.0f} tokens/s"
            for name, at in (("first text", self.first_text), ("whole answer", self.whole)):
                yield f"{name}: p50 {at(50):.2f} s, p95 {at(95):.2f} s, p99 {at(99):.2f} s"


async def run(
    url: str,
    bodies: Sequence[dict[str, Any]],
    *,
    requests: int,
    clients: int,
    api_key: str = "EMPTY",
    progress: bool = False,
) -> Report:
    """Ask `requests` times, `clients` at a time, with the bodies in turn.

    Args:
        url: with `/v1`.
    """
    payloads = itertools.cycle([json.dumps(body).encode() for body in bodies])
    left = iter(range(requests))
    outcomes: list[Outcome] = []
    headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    connector = aiohttp.TCPConnector(limit=clients)
    began = time.perf_counter()
    with tqdm(total=requests, unit="page", disable=not progress) as bar:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:

            async def client() -> None:
                for _ in left:
                    outcomes.append(await _ask(session, f"{url}/chat/completions", next(payloads), began))
                    bar.update()

            await asyncio.gather(*(client() for _ in range(clients)))
    return Report(outcomes, time.perf_counter() - began)


async def _ask(session: aiohttp.ClientSession, url: str, payload: bytes, began: float) -> Outcome:
    started = time.perf_counter() - began
    first: float | None = None
    tokens, text = 0, ""
    try:
        async with session.post(url, data=payload) as response:
            if response.status != 200:
                raise aiohttp.ClientError(f"HTTP {response.status}: {(await response.text())[:200]}")
            async for answer in _answers(response):
                if error := answer.get("error"):
                    raise aiohttp.ClientError(str(error.get("message", error)))
                for choice in answer["choices"]:
                    piece = (choice.get("delta") or choice.get("message") or {}).get("content") or ""
                    if piece and first is None:
                        first = time.perf_counter() - began
                    text += piece
                if usage := answer.get("usage"):
                    tokens = usage["completion_tokens"]
    except (aiohttp.ClientError, TimeoutError) as error:
        now = time.perf_counter() - began
        return Outcome(started, now, now, 0, "", f"{type(error).__name__}: {error}")
    ended = time.perf_counter() - began
    return Outcome(started, ended if first is None else first, ended, tokens, text)


async def _answers(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream, or the one answer."""
    if not response.content_type.startswith("text/event-stream"):
        yield await response.json()
        return
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def body(
    picture: bytes, *, prompt: str = "Free OCR.", model: str = "deepseek-ocr", stream: bool = False, **more: Any
) -> dict[str, Any]:
    """A chat request for one picture file."""
    url = f"data:;base64,{base64.b64encode(picture).decode()}"
    if picture[:4] == b"\x89PNG":
        url = url.replace("data:;", "data:image/png;", 1)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    request = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream, **more}
    return request | ({"stream_options": {"include_usage": True}} if stream else {})


def rendered(pdf: Path, dpi: float) -> list[bytes]:
    """The pages of a PDF as PNG files."""
    import pypdfium2

    pages = []
    with pypdfium2.PdfDocument(pdf) as document:
        for page in document:
            file = io.BytesIO()
            page.render(scale=dpi / 72).to_pil().convert("RGB").save(file, "PNG")
            pages.append(file.getvalue())
    return pages


def plot(report: Report, path: Path) -> None:
    """The time of each answer against when it was asked for, and the answers in each second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    started = [outcome.started for outcome in report.done]
    above.plot(started, [outcome.ended - outcome.started for outcome in report.done], ".", label="whole answer")
    above.plot(started, [outcome.first - outcome.started for outcome in report.done], ".", label="first text")
    above.set_ylabel("seconds")
    above.legend()
    below.hist([outcome.ended for outcome in report.done], bins=np.arange(0, report.seconds + 1))
    below.set_ylabel("pages in a second")
    below.set_xlabel("seconds since the start")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000/v1", help="base URL (default: %(default)s)")
    parser.add_argument("--api-key", default="EMPTY")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, nargs="+", help="picture files, sent in turn")
    source.add_argument("--pdf", type=Path, help="a PDF, whose pages are sent in turn")
    parser.add_argument("--dpi", type=float, default=144, help="of a PDF's pages (default: %(default)s)")
    parser.add_argument("--model", default="deepseek-ocr", help="deepseek-ocr:tiny and so on choose a mode")
    parser.add_argument("--prompt", default="Free OCR.")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--clients", type=int, default=8, help="requests at a time (default: %(default)s)")
    parser.add_argument("--requests", type=int, help="in all (default: each page once, or 100)")
    parser.add_argument("--stream", action="store_true", help="stream the answers, to see when they begin")
    parser.add_argument("--plot", type=Path, help="write a picture of the run there (needs matplotlib)")
    options = parser.parse_args()
    if options.plot:
        require_packages("python -m bench.load --plot", "matplotlib")
    pages = rendered(options.pdf, options.dpi) if options.pdf else [path.read_bytes() for path in options.image]
    more = {} if options.max_tokens is None else {"max_tokens": options.max_tokens}
    bodies = [body(page, prompt=options.prompt, model=options.model, stream=options.stream, **more) for page in pages]
    requests = options.requests or (len(pages) if options.pdf else 100)
    report = asyncio.run(
        run(
            options.url.rstrip("/"),
            bodies,
            requests=requests,
            clients=options.clients,
            api_key=options.api_key,
            progress=True,
        )
    )
    print("\n".join(report.lines()))
    if options.plot and report.done:
        plot(report, options.plot)
    return 0 if report.done else 1


if __name__ == "__main__":
    sys.exit(main())
