"""Starts the server that is attacked, and measures what an attack costs it: memory, and stalls of its event loop."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from tests.attack.fake_server import Spec, State, colour_text, run
from tests.live.live_server import free_port
from tests.ocr_server.conftest import CHAT, chat, message, picture, png
from tests.processes import descendants

MEGA = 1_000_000
KEY = "a-good-key"
OTHER_KEY = "another-key"
KEYED = {"API_KEYS": f"good:{KEY},bad:{OTHER_KEY}"}
MAX_STALL_S = 0.25
"""Longest stall of the event loop that an attack may cause, in seconds; see `Stalls.measure`."""
MAX_HELD_WITHOUT_KEY = 10 * MEGA
"""Most memory that a request without a key may take, in bytes."""
WAIT_S = 120.0
"""Limit for waits. It only guards against hanging."""

logger = logging.getLogger(__name__)
_processes = multiprocessing.get_context("forkserver")


class Server:
    """A server process. Use it as a context manager."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = State(folder / "state")
        _processes.set_forkserver_preload(["tests.attack.fake_server"])  # so that torch is imported once
        self._process = _processes.Process(target=run, args=(folder, self.port, spec))

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        self._process.start()

        def ready() -> bool:
            assert self._process.is_alive(), f"the server has ended:\n{self.log}"
            with suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/livez", timeout=5).status_code == 200
            return False

        wait_until("the server answers", ready)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process.is_alive():
            decoders = self.decoders()
            psutil.Process(self.pid).send_signal(number)
            self._process.join(20)
            self._process.kill()
            self._process.join()
            for decoder in decoders:
                with suppress(psutil.NoSuchProcess):
                    decoder.kill()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def decoders(self) -> list[psutil.Process]:
        """Return the decoder processes."""
        return list(descendants(self.pid, "ocr_server.intake.worker"))

    def memory(self) -> int:
        """Return the resident memory of the server process in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def trim(self) -> None:
        """Make the server give back free memory: what an earlier attack needed would hide what the next one needs."""
        trims = self.state.trims
        psutil.Process(self.pid).send_signal(signal.SIGUSR1)
        wait_until("the server gives back memory", lambda: self.state.trims > trims)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = httpx.get(f"{self.url}/metrics", headers=bearer(KEY), timeout=WAIT_S).text
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert values, f"/metrics has no {name}"
        return sum(map(float, values))

    @contextmanager
    def watched(self) -> Iterator[Cost]:
        """Measure memory and stalls in the block. The result is complete when the block has ended."""
        self.trim()
        cost = Cost(before=self.memory())
        decoders = {decoder.pid: decoder.memory_info().rss for decoder in self.decoders()}
        for pid in (self.pid, *decoders):
            _reset_peak(pid)
        self.state.longest_stall = 0.0
        yield cost
        assert self.is_alive(), f"the attack ended the server:\n{self.log[-3000:]}"
        cost.peak = _peak(self.pid)
        cost.held_by_decoders = sum(
            max(0, _peak(decoder.pid) - decoders.get(decoder.pid, 0)) for decoder in self.decoders()
        )
        cost.stall = self.state.longest_stall
        logger.info("%s: %s", os.environ.get("PYTEST_CURRENT_TEST", "attack").rpartition("::")[2], cost)


@dataclass
class Cost:
    """What an attack cost the server."""

    before: int
    """Resident memory before, bytes."""
    peak: int = 0
    """Most resident memory during the attack, bytes."""
    held_by_decoders: int = 0
    """Bytes by which the memory of all decoder processes that are left grew at most, including shared memory."""
    stall: float = 0.0
    """Longest stall of the event loop in seconds."""

    @property
    def held(self) -> int:
        """Bytes by which the memory grew at most."""
        return max(0, self.peak - self.before)

    def check(self, *, most: float, sent: int = 0, ratio: float = 0.0, stall: float = MAX_STALL_S) -> None:
        """Fail if more than `most` bytes were held, or more than `ratio` for each that was sent, or the loop stalled.

        Args:
            most: Bytes.
            sent: Number of bytes that the attacker sent.
            ratio: Bytes that may be held for each byte that was sent; 0 if that is not limited.
            stall: Seconds.
        """
        assert self.held <= most, f"{self.held / MEGA:.1f} MB held, for {sent / MEGA:.1f} MB sent"
        if ratio:
            assert self.held <= ratio * sent + MAX_HELD_WITHOUT_KEY, f"{self.held / MEGA:.1f} MB for {sent / MEGA:.1f}"
        assert self.stall <= stall, f"the event loop stalled for {self.stall:.2f} s"

    def __str__(self) -> str:
        held = f"{self.held / MEGA:.1f} MB held, by decoders {self.held_by_decoders / MEGA:.1f}"
        return f"{held}, longest stall {1000 * self.stall:.0f} ms"


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def wait_until(what: str, condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Wait until `condition()` is true. Fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def head(path: str = CHAT, *, method: str = "POST", key: str = "", **fields: object) -> bytes:
    """Return the head of a request. Underscores in the names of fields stand for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    lines += [f"authorization: Bearer {key}"] if key else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def post(body: bytes, path: str = CHAT, *, key: str = "", **fields: object) -> bytes:
    """Return a POST request as bytes."""
    return head(path, key=key, content_length=len(body), **fields) + body


