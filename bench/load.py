"""Load test for an OpenAI-compatible server that reads images: pages per second, and latencies.

    python -m bench.load --url http://localhost:8000/v1 --image page.png --clients 32 --requests 200
    python -m bench.load --url http://localhost:8000/v1 --pdf report.pdf --clients 8 --plot load.png

The pages of a PDF are rendered before the measurement and sent as images, so that the server need not support PDF.
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
    """The outcome of one request. Times are in seconds since the beginning of the run."""

    started: float
    first: float
    """When the first text arrived, or, without streaming, the whole answer."""
    ended: float
    tokens: int
    text: str
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """The outcomes of a run, and statistics of them."""

    outcomes: Sequence[Outcome]
    seconds: float
    """Duration of the run."""

    @property
    def done(self) -> list[Outcome]:
        """The requests that succeeded."""
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def pages_per_second(self) -> float:
        return len(self.done) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return sum(outcome.tokens for outcome in self.done) / self.seconds

    def first_text(self, percent: float) -> float:
        """Return a percentile of the seconds until the first text."""
        return float(np.percentile([outcome.first - outcome.started for outcome in self.done], percent))

    def whole(self, percent: float) -> float:
        """Return a percentile of the seconds until the end of the answer."""
        return float(np.percentile([outcome.ended - outcome.started for outcome in self.done], percent))

    def lines(self) -> Iterator[str]:
        """Yield the lines to print."""
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
    """Send requests and return their outcomes.

    Args:
        url: base URL of the API, including `/v1`.
        bodies: bodies of chat requests, which are sent in turn.
        requests: number of requests.
        clients: number of concurrent requests.
        api_key: the API key of the server.
        progress: display a progress bar.
    """
    payloads = itertools.cycle([json.dumps(body).encode() for body in bodies])
    remaining = iter(range(requests))
    outcomes: list[Outcome] = []
    headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    connector = aiohttp.TCPConnector(limit=clients)
    began = time.perf_counter()
    with tqdm(total=requests, unit="page", disable=not progress) as bar:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:

            async def client() -> None:
                for _ in remaining:
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
    """Yield the chunks of a stream, or the whole answer if it is not streamed."""
    if not response.content_type.startswith("text/event-stream"):
        yield await response.json()
        return
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def body(
    image: bytes, *, prompt: str = "Free OCR.", model: str = "deepseek-ocr", stream: bool = False, **more: Any
) -> dict[str, Any]:
    """Return the body of a chat request for one image file.

    Args:
        image: the file.
        prompt: the text that follows the image.
        model: name of the model.
        stream: stream the answer.
        more: further parameters of the request.
    """
    url = f"data:;base64,{base64.b64encode(image).decode()}"
    if image[:4] == b"\x89PNG":
        url = url.replace("data:;", "data:image/png;", 1)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    request = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream, **more}
    return request | ({"stream_options": {"include_usage": True}} if stream else {})


def rendered(pdf: Path, dpi: float) -> list[bytes]:
    """Render the pages of a PDF as PNG files."""
    import pypdfium2

    pages = []
    with pypdfium2.PdfDocument(pdf) as document:
        for page in document:
            file = io.BytesIO()
            page.render(scale=dpi / 72).to_pil().convert("RGB").save(file, "PNG")
            pages.append(file.getvalue())
    return pages


def plot(report: Report, path: Path) -> None:
    """Write a plot of the latency of each request by its start, and of the answers that ended in each second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    started = [outcome.started for outcome in report.done]
    above.plot(started, [outcome.ended - outcome.started for outcome in report.done], ".", label="whole answer")
    above.plot(started, [outcome.first - outcome.started for outcome in report.done], ".", label="first text")
    above.set_ylabel("seconds")
    above.legend()
    below.hist([outcome.ended for outcome in report.done], bins=np.arange(0, report.seconds + 1))
    below.set_ylabel("pages per second")
    below.set_xlabel("seconds since the beginning of the run")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", default="http://localhost:8000/v1", help="base URL of the API, including /v1 (default: %(default)s)"
    )
    parser.add_argument("--api-key", default="EMPTY", help="API key of the server (default: %(default)s)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, nargs="+", help="image files, which are sent in turn")
    source.add_argument("--pdf", type=Path, help="a PDF, whose pages are sent in turn")
    parser.add_argument("--dpi", type=float, default=144, help="resolution of a PDF's pages (default: %(default)s)")
    parser.add_argument(
        "--model",
        default="deepseek-ocr",
        help="name of the model; a suffix selects a mode, as in deepseek-ocr:tiny (default: %(default)s)",
    )
    parser.add_argument("--prompt", default="Free OCR.", help="text that follows the image (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, help="maximum number of tokens in an answer")
    parser.add_argument("--clients", type=int, default=8, help="number of concurrent requests (default: %(default)s)")
    parser.add_argument(
        "--requests", type=int, help="number of requests (default: one for each page of a PDF, 100 with images)"
    )
    parser.add_argument("--stream", action="store_true", help="stream the answers, to measure the time to first text")
    parser.add_argument("--plot", type=Path, help="write a plot of the run to this file (requires matplotlib)")
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
