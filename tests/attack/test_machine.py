"""Trouble of the machine: it is answered with 503 and `Retry-After`, never taken for an error of the request."""

from __future__ import annotations

import base64
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.attack.fake_server import Spec, colour_text
from tests.attack.harness import (
    WAIT_S,
    GoodClient,
    Server,
    batch,
    batch_line,
    batch_lines,
    good_clients,
    upload,
    wait_until,
)
from tests.ocr_server.conftest import CHAT, chat, message, picture, png
from tests.ocr_server.intake import pdfs

PDF = "data:application/pdf;base64," + base64.b64encode(pdfs.pdf(pdfs.filled(1, 0, 0))).decode()
DAY = 86_400.0


def is_excused(response: httpx.Response) -> bool:
    """Return whether a request was refused for want of resources."""
    assert response.status_code in (429, 503), f"{response.status_code} {response.text}"
    assert int(response.headers["retry-after"]) > 0
    return True


class TestDescriptors:
    """The process has no file descriptors left, but for the connections that are open already."""

    @contextmanager
    def _none_left(self, server: Server) -> Iterator[None]:
        process = psutil.Process(server.pid)
        before = process.rlimit(resource.RLIMIT_NOFILE)
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), before[1]))
        try:
            yield
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, before)

    @pytest.mark.parametrize("kind", ["picture", "PDF", "URL", "upload", "list"])
    def test_requests(self, start: Callable[..., Server], files: str, kind: str) -> None:
        server = start(Spec({"ALLOW_PRIVATE_URLS": True}))
        for decoder in server.decoders():
            decoder.kill()  # so that one has to be started
        bodies = {
            "picture": chat(),
            "PDF": chat(message(picture(PDF))),
            "URL": chat(message(picture(f"{files}/picture"))),
        }

        def ask(client: httpx.Client) -> httpx.Response:
            if kind in bodies:
                return client.post(CHAT, json=bodies[kind])
            if kind == "list":
                return client.get("/v1/files")
            return client.post("/v1/files", files={"file": ("a", b"{}\n" * 500_000)}, data={"purpose": "batch"})

        with httpx.Client(base_url=server.url, timeout=WAIT_S) as client:
            client.get("/livez")
            with self._none_left(server):
                answers = [ask(client) for _ in range(3)]
            later = ask(client)
        for answer in answers:
            assert answer.status_code == 200 or is_excused(answer)
        assert later.status_code == 200, later.text
        assert "Traceback" not in server.log