class Connection:
    """A plain TCP connection, for what HTTP clients do not do."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(server.address, timeout=WAIT_S)
        self.sent = 0

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes, *, seconds: float = WAIT_S) -> int:
        """Send as much as the server takes, until it closes the connection or takes nothing for `seconds`."""
        self.socket.settimeout(seconds)
        view, before = memoryview(data), self.sent
        with suppress(OSError):
            while view:
                done = self.socket.send(view[:65_536])
                view, self.sent = view[done:], self.sent + done
        return self.sent - before

    def status(self) -> int:
        """Return the status of the answer; 0 if the connection was closed without one."""
        self.socket.settimeout(WAIT_S)
        read = b""
        with suppress(ConnectionError):
            while b"\r\n" not in read and (piece := self.socket.recv(4096)):
                read += piece
        found = re.match(rb"HTTP/1\.1 (\d{3})", read)
        return int(found[1]) if found else 0


class GoodClient:
    """A client that asks for pages of random colours, one after the other, and checks the answers."""

    def __init__(self, server: Server, key: str = "", *, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._http = httpx.Client(base_url=server.url, headers=bearer(key), timeout=WAIT_S)
        self.answered = self.refused = 0
        self.wrong: list[str] = []
        self.slowest = 0.0
        """Longest time that a correct answer took, in seconds."""

    def ask(self) -> httpx.Response:
        colour = tuple(self._random.randrange(256) for _ in range(3))
        body = chat(message(picture(png(32, 32, colour)), "Free OCR."), ocr={"mode": "tiny"})  # type: ignore[arg-type]
        started = time.monotonic()
        response = self._http.post(CHAT, json=body)
        if response.status_code in (429, 503):
            assert int(response.headers["retry-after"]) > 0
            self.refused += 1
        elif response.status_code == 200 and text_of(response) == colour_text(colour):
            self.answered += 1
            self.slowest = max(self.slowest, time.monotonic() - started)
        else:
            self.wrong.append(f"{response.status_code} {response.text[:300]}")
        return response

    def close(self) -> None:
        self._http.close()


@dataclass
class GoodClients:
    clients: list[GoodClient] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(client.answered for client in self.clients)

    @property
    def refused(self) -> int:
        return sum(client.refused for client in self.clients)

    @property
    def wrong(self) -> list[str]:
        return [each for client in self.clients for each in client.wrong]

    @property
    def slowest(self) -> float:
        return max(client.slowest for client in self.clients)


@contextmanager
def good_clients(server: Server, key: str = "", *, count: int = 1, pause: float = 0.05) -> Iterator[GoodClients]:
    """Have good clients ask in threads during the block. Fails afterwards unless each got right answers and no others.

    Args:
        key: Their API key.
        count: Number of clients.
        pause: Seconds between an answer and the next request.
    """
    done, all_ = threading.Event(), GoodClients([GoodClient(server, key, seed=number) for number in range(count)])

    def ask(client: GoodClient) -> None:
        while not done.is_set():
            try:
                client.ask()
            except Exception as error:
                client.wrong.append(repr(error))
            done.wait(pause)

    threads = [threading.Thread(target=ask, args=(client,), daemon=True) for client in all_.clients]
    for thread in threads:
        thread.start()
    before = -1
    try:
        yield all_
        before = all_.answered
        wait_until("good clients are answered after the attack", lambda: bool(all_.wrong) or all_.answered > before)
    finally:
        done.set()
        for thread in threads:
            thread.join(WAIT_S)
        for client in all_.clients:
            client.close()
    assert not all_.wrong, all_.wrong[:3]


def text_of(response: httpx.Response) -> str:
    """Return the text of a chat completion."""
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def error_code(response: httpx.Response) -> str:
    """Return the code of an error body."""
    code: str = response.json()["error"]["code"]
    return code


def png_bytes(width: int, height: int, colour: tuple[int, int, int] = (255, 255, 255)) -> bytes:
    """Return a PNG of one colour. Large ones compress to a few bytes for each thousand pixels."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG", compress_level=9)
    return file.getvalue()


def upload(server: Server, data: bytes, *, key: str = KEY, name: str = "requests.jsonl") -> httpx.Response:
    """Upload the input file of a batch."""
    return httpx.post(
        f"{server.url}/v1/files",
        files={"file": (name, data)},
        data={"purpose": "batch"},
        headers=bearer(key),
        timeout=WAIT_S,
    )


def batch(server: Server, data: bytes, *, key: str = KEY, endpoint: str = CHAT) -> dict[str, Any]:
    """Upload a file, create a batch of it, wait for its end, and return it."""
    body = {"input_file_id": upload(server, data, key=key).json()["id"], "endpoint": endpoint}
    made = httpx.post(
        f"{server.url}/v1/batches", json=body | {"completion_window": "24h"}, headers=bearer(key), timeout=WAIT_S
    ).json()
    found: dict[str, Any] = {}

    def ended() -> bool:
        nonlocal found
        found = httpx.get(f"{server.url}/v1/batches/{made['id']}", headers=bearer(key), timeout=WAIT_S).json()
        return found["status"] in ("completed", "failed", "expired", "cancelled")

    wait_until("the batch has ended", ended)
    return found


def batch_lines(server: Server, ended: dict[str, Any], *, key: str = KEY) -> dict[str, dict[str, Any]]:
    """Return the answers and errors of a batch by their custom_id, and check that each occurs once."""
    lines: dict[str, dict[str, Any]] = {}
    for file_id in filter(None, (ended["output_file_id"], ended["error_file_id"])):
        content = httpx.get(f"{server.url}/v1/files/{file_id}/content", headers=bearer(key), timeout=WAIT_S).text
        for line in map(json.loads, content.splitlines()):
            assert line["custom_id"] not in lines
            lines[line["custom_id"]] = line
    return lines


def batch_line(name: str, body: dict[str, Any]) -> bytes:
    """Return a line of a JSONL file."""
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def together(count: int, attack: Callable[[int], Any]) -> list[Any]:
    """Call `attack(number)` in `count` threads at the same time, and return the results in order."""
    results: list[Any] = [None] * count

    def call(number: int) -> None:
        results[number] = attack(number)

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    return results
