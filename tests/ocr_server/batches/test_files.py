"""Files with the official SDK, and invalid or malicious uploads."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from config import ROOT, Settings
from ocr_server.batches.database import files
from ocr_server.errors import Unavailable
from tests.ocr_server.batches.conftest import Serve, Served, jsonl, refusal, request
from tests.ocr_server.conftest import FakeEngine, error_of, never, says

DATA = jsonl([request("a")])


async def upload(served: Served, data: bytes = DATA, name: str = "a.jsonl", **more: Any) -> Any:
    return await served.api.files.create(file=(name, data), purpose="batch", **more)


async def test_the_content_of_a_file_is_unchanged(served: Served) -> None:
    data = bytes(range(256)) * 10_000
    file = await upload(served, b"{" + data, "some.jsonl")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(data) + 1, "some.jsonl", "batch")
    assert file.status == "processed"
    assert file.expires_at == file.created_at + 30 * 86_400
    assert await served.api.files.retrieve(file.id) == file
    assert (await served.api.files.content(file.id)).content == b"{" + data


async def test_lists_have_a_purpose_an_order_and_a_start(served: Served) -> None:
    made = [(await upload(served)).id for _ in range(3)]
    done = await served.ended(await served.batch([request("a")]))
    assert done.status == "completed"
    everything = [file.id async for file in served.api.files.list(limit=2)]
    assert everything == [done.output_file_id, done.input_file_id, *made[::-1]]
    assert [file.id async for file in served.api.files.list(order="asc", limit=1)] == everything[::-1]
    assert [file.id async for file in served.api.files.list(purpose="batch_output")] == [done.output_file_id]
    assert [file.id async for file in served.api.files.list(after=made[1])] == [made[0]]
    output = await served.api.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{done.id}_output.jsonl")


async def test_a_deleted_file_is_gone(served: Served, tmp_path: Path) -> None:
    file = await upload(served)
    assert (tmp_path / "files" / file.id).read_bytes() == DATA
    deleted = await served.api.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    assert not (tmp_path / "files" / file.id).exists()
    for attempt in (
        served.api.files.retrieve(file.id),
        served.api.files.content(file.id),
        served.api.files.delete(file.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await attempt
        assert refusal(caught.value) == (404, "file_id", "file_not_found")


async def test_the_input_of_a_batch_cannot_be_deleted_before_its_end(serve: Serve) -> None:
    async with serve(FakeEngine(never)) as served:
        batch = await served.batch([request("a")])
        with pytest.raises(openai.BadRequestError) as caught:
            await served.api.files.delete(batch.input_file_id)
        assert refusal(caught.value) == (400, "file_id", "file_in_use")
        await served.ended(await served.api.batches.cancel(batch.id))
        await served.api.files.delete(batch.input_file_id)


async def test_files_expire(served: Served, tmp_path: Path) -> None:
    file = await upload(served, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    kept = await upload(served)
    await served.change(files, file.id, expires_at=int(time.time()))
    with pytest.raises(openai.NotFoundError):
        await served.api.files.retrieve(file.id)
    await served.app.state.batches.files.sweep()
    assert [path.name for path in (tmp_path / "files").iterdir()] == [kept.id]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "ocr", "expiry": "0"}, "expiry"),
        ({"purpose": "ocr", "expiry": "721"}, "expiry"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "expires_after[seconds]",
        ),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 5000},
            "expires_after[seconds]",
        ),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
    ],
)
async def test_errors_name_the_field(served: Served, fields: dict[str, str], param: str) -> None:
    response = await served.http.post("/v1/files", data=fields, files={"file": DATA})
    assert error_of(response, 400)["param"] == param


async def test_requests_without_a_file_are_refused(served: Served) -> None:
    assert error_of(await served.http.post("/v1/files", json={}), 400)["param"] == "file"
    assert error_of(await served.http.post("/v1/files", files={"data": DATA}), 400)["param"] == "file"
    assert error_of(await served.http.post("/v1/files", data={"purpose": "batch"}, files={"file": b""}), 400)
    punycode = {"content-type": "multipart/form-data; boundary=b; charset=punycode"}
    error = error_of(await served.http.post("/v1/files", content=b"--b--\r\n", headers=punycode), 400)
    assert error["code"] == "unsupported_charset"
    boundless = {"content-type": "multipart/form-data"}
    assert error_of(await served.http.post("/v1/files", content=b"x", headers=boundless), 400)


async def test_the_filename_is_used_for_display_only(served: Served, tmp_path: Path) -> None:
    file = await upload(served, name="../../etc/passwd\u202e" + "x" * 500)
    assert file.filename == ("passwd" + "x" * 500)[:255]
    assert not (tmp_path.parent / "passwd").exists()
    assert [path.name for path in (tmp_path / "files").iterdir()] == [file.id]
    odd = await upload(served, name='a"\r\nx: y.jsonl')
    response = await served.http.get(f"/v1/files/{odd.id}/content")
    assert response.status_code == 200
    assert "x" not in response.headers


@pytest.mark.parametrize("file_id", ["..", "%2e%2e%2fbatches.db", "file-1", "a" * 5000, "a%00b"])
async def test_invalid_ids_are_not_found(served: Served, file_id: str) -> None:
    await upload(served)
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{file_id}"):
        assert error_of(await served.http.get(path), 404)


async def test_the_stored_bytes_are_limited(serve: Serve) -> None:
    async with serve(MAX_FILE_MB=1, MAX_STORED_MB=2, MAX_BODY_MB=1) as served:
        with pytest.raises(openai.APIStatusError) as caught:
            await upload(served, b"{" * 1_000_001)
        assert refusal(caught.value) == (413, "file", "too_large")
        with pytest.raises(openai.APIStatusError) as body:
            await upload(served, b"{" * 3_000_000)
        assert refusal(body.value)[::2] == (413, "body_too_large")
        first = await upload(served, b"{" * 1_000_000)
        with pytest.raises(openai.APIStatusError) as full:
            await upload(served, b"{" * 1_000_000)
        assert refusal(full.value) == (413, "file", "storage_full")
        await served.api.files.delete(first.id)
        await upload(served, b"{" * 1_000_000)


@pytest.mark.slow
async def test_small_files_count_with_a_minimum(serve: Serve) -> None:
    async with serve(MAX_STORED_MB=1) as served:
        for _ in range(200):
            await upload(served)
        with pytest.raises(openai.APIStatusError) as full:
            await asyncio.gather(*(upload(served) for _ in range(50)))
        assert refusal(full.value) == (413, "file", "storage_full")


async def test_the_quota_of_a_client_does_not_affect_others(serve: Serve) -> None:
    async with serve(API_KEYS="alice:sk-a,bob:sk-b", MAX_STORED_MB_OF_CLIENT=1) as served:
        served.api = served.sdk("sk-a")
        await upload(served, b"{" * 900_000)
        with pytest.raises(openai.APIStatusError) as full:
            await upload(served, b"{" * 900_000)
        assert refusal(full.value) == (413, "file", "storage_full")
        served.api = served.sdk("sk-b")
        await upload(served, b"{" * 900_000)


async def test_no_key_can_fill_the_storage_by_default(serve: Serve) -> None:
    async with serve(API_KEYS="alice:sk-a,bob:sk-b", MAX_STORED_MB=2) as served:
        served.api = served.sdk("sk-a")
        await upload(served, b"{" * 900_000)
        with pytest.raises(openai.APIStatusError) as full:
            await upload(served, b"{" * 900_000)
        assert refusal(full.value) == (413, "file", "storage_full")
        served.api = served.sdk("sk-b")
        await upload(served, b"{" * 900_000)


async def test_answers_count_as_stored_bytes(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose answers exceed the quota ends with errors that say so."""
    monkeypatch.setattr("ocr_server.batches.runner.POLL_SECONDS", 0.02)
    async with serve(FakeEngine(says("x" * 400_000)), MAX_STORED_MB=1, BATCH_CONCURRENCY=1) as served:
        done = await served.ended(await served.batch([request(str(number)) for number in range(60)]))
        errors = await served.lines(done.error_file_id)
        assert errors
        assert {line["error"]["code"] for line in errors.values()} == {"storage_full"}
        assert done.request_counts.completed + done.request_counts.failed == 60


async def test_a_failed_upload_leaves_no_file(served: Served, tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("the disk is full")

    with pytest.raises(Unavailable, match="storage"):
        await served.app.state.batches.files.upload(
            "anonymous",
            iter(lambda: Broken().read(), b""),
            filename="a",
            kind="jsonl",
            size=5,
            seconds=None,
        )
    assert list((tmp_path / "files").iterdir()) == []
    assert [file async for file in served.api.files.list()] == []


def test_the_defaults_are_in_the_folder_of_the_project(settings: Settings) -> None:
    plain = Settings(MODEL_PATH=settings.MODEL_PATH)
    assert plain.BATCHES
    assert plain.database_url == f"sqlite:///{ROOT}/data/batches.db"
    assert plain.storage_url == f"{ROOT}/data/files"


async def test_concurrent_uploads(served: Served) -> None:
    made = await asyncio.gather(*(upload(served, DATA + b" " * number) for number in range(10)))
    assert sorted(file.bytes for file in made) == [len(DATA) + number for number in range(10)]
