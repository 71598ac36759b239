"""Many clients at once, half of which hang up: is the work of those who left given up, and everyone else's right?

    python -m tests.reliability.load --clients 200                       starts a server of its own
    python -m tests.reliability.load --base-url http://localhost:8000    an idle server with the embedded checkpoint

Half of the clients read an example picture, every other one as a stream, and compare the answer with its text. The
others ask for an answer of many thousand tokens, and leave: during the upload, before the first token, or in the
stream. Exits with 1 if anything is amiss.
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
IDLE_SECONDS = 10.0
MOMENTS = ("in the upload", "before the first token", "in the stream")


@dataclass
class Outcome:
    clients: int
    seconds: float = 0.0
    """Until the last client had its answer or had left."""
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    """What answers that were not right said."""
    left: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOMENTS, 0))
    """Clients that hung up, by the moment."""
    idle_after: float | None = None
    """Seconds until the gauges were 0; None if they were not in time."""
    next_answer: float = 0.0
    """Seconds that a request took afterwards."""
    memory_mb: dict[str, int] = field(default_factory=dict)
    """Of the API process, resident: before, at most, after."""

    @property
    def good(self) -> bool:
        return not self.wrong and self.right == self.clients - sum(self.left.values()) and self.idle_after is not None


class Load:
    """One run against one server."""

    def __init__(self, url: str, clients: int, *, process: psutil.Process | None = None, seed: int = 0) -> None:
        """Args:
        process: the server's, if its memory is to be watched.
        """
        self._url = url
        self._process = process
        self._random = random.Random(seed)
        self._outcome = Outcome(clients)

    async def run(self) -> Outcome:
        outcome = self._outcome
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=900, limits=limits) as self._http:
            for picture in PICTURES:  # what is made at first use is there before memory is compared
                await self._read(picture, stream=picture is SIGN)
            outcome.right = 0
            self._note_memory("before")
            watching = asyncio.create_task(self._watch())
            started = time.monotonic()
            await asyncio.gather(*(self._client(number) for number in range(outcome.clients)))
            outcome.seconds = time.monotonic() - started
            outcome.idle_after = await self._until_idle()
            watching.cancel()
            right, started = outcome.right, time.monotonic()
            await self._read(SIGN, stream=False)
            outcome.next_answer = time.monotonic() - started
            outcome.right = right
            self._note_memory("after")
        return outcome

    async def _client(self, number: int) -> None:
        await asyncio.sleep(self._random.uniform(0, 2))
        if number % 2:
            await self._leave(MOMENTS[number // 2 % len(MOMENTS)], stream=number % 4 == 1)
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
            self._outcome.right += 1
        else:
            self._outcome.wrong.append(f"{picture.name}: {text}")

    async def _leave(self, moment: str, *, stream: bool) -> None:
        """httpx would end the request in good order, so here are the bytes."""
        body = json.dumps(request(SIGN, stream=stream or moment == "in the stream", **ENDLESS)).encode()
        address = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        sent = self._random.randrange(len(body)) if moment == "in the upload" else len(body)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: load\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:sent]
        )
        await writer.drain()
        if moment == "in the stream":
            for _ in range(self._random.randint(1, 40)):
                if not await reader.readline():
                    self._outcome.wrong.append("a stream ended that should not have")
        else:
            await asyncio.sleep(self._random.uniform(0, 4))
        if self._random.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._outcome.left[moment] += 1

    async def _until_idle(self) -> float | None:
        started = time.monotonic()
        while any((await self.gauges()).values()):
            if time.monotonic() - started > IDLE_SECONDS:
                return None
            await asyncio.sleep(0.1)
        return time.monotonic() - started

    async def gauges(self) -> dict[str, float]:
        lines = (await self._http.get("/metrics")).text.splitlines()
        found = dict.fromkeys(GAUGES, 0.0)
        for line in lines:
            name = line.partition("{")[0].partition(" ")[0]
            if name in found:
                found[name] += float(line.rpartition(" ")[2])
        return found

    async def _watch(self) -> None:
        while True:
            self._note_memory("most")
            await asyncio.sleep(0.2)

    def _note_memory(self, when: str) -> None:
        if self._process is not None:
            now = self._process.memory_info().rss // 1_000_000
            most = self._outcome.memory_mb
            most[when] = max(now, most.get(when, 0)) if when == "most" else now


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="so many times on the same server")
    parser.add_argument("--base-url", help="of a server that is idle; otherwise one is started")
    parser.add_argument("--pid", type=int, help="with --base-url: of the server, to watch its memory")
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
