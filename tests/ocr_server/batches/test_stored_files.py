"""Where files and the database are stored: who can read them, what crashes leave, and trouble of the machine."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import openai
import pytest

from ocr_server.batches.database import files
from ocr_server.batches.files import DAY, UPLOAD_SECONDS, Files
from ocr_server.batches.storage import Storage
from ocr_server.errors import NotFound, Unavailable
from tests.ocr_server.batches.conftest import Serve, Served, jsonl, refusal, request
from tests.ocr_server.batches.test_documents import picture_file, zipped
from tests.ocr_server.conftest import FakeEngine, error_of, never

DATA = jsonl([request("a")])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): mode(path) for path in folder.rglob("*")}


class TestModes:
    async def test_only_the_server_can_read_what_is_stored(self, serve: Serve, tmp_path: Path) -> None:
        data = tmp_path / "deep" / "data"
        where = {"DATABASE_URL": f"sqlite:///{data}/batches.db", "STORAGE_URL": str(data / "files")}
        before = os.umask(0)
        try:
            async with serve(**where) as served:
                await served.ended(await served.batch([request("a")]))
                found = modes(tmp_path / "deep")
        finally:
            os.umask(before)
        assert {name for name, mode in found.items() if mode == 0o700} == {"data", "data/files"}
        assert {mode for name, mode in found.items() if name not in ("data", "data/files")} == {0o600}
        assert {"data/batches.db", "data/batches.db-wal", "data/batches.db-shm"} <= found.keys()
        assert mode(tmp_path / "deep") == 0o700

    async def test_what_others_could_read_is_repaired_at_the_start(self, serve: Serve, tmp_path: Path) -> None:
        data = tmp_path / "data"
        where = {"DATABASE_URL": f"sqlite:///{data}/batches.db", "STORAGE_URL": str(data / "files")}
        async with serve(**where) as served:
            batch = await served.ended(await served.batch([request("a")]))
        with closing(sqlite3.connect(data / "batches.db")) as other:  # it keeps the log files
            other.execute("SELECT * FROM files").fetchall()
            for path in (data, data / "files"):
                path.chmod(0o755)
            for path in data.rglob("*.*"):
                path.chmod(0o644)
            for path in data.rglob("file-*"):
                path.chmod(0o666)
            async with serve(**where) as served:
                assert list(await served.lines(batch.output_file_id)) == ["a"]
                found = modes(data)
        assert set(found.values()) == {0o600, 0o700}
        assert mode(data) == 0o700

    async def test_a_folder_with_files_of_others_keeps_its_mode(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir(0o755)
        for path in (tmp_path, tmp_path / "files"):
            os.chmod(path, 0o755)
        others = [tmp_path / "files" / "letter.txt", tmp_path / "other.db"]
        for path in others:
            path.touch(0o644)
        async with serve() as served:
            await served.ended(await served.batch([request("a")]))
        assert [mode(path) for path in (tmp_path, tmp_path / "files", *others)] == [0o755, 0o755, 0o644, 0o644]
        assert {mode(path) for path in (tmp_path / "files").glob("file-*")} == {0o600}
        assert mode(tmp_path / "batches.db") == 0o600


class Time:
    now = 0.0


def files_of(served: Served, at: Time) -> Files:
    """The files as another server sees them, whose monotonic time is `at.now`."""
    state = served.app.state.batches
    return Files(
        state.database, state.files.storage, state.files._quota, days=30, clock=state.clock, monotonic=lambda: at.now
    )


class TestCrashes:
    async def test_an_upload_that_died_leaves_nothing(self, serve: Serve, tmp_path: Path) -> None:
        async with serve() as served:
            file = await served.api.files.create(file=("a", DATA), purpose="batch")
            await served.change(files, file.id, state="uploading")
        async with serve() as served:
            at = Time()
            swept = files_of(served, at)
            await swept.sweep()
            assert len(list((tmp_path / "files").iterdir())) == 1, "another server may be storing it now"
            at.now += UPLOAD_SECONDS
            await swept.sweep()
            assert list((tmp_path / "files").iterdir()) == []
            with closing(sqlite3.connect(tmp_path / "batches.db")) as database:
                assert database.execute("SELECT count(*) FROM files").fetchone() == (0,)

    async def test_an_upload_that_took_too_long_fails(self, served: Served, tmp_path: Path) -> None:
        """Another server has deleted it in the meantime."""
        at = Time()
        other = files_of(served, at)
        await other.sweep()
        loop = asyncio.get_running_loop()

        def slowly() -> Any:
            yield b"{"
            for _ in range(2):
                asyncio.run_coroutine_threadsafe(other.sweep(), loop).result()
                at.now += UPLOAD_SECONDS
            yield b"}"

        with pytest.raises(Unavailable):
            await served.app.state.batches.files.upload(
                "anonymous", slowly(), filename="a", kind="jsonl", size=2, seconds=None
            )
        assert list((tmp_path / "files").iterdir()) == []
        assert [file async for file in served.api.files.list()] == []

    async def test_bytes_without_a_file_are_deleted_when_any_file_would_have_expired(
        self, serve: Serve, tmp_path: Path
    ) -> None:
        async with serve(FakeEngine(never)) as served:
            batch = await served.batch([request("a")])
            folder = tmp_path / "files"
            names = {
                "orphan": f"file-{'a' * 32}",
                "young orphan": f"file-{'b' * 32}",
                "output of a batch that has ended": f"file-output-{'c' * 32}",
                "output of a batch in progress": f"file-output-{batch.id.removeprefix('batch_')}",
                "a file of somebody else": "letter.txt",
            }
            for name in names.values():
                (folder / name).touch()
            for path in folder.iterdir():
                if path.name != names["young orphan"]:
                    os.utime(path, (0, time.time() - 31 * DAY))
            await served.app.state.batches.files.sweep_orphans()
            left = {path.name for path in folder.iterdir()}
            assert {why for why, name in names.items() if name not in left} == {
                "orphan",
                "output of a batch that has ended",
            }
            assert batch.input_file_id in left


class Broken:
    """An open file with an error that appears after `after` calls, and can be repaired."""

    def __init__(self, file: BinaryIO, trouble: Callable[[], OSError | None]) -> None:
        self._file = file
        self._trouble = trouble

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _checked(self) -> None:
        if (error := self._trouble()) is not None:
            raise error

    def read(self, size: int = -1) -> bytes:
        self._checked()
        return self._file.read(size)

    def write(self, data: bytes) -> int:
        self._checked()
        return self._file.write(data)


class Trouble:
    """Errors of a storage."""

    def __init__(self, storage: Storage) -> None:
        self.opening: OSError | None = None
        self.using: OSError | None = None
        system, _ = storage._root()
        real = system.open

        def opened(path: str, how: str) -> Any:
            if self.opening is not None:
                raise self.opening
            return Broken(real(path, how), lambda: self.using)

        system.open = opened
        self._restore = lambda: setattr(system, "open", real)

    def end(self) -> None:
        self._restore()


@pytest.fixture
async def trouble(served: Served) -> Any:
    trouble = Trouble(served.app.state.batches.files.storage)
    yield trouble
    trouble.end()


CODES = [errno.ENOSPC, errno.EMFILE, errno.EIO]


class TestTrouble:
    @pytest.mark.parametrize("code", CODES)
    async def test_uploads_and_downloads_can_be_repeated(
        self, served: Served, trouble: Trouble, code: int, tmp_path: Path
    ) -> None:
        file = await served.api.files.create(file=("a", DATA), purpose="batch")
        for where in ("opening", "using"):
            setattr(trouble, where, OSError(code, "no luck"))
            for response in (
                await served.http.post("/v1/files", data={"purpose": "batch"}, files={"file": DATA}),
                await served.http.get(f"/v1/files/{file.id}/content"),
            ):
                assert error_of(response, 503)["code"] == "storage_unavailable"
                assert response.headers["retry-after"] == "5"
                assert "no luck" not in response.text
            setattr(trouble, where, None)
        assert (await served.api.files.content(file.id)).content == DATA
        assert [each.id async for each in served.api.files.list()] == [file.id]
        assert len(list((tmp_path / "files").iterdir())) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("where", ["opening", "using"])
    async def test_a_batch_waits_for_the_storage(
        self, served: Served, trouble: Trouble, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before its input is read, between its pictures and before its output is written."""
        monkeypatch.setattr("ocr_server.batches.runner.BACKOFF_SECONDS", 0.05)
        monkeypatch.setattr("ocr_server.batches.answer.MAX_WAIT_S", 0.05)
        content = zipped({f"{number}.png": picture_file() for number in range(3)})
        file = await served.api.files.create(file=("a.zip", content), purpose="batch")
        setattr(trouble, where, OSError(errno.ENOSPC, "full"))
        batch = await served.api.batches.create(
            input_file_id=file.id,
            endpoint="/v1/ocr",
            completion_window="24h",
            extra_body={"request": {"prompt": "Free OCR."}},
        )
        await asyncio.sleep(0.5)
        assert (await served.api.batches.retrieve(batch.id)).status == "validating"
        setattr(trouble, where, None)
        done = await served.ended(batch)
        assert (done.status, done.request_counts.completed) == ("completed", 3)

    @pytest.mark.slow
    async def test_a_request_is_tried_again_until_its_picture_can_be_read(
        self, served: Served, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ocr_server.batches.answer.MIN_WAIT_S", 0.01)
        monkeypatch.setattr("ocr_server.batches.answer.MAX_WAIT_S", 0.01)
        served.engine.reason = "The model is being loaded."
        content = zipped({f"{number}.png": picture_file() for number in range(3)})
        batch = await served.batch(content, endpoint="/v1/ocr", extra_body={"request": {"prompt": "Free OCR."}})
        async with asyncio.timeout(30):
            while (await served.api.batches.retrieve(batch.id)).status != "in_progress":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        trouble.using = OSError(errno.EIO, "no luck")
        served.engine.reason = None
        await asyncio.sleep(0.5)
        now = await served.api.batches.retrieve(batch.id)
        assert (now.status, now.request_counts.failed) == ("in_progress", 0)
        trouble.using = None
        assert (await served.ended(batch)).request_counts.completed == 3

    async def test_a_file_whose_content_is_gone(self, served: Served, tmp_path: Path) -> None:
        file = await served.api.files.create(file=("a", DATA), purpose="batch")
        (tmp_path / "files" / file.id).unlink()
        assert error_of(await served.http.get(f"/v1/files/{file.id}/content"), 404)["code"] == "file_gone"
        with pytest.raises(NotFound):
            Storage(str(tmp_path / "files")).open(file.id)
        await served.api.files.delete(file.id)

    async def test_a_database_that_cannot_be_written(self, served: Served, tmp_path: Path) -> None:
        """As when the disk is full: the size of the database is limited."""
        database = served.app.state.batches.database
        await database.run(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"))
        uploads = (served.api.files.create(file=("x" * 200, DATA), purpose="batch") for _ in range(50))
        with pytest.raises(openai.InternalServerError) as caught:
            await asyncio.gather(*uploads)
        assert refusal(caught.value)[::2] == (503, "database_unavailable")
        assert caught.value.response.headers["retry-after"] == "5"
        await database.run(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1000000"))
        done = await served.ended(await served.batch([request("a")]))
        assert done.status == "completed"


async def test_stored_content_is_not_cached(served: Served) -> None:
    done = await served.ended(await served.batch([request("a")]))
    for path in (
        f"/v1/files/{done.output_file_id}/content",
        f"/v1/files/{done.output_file_id}",
        "/v1/files",
        f"/v1/batches/{done.id}",
        "/v1/files/unknown",
    ):
        assert (await served.http.get(path)).headers["cache-control"] == "no-store"
