"""Attack a server for a while in every way at once, while good clients use it.

    python -m tests.attack --minutes 30

The server is the real application with a fake engine, in a process of its own. Good clients ask for pages of random
colours and check the answers. Hostile ones, with and without a key, do what the tests in this folder do. From time to
time a decoder process is killed. The command prints figures as markdown, and exits with 1 if a good client got a wrong
answer, if none was answered for a while, if the server died, if its event loop stalled, or if memory grew: the median
of the last third of the time is compared with that of the first third, after a warm-up.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from tests.attack.conftest import files_server, warmed_up
from tests.attack.fake_server import SILENT, Spec
from tests.attack.harness import (
    KEY,
    KEYED,
    MAX_STALL_S,
    MEGA,
    OTHER_KEY,
    Connection,
    GoodClients,
    Server,
    batch_line,
    bearer,
    good_clients,
    head,
    post,
    together,
    upload,
)
from tests.attack.test_bodies import JSON
from tests.attack.test_connections import HEADS
from tests.attack.test_sources import LARGE_PNG, ask, data_uri
from tests.attack.test_without_key import REQUESTS
from tests.ocr_server.conftest import CHAT, WHITE, chat
from tests.ocr_server.intake import pdfs

T = TypeVar("T")

WARM_UP = 0.1
"""Part of the time that is not compared."""
GROWTH = 1.1
"""Factor by which memory may grow from the first to the last third, in addition to MAX_GROWTH."""
MAX_GROWTH = 20 * MEGA
MAX_SILENCE_S = 120.0
"""Longest time without a correct answer to any of the good clients, in seconds. It only guards against hanging."""
SAMPLE_S = 1.0
GOOD, HOSTILE = 3, 4
"""Number of clients of each kind."""


class Attacks:
    """What hostile clients do, by name."""

    def __init__(self, server: Server, web: str, *, seed: int) -> None:
        """Args:
        web: URL of a web server with hostile files.
        """
        self._server = server
        self._web = web
        self._random = random.Random(seed)
        self.kinds: dict[str, Callable[[], object]] = {
            "heads without an end": lambda: self._send(self._one_of(HEADS)),
            "requests without a key": lambda: self._send(self._one_of(REQUESTS)),
            "pipelined requests": lambda: self._send(head("/v1/models", method="GET") * 200_000),
            "idle connections": self._idle,
            "JSON that is dear to parse": lambda: self._post(self._one_of(JSON), CHAT),
            "forms": self._form,
            "compressed downloads": lambda: ask(server, *[f"{web}/bomb"] * 4),
            "endless downloads": lambda: ask(server, f"{web}/{self._random.choice(['endless', 'slow'])}"),
            "silent names": lambda: ask(server, *[f"http://{self._random.random()}{SILENT}/" for _ in range(16)]),
            "large pictures": lambda: ask(server, *[data_uri(LARGE_PNG)] * 2, ocr={"mode": "tiny"}),
            "overlays of large pages": self._overlay,
            "full queues": lambda: together(4, lambda _: ask(server, *[WHITE] * 64, ocr={"mode": "tiny"})),
            "clients that leave": self._leave,
            "batches": self._batch,
            "killed decoders": self._kill,
        }

    def one(self) -> str:
        """Do something, and return its name."""
        name = self._one_of({name: name for name in self.kinds})
        with suppress(httpx.TransportError, OSError):
            self.kinds[name]()
        return name

    def _one_of(self, table: dict[str, T]) -> T:
        return table[self._random.choice(sorted(table))]

    def _send(self, data: bytes) -> None:
        with Connection(self._server) as attacker:
            attacker.send(data, seconds=1)

    def _post(self, body: bytes, path: str, **headers: str) -> httpx.Response:
        return httpx.post(self._server.url + path, content=body, headers=bearer(OTHER_KEY) | headers, timeout=120)

    def _idle(self) -> None:
        connections = [Connection(self._server) for _ in range(100)]
        for each in connections:
            each.send(b"GET / HTTP/1.1\r\nx: " + b"x" * 10_000)
        time.sleep(self._random.random())
        for each in connections:
            each.socket.close()

    def _form(self) -> None:
        body = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + b"x-" * MEGA + b"\r\n--b--\r\n"
        charset = self._random.choice(["punycode", "undefined", "utf-8"])
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        self._post(body, "/v1/files", **{"content-type": kind})

    def _overlay(self) -> None:
        document = data_uri(pdfs.pdf(*[pdfs.filled(1, 0, 0)] * 2), "application/pdf")
        ask(self._server, document, path="/v1/ocr", output="overlay", dpi=300, mode="tiny")

    def _leave(self) -> None:
        request = post(b'{"model":"m"}'.ljust(MEGA), key=OTHER_KEY)
        with Connection(self._server) as attacker:
            attacker.send(request[: self._random.randrange(1, len(request))])

    def _batch(self) -> None:
        kind = self._random.choice(sorted(JSON))
        lines = b'{"custom_id":"x","method":"POST","url":"%b","body":%b}\n' % (CHAT.encode(), JSON[kind])
        lines += b"".join(batch_line(str(number), chat()) for number in range(20))
        file = upload(self._server, lines, key=OTHER_KEY).json().get("id")
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        url, headers = self._server.url, bearer(OTHER_KEY)
        made = httpx.post(f"{url}/v1/batches", json=body, headers=headers, timeout=120).json().get("id")
        time.sleep(2)
        httpx.post(f"{url}/v1/batches/{made}/cancel", headers=headers, timeout=120)
        httpx.delete(f"{url}/v1/files/{file}", headers=headers, timeout=120)

    def _kill(self) -> None:
        for decoder in self._server.decoders()[:1]:
            with suppress(psutil.NoSuchProcess):
                decoder.kill()


@dataclass
class Soak:
    """One run, and what was measured."""

    server: Server
    good: GoodClients
    seconds: float
    attacks: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)
    """Time since the start in seconds, and resident memory of the server in bytes."""
    errors: list[str] = field(default_factory=list)

    def run(self, web: str, hostile: int) -> None:
        started, done = time.monotonic(), threading.Event()

        def attack(number: int) -> None:
            attacks = Attacks(self.server, web, seed=number)
            while not done.is_set():
                try:
                    self.attacks[attacks.one()] += 1
                except Exception as error:
                    self.errors.append(f"an attack: {error!r}")
                    done.wait(1)

        threads = [threading.Thread(target=attack, args=(number,), daemon=True) for number in range(hostile)]
        for thread in threads:
            thread.start()
        answered, answered_at = 0, started
        while (now := time.monotonic()) - started < self.seconds and self.server.is_alive():
            self.memory.append((now - started, self.server.memory()))
            if self.good.answered > answered:
                answered, answered_at = self.good.answered, now
            if now - answered_at > MAX_SILENCE_S:
                self.errors.append(f"no good client was answered for {MAX_SILENCE_S:g} s")
                break
            time.sleep(SAMPLE_S)
        done.set()
        for thread in threads:
            thread.join(150)

    def thirds(self) -> list[list[int]]:
        """Return the memory of the three thirds of the time after the warm-up."""
        start = WARM_UP * self.seconds
        length = (self.seconds - start) / 3
        return [
            [size for at, size in self.memory if start + third * length <= at < start + (third + 1) * length]
            for third in range(3)
        ]

    def check(self, stall: float) -> None:
        """Add to `errors` what must not be.

        Args:
            stall: Longest stall of the event loop in seconds.
        """
        first, *_, last = map(statistics.median, self.thirds())
        if last > GROWTH * first + MAX_GROWTH:
            self.errors.append(f"memory grew from {first / MEGA:.0f} to {last / MEGA:.0f} MB")
        if stall > MAX_STALL_S:
            self.errors.append(f"the event loop stalled for {stall:.2f} s")
        self.errors += [f"a wrong answer: {each}" for each in self.good.wrong[:5]]

    def table(self, stall: float, after: int) -> str:
        """Return the figures as a markdown table.

        Args:
            stall: Longest stall of the event loop in seconds.
            after: Resident memory in bytes after the attacks.
        """
        rows = {
            "attacks": ", ".join(f"{count} {name}" for name, count in sorted(self.attacks.items())),
            "answers to good clients": f"{self.good.answered:,} right, {len(self.good.wrong)} wrong, "
            f"{self.good.refused:,} refused with `Retry-After`; the slowest took {self.good.slowest:.1f} s",
            "memory of the server in the three thirds, median (most)": ", ".join(
                f"{statistics.median(third) / MEGA:.0f} ({max(third) / MEGA:.0f})" for third in self.thirds()
            )
            + f" MB; {after / MEGA:.0f} MB afterwards",
            "longest stall of the event loop": f"{1000 * stall:.0f} ms",
            "tracebacks in the log": str(self.server.log.count("Traceback")),
        }
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join([f"| {self.seconds / 60:g} minutes | result |", "|---|---|", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--good", type=int, default=GOOD, help="number of good clients")
    parser.add_argument("--hostile", type=int, default=HOSTILE, help="number of hostile clients")
    arguments = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    spec = Spec({**KEYED, "MEMORY_BUDGET_MB": 600, "ALLOW_PRIVATE_URLS": True, "FETCH_TIMEOUT": 5}, seconds_a_page=0.01)
    with tempfile.TemporaryDirectory() as folder, files_server() as web, Server(Path(folder), spec) as server:
        warmed_up(server, KEY)
        server.state.longest_stall = 0.0
        try:
            with good_clients(server, KEY, count=arguments.good) as good:
                soak = Soak(server, good, 60 * arguments.minutes)
                soak.run(web, arguments.hostile)
        except AssertionError as error:
            print(error, file=sys.stderr)
        stall = server.state.longest_stall
        soak.check(stall)
        if server.is_alive():
            server.trim()
            print(soak.table(stall, server.memory()))
        else:
            soak.errors.append(f"the server died:\n{server.log[-3000:]}")
        for traceback in server.log.split("Traceback")[1:4]:
            print(f"a traceback in the log:{traceback[:3000]}", file=sys.stderr)
        for error in soak.errors:
            print(f"error: {error}", file=sys.stderr)
        return 1 if soak.errors else 0


if __name__ == "__main__":
    sys.exit(main())
