"""Load test in which half of the clients disconnect.

    python -m tests.reliability.load --clients 200                       starts its own server
    python -m tests.reliability.load --base-url http://localhost:8000    an idle server with the embedded checkpoint

Half of the clients read an example image, every other one as a stream, and compare the answer with the expected text.
The others request an answer of several thousand tokens and disconnect: during the upload, before the first token, or
during the stream. The test checks that every answer is correct, and that the server gives up the work of the clients
that have left: none of their pages is read to its end. Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.live.live_requests import PICTURES, SIGN, events, request, truth
from tests.live.live_server import running

CHAT = "/v1/chat/completions"
ENDLESS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 6000, "ocr": {"ngram_size": 0, "mode": "tiny"}}
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "ocr_pages_in_flight", "ocr_pages_waiting")
IDLE_SECONDS = 300.0
"""Limit for the wait until the server is idle. Whether work was given up is decided by `COMPLETED`, not by time."""
COMPLETED = ("length", "repetition")
"""Outcomes of a page of a disconnected client if the server reads it to its end; a page given up has another one."""
MOMENTS = ("during the upload", "before the first token", "during the stream")


@dataclass
class Outcome:
    clients: int
    seconds: float = 0.0
    """Seconds until the last client had its answer or had disconnected."""
    correct: int = 0
    """Number of correct answers."""
    errors: list[str] = field(default_factory=list)
    """The answers that were not correct."""
    disconnected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOMENTS, 0))
    """Number of clients that disconnected, by the moment."""
    idle_after: float | None = None
    """Seconds until all gauges were 0; None if they were not within IDLE_SECONDS."""
    completed: int = 0
    """Pages of disconnected clients that were read to their end nevertheless."""
    next_answer: float = 0.0
    """Seconds that a request took after the load."""
    memory_mb: dict[str, int] = field(default_factory=dict)
    """Resident memory of the API process: before, peak, after."""

    @property
    def good(self) -> bool:
        readers = self.clients - sum(self.disconnected.values())
        return not self.errors and self.correct == readers and self.idle_after is not None and not self.completed


class Load:
    """One run against one server, which must be idle."""

    def __init__(self, url: str, clients: int, *, process: psutil.Process | None = None, seed: int = 0) -> None:
        """Args:
        clients: number of clients.
        process: the server's process, if its memory is to be measured.
        seed: of the random delays.
        """
        self._url = url
        self._process = process
        self._random = random.Random(seed)
        self._outcome = Outcome(clients)

    async def run(self) -> Outcome:
        outcome = self._outcome
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=900, limits=limits) as self._http:
            for picture in PICTURES:  # allocate what is created on first use before memory is compared
                await self._read(picture, stream=picture is SIGN)
            outcome.correct = 0
            completed = await self._completed()
            self._note_memory("before")
            watching = asyncio.create_task(self._watch())
            started = time.monotonic()
            await asyncio.gather(*(self._client(number) for number in range(outcome.clients)))
            outcome.seconds = time.monotonic() - started
            outcome.idle_after = await self._until_idle()
            outcome.completed = int(await self._completed() - completed)
            watching.cancel()
            correct, started = outcome.correct, time.monotonic()
            await self._read(SIGN, stream=False)
            outcome.next_answer = time.monotonic() - started
            outcome.correct = correct
            self._note_memory("after")
        return outcome

    async def _client(self, number: int) -> None:
        await asyncio.sleep(self._random.uniform(0, 2))
        if number % 2:
            await self._disconnect(MOMENTS[number // 2 % len(MOMENTS)], stream=number % 4 == 1)
        else:
            await self._read(PICTURES[number // 2 % len(PICTURES)], stream=number % 4 == 2)

    async def _read(self, picture: Path, *, stream: bool) -> None:
        try:
            answer = await self._http.post(CHAT, json=request(picture, stream=stream))
            if answer.status_code != 200:
                text = f"{answer.status_code} {answer.text[:200]}"
            elif stream:
                chunks = events(answer.text)[:-1]
                text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
            else:
                text = answer.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, KeyError) as error:
            text = repr(error)
        if text == truth(picture):
            self._outcome.correct += 1
        else:
            self._outcome.errors.append(f"{picture.name}: {text}")

    async def _disconnect(self, moment: str, *, stream: bool) -> None:
        """Send a request and disconnect. Uses a plain connection, because httpx would end the request cleanly."""
        body = json.dumps(request(SIGN, stream=stream or moment == "during the stream", **ENDLESS)).encode()
        address = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        sent = self._random.randrange(len(body)) if moment == "during the upload" else len(body)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: load\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:sent]
        )
        await writer.drain()
        if moment == "during the stream":
            for _ in range(self._random.randint(1, 40)):
                if not await reader.readline():
                    self._outcome.errors.append("a stream ended early")
        else:
            await asyncio.sleep(self._random.uniform(0, 4))
        if self._random.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._outcome.disconnected[moment] += 1

    async def _until_idle(self) -> float | None:
        started = time.monotonic()
        while any((await self.gauges()).values()):
            if time.monotonic() - started > IDLE_SECONDS:
                return None
            await asyncio.sleep(0.1)
        return time.monotonic() - started

    async def gauges(self) -> dict[str, float]:
        """Return the gauges of running and waiting work, each summed over its labels."""
        lines = await self._metrics()
        found = dict.fromkeys(GAUGES, 0.0)
        for line in lines:
            name = line.partition("{")[0].partition(" ")[0]
            if name in found:
                found[name] += float(line.rpartition(" ")[2])
        return found

    async def _completed(self) -> float:
        """Return how many pages have ended with one of the outcomes `COMPLETED`."""
        ends = tuple(f'outcome="{outcome}"' for outcome in COMPLETED)
        pages = [line for line in await self._metrics() if line.startswith("ocr_pages_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in pages if any(end in line for end in ends))

    async def _metrics(self) -> list[str]:
        return (await self._http.get("/metrics")).text.splitlines()

    async def _watch(self) -> None:
        while True:
            self._note_memory("peak")
            await asyncio.sleep(0.2)

    def _note_memory(self, when: str) -> None:
        if self._process is not None:
            now = self._process.memory_info().rss // 1_000_000
            memory = self._outcome.memory_mb
            memory[when] = max(now, memory.get(when, 0)) if when == "peak" else now


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="number of runs on the same server")
    parser.add_argument("--base-url", help="URL of an idle server; by default, one is started")
    parser.add_argument("--pid", type=int, help="with --base-url: process id of the server, to measure its memory")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        url, process = arguments.base_url, psutil.Process(arguments.pid) if arguments.pid else None
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(running(Path(folder) / "log"))
            server.wait_ready()
            url, process = server.url, psutil.Process(server.process.pid)
        good = True
        for number in range(arguments.rounds):
            load = Load(url, arguments.clients, process=process, seed=arguments.seed + number)
            outcome = asyncio.run(load.run())
            print(json.dumps(asdict(outcome), indent=1, ensure_ascii=False))
            good = good and outcome.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