class TestFullDisk:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        """A disk of 3 MB."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
        if mounted.returncode:
            pytest.skip("only root can mount a small disk")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_storage(self, start: Callable[..., Server], disk: Path) -> None:
        server = start(Spec({"STORAGE_URL": str(disk / "files")}))
        line = batch_line("a", chat())
        assert is_excused(upload(server, line + b"\n" * 5_000_000, key=""))
        assert httpx.get(f"{server.url}/v1/files").json()["data"] == []
        assert [file for file in disk.rglob("*") if file.is_file()] == []
        assert batch(server, line, key="")["request_counts"]["completed"] == 1

    def test_answers_of_a_batch(self, start: Callable[..., Server], disk: Path) -> None:
        """They are kept until there is room for the file."""
        server = start(Spec({"STORAGE_URL": str(disk / "files")}, seconds_a_page=0.5))
        filler = disk / "filler"
        threading.Timer(0.7, lambda: _fill(filler)).start()
        threading.Timer(4, lambda: filler.unlink()).start()
        ended = batch(server, b"".join(batch_line(str(number), chat()) for number in range(100)), key="")
        assert ended["status"] == "completed"
        assert ended["request_counts"]["completed"] == 100

    def test_database(self, start: Callable[..., Server], disk: Path) -> None:
        server = start(Spec({"DATABASE_URL": f"sqlite:///{disk}/batches.db"}))
        filler = disk / "filler"
        _fill(filler)
        for _ in range(3):
            answer = upload(server, batch_line("a", chat()), key="")
            assert answer.status_code == 200 or is_excused(answer)
        client = GoodClient(server)
        assert client.ask().status_code == 200
        filler.unlink()
        assert batch(server, batch_line("a", chat()), key="")["request_counts"]["completed"] == 1


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as opened, suppress(OSError):
        while opened.write(bytes(65_536)):
            pass


class TestDecoders:
    def test_stopped_decoders(self, start: Callable[..., Server]) -> None:
        """The machine does not let them run. This is not the picture's fault."""
        server = start(Spec({"DECODE_TIMEOUT": 2}))
        for decoder in server.decoders():
            decoder.suspend()
        client = GoodClient(server)
        answer = client.ask()
        assert answer.status_code == 200 or is_excused(answer)
        assert client.ask().status_code == 200
        assert not client.wrong

    def test_killed_decoders_of_a_batch(self, start: Callable[..., Server]) -> None:
        """As by the kernel when memory is short. No request fails, and none is answered twice."""
        server = start(Spec())
        colours = {str(number): (number, 255 - number, 7) for number in range(120)}
        lines = b"".join(
            batch_line(name, chat(message(picture(png(400, 400, colour)), "Free OCR."), ocr={"mode": "tiny"}))
            for name, colour in colours.items()
        )
        done = threading.Event()

        def kill() -> None:
            while not done.wait(0.2):
                for decoder in server.decoders()[:1]:
                    with suppress(psutil.NoSuchProcess):
                        decoder.kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        threading.Timer(5, done.set).start()
        ended = batch(server, lines, key="")
        done.set()
        found = batch_lines(server, ended, key="")
        assert {name: _text(line) for name, line in found.items()} == {
            name: colour_text(colour) for name, colour in colours.items()
        }


def _text(line: dict[str, Any]) -> str:
    response = line["response"]
    return str(response["body"]["choices"][0]["message"]["content"]) if response else str(line["error"])


class TestClock:
    def test_jumps(self, start: Callable[..., Server]) -> None:
        """Nothing expires because the clock was wrong for a moment; a batch ends, and requests are answered."""
        server = start(Spec(seconds_a_page=0.1))
        kept = upload(server, batch_line("a", chat()), key="").json()["id"]
        with good_clients(server):
            jumps = (400 * DAY, -400 * DAY, 0.0)
            done = threading.Event()

            def jump() -> None:
                while not done.is_set():
                    for server.state.clock_is_ahead in jumps:
                        done.wait(0.5)

            threading.Thread(target=jump, daemon=True).start()
            lines = b"".join(batch_line(str(number), chat()) for number in range(200))
            ended = batch(server, lines, key="")
            done.set()
        assert ended["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
        assert httpx.get(f"{server.url}/v1/files/{kept}").status_code == 200
        assert "Traceback" not in server.log


def test_a_killed_server_in_a_batch(tmp_path: Path) -> None:
    """The next one goes on with the batch, and each request is answered once."""
    lines = b"".join(batch_line(str(number), chat()) for number in range(200))
    spec = Spec({"BATCH_LEASE": 1}, seconds_a_page=0.2)
    with Server(tmp_path, spec) as server:
        file = upload(server, lines, key="").json()["id"]
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        made = httpx.post(f"{server.url}/v1/batches", json=body).json()["id"]
        wait_until("the batch makes progress", lambda: _batch(server, made)["request_counts"]["completed"] > 0)
        server.stop(signal.SIGKILL)
    with Server(tmp_path, spec) as server:
        wait_until("the batch has ended", lambda: _batch(server, made)["status"] == "completed")
        ended = _batch(server, made)
        assert ended["request_counts"]["completed"] == 200
        assert len(batch_lines(server, ended, key="")) == 200


def _batch(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/v1/batches/{name}", timeout=WAIT_S).json()
    return found
