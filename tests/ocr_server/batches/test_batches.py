"""Batches with the official SDK: created, answered, listed, cancelled, expired."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from prometheus_client import REGISTRY

from ocr_server.batches.database import batches
from ocr_server.errors import EngineFailure, Unavailable
from ocr_server.reading.page import Page, PageDelta
from ocr_server.transport.json_limits import MAX_VALUES
from tests.ocr_server.batches.conftest import Serve, Served, jsonl, refusal, request
from tests.ocr_server.conftest import CHAT, WHITE, FakeEngine, chat, delta, fails, never, says, until


async def test_requests_are_answered_as_by_their_endpoint(served: Served) -> None:
    batch = await served.batch([request(f"r{number}") for number in range(20)], metadata={"for": "a test"})
    assert batch.object == "batch"
    done = await served.ended(batch)
    assert (done.status, done.errors, done.error_file_id) == ("completed", None, None)
    assert done.metadata == {"for": "a test"}
    assert done.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert done.expires_at == done.created_at + 86_400
    assert (done.usage.input_tokens, done.usage.output_tokens) == (200, 20)
    lines = await served.lines(done.output_file_id)
    assert list(lines) == [f"r{number}" for number in range(20)], "in the order of the input"
    line = lines["r7"]
    assert set(line) == {"id", "custom_id", "response", "error"}
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    direct = (await served.http.post(CHAT, json=chat())).json()
    answer = line["response"]["body"]
    assert {**answer, "id": 0, "created": 0} == {**direct, "id": 0, "created": 0}


async def test_ocr_requests(served: Served) -> None:
    body = {"document": {"image_url": WHITE}, "prompt": "Free OCR.", "mode": "tiny"}
    lines = [request("a", body, "/v1/ocr"), request("b", {**body, "output": "overlay"}, "/v1/ocr")]
    done = await served.ended(await served.batch(lines, endpoint="/v1/ocr"))
    assert (await served.lines(done.output_file_id))["a"]["response"]["body"]["pages"][0]["markdown"] == "Hello"
    refused = (await served.lines(done.error_file_id))["b"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "output")


async def test_an_invalid_request_is_an_error_of_its_own(served: Served) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "no picture": {"model": "deepseek-ocr", "messages": [{"role": "user", "content": "Hi"}]},
        "no model": {**chat(), "model": "gpt-4o"},
        "misspelt": chat(ocr={"colour": "red"}),
        "streamed": {**chat(), "stream": True},
        "no body": {},
    }
    lines = [request(name, body) for name, body in wrong.items()] + [request("right")]
    done = await served.ended(await served.batch(lines))
    assert done.status == "completed"
    assert done.request_counts.model_dump() == {"total": 6, "completed": 1, "failed": 5}
    assert list(await served.lines(done.output_file_id)) == ["right"]
    errors = await served.lines(done.error_file_id)
    found = {
        name: (line["response"]["status_code"], line["response"]["body"]["error"]["param"], line["error"])
        for name, line in errors.items()
    }
    assert found == {
        "no picture": (400, "messages", None),
        "no model": (404, "model", None),
        "misspelt": (400, "ocr.colour", None),
        "streamed": (400, "stream", None),
        "no body": (400, "model", None),
    }


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["{"], [("invalid_json_line", 1, None)]),
        (["[1]"], [("invalid_json_line", 1, None)]),
        ([request("a"), "", '{"custom_id": NaN}'], [("invalid_json_line", 3, None)]),
        ([request("a"), request("b"), request("a")], [("duplicate_custom_id", 3, "custom_id")]),
        ([{**request("a"), "method": "GET"}], [("invalid_method", 1, "method")]),
        ([request("a", url="/v1/ocr")], [("invalid_url", 1, "url")]),
        ([{**request("a"), "custom_id": 7}], [("invalid_custom_id", 1, "custom_id")]),
        ([{**request("a"), "custom_id": "x" * 513}], [("invalid_custom_id", 1, "custom_id")]),
        ([{**request("a"), "body": "{}"}], [("invalid_body", 1, "body")]),
        ([{"custom_id": "a", "method": "POST", "url": CHAT}], [("missing_required_parameter", 1, "body")]),
        ([{**request("a"), "priority": 1}], [("unknown_parameter", 1, "priority")]),
        (["", " "], [("empty_file", None, None)]),
        (["{", request("a"), "}"], [("invalid_json_line", 1, None), ("invalid_json_line", 3, None)]),
        ([request(str(number)) for number in range(6)], [("too_many_requests", None, None)]),
        ([request("a", {"pad": "x" * 1_000_000})], [("line_too_long", 1, None)]),
        ([request("a", {"pad": [1] * MAX_VALUES}), request("b")], [("json_too_large", 1, None)]),
        ([request("a"), *[""] * 6, "{"], [("too_many_blank_lines", None, None)]),
        ([*[" \t\r"] * 5, "{"], [("invalid_json_line", 6, None)]),
    ],
)
async def test_an_invalid_file_fails_with_the_numbers_of_its_lines(
    serve: Serve, lines: list[Any], found: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serve(MAX_BATCH_REQUESTS=5, MAX_BODY_MB=1) as served:
        done = await served.ended(await served.batch(lines))
        assert done.status == "failed"
        assert done.failed_at >= done.created_at
        assert done.errors.object == "list"
        assert [(error.code, error.line, error.param) for error in done.errors.data] == found
        assert (done.output_file_id, done.error_file_id) == (None, None)
        assert served.engine.pages == [], "no page of an invalid file is read"
        await until(lambda: f"{done.id} failed: 0 requests" in caplog.text)


async def test_windows_line_ends_and_byte_order_marks(served: Served) -> None:
    data = b"\xef\xbb\xbf" + jsonl([request("a"), request("b")]).replace(b"\n", b"\r\n") + b"\r\n"
    done = await served.ended(await served.batch(data))
    assert list(await served.lines(done.output_file_id)) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {str(number): "b" for number in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
        ({"extra_body": {"request": {}}}, "request"),
    ],
)
async def test_errors_name_the_parameter(served: Served, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await served.batch([request("a")], **change)
    assert str(caught.value.param).split(".a")[0] == param
    with pytest.raises(openai.NotFoundError) as unknown:
        await served.api.batches.create(
            input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert refusal(unknown.value) == (404, "input_file_id", "file_not_found")


async def test_lists_are_paginated(served: Served) -> None:
    made = [(await served.batch([request("a")])).id for _ in range(5)]
    first = await served.api.batches.list(limit=2)
    assert [batch.id for batch in first.data] == made[:2:-1]
    assert first.has_more
    second = await served.api.batches.list(limit=2, after=first.data[-1].id)
    assert [batch.id for batch in second.data] == made[2:0:-1]
    assert [batch.id async for batch in served.api.batches.list(limit=2)] == made[::-1]
    for wrong, param in (({"limit": 101}, "limit"), ({"after": "batch_0"}, "after")):
        with pytest.raises(openai.BadRequestError) as caught:
            await served.api.batches.list(**wrong)
        assert str(caught.value.param).endswith(param)


async def test_a_cancelled_batch_keeps_its_answers(serve: Serve) -> None:
    async def some(number: int, page: Page) -> AsyncGenerator[PageDelta]:
        if number >= 3:
            await asyncio.Event().wait()
        yield delta("Hello", finish="stop")

    async with serve(FakeEngine(some), BATCH_CONCURRENCY=2) as served:
        batch = await served.batch([request(f"r{number}") for number in range(9)])
        await until(lambda: len(served.engine.pages) == 5)
        assert (await served.api.batches.cancel(batch.id)).status == "cancelling"
        done = await served.ended(batch)
        assert done.status == "cancelled"
        assert done.cancelling_at <= done.cancelled_at
        assert done.request_counts.model_dump() == {"total": 9, "completed": 3, "failed": 6}
        assert len(await served.lines(done.output_file_id)) == 3
        errors = await served.lines(done.error_file_id)
        assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
        assert {line["response"] for line in errors.values()} == {None}
        assert served.engine.running == 0, "the pages that were being read are aborted"
        with pytest.raises(openai.BadRequestError) as caught:
            await served.api.batches.cancel(batch.id)
        assert refusal(caught.value) == (400, "batch_id", "batch_ended")


@pytest.mark.slow
async def test_an_expired_batch_has_an_error_for_each_unanswered_request(serve: Serve) -> None:
    async with serve(FakeEngine(never), BATCH_CONCURRENCY=2) as served:
        batch = await served.batch([request("a"), request("b"), request("c")], completion_window="1h")
        await until(lambda: len(served.engine.pages) == 2)
        await served.change(batches, batch.id, expires_at=batch.created_at)
        done = await served.ended(batch)
        assert done.status == "expired"
        assert done.expired_at >= batch.created_at
        errors = await served.lines(done.error_file_id)
        assert [line["error"]["code"] for line in errors.values()] == ["batch_expired"] * 3
        assert done.request_counts.failed == 3


@pytest.mark.slow
async def test_a_request_waits_for_the_engine_and_is_tried_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocr_server.batches.answer.MAX_WAIT_S", 0.01)

    async def dies_twice(number: int, page: Page) -> AsyncGenerator[PageDelta]:
        if number < 2:
            raise Unavailable("The engine is being restarted.", retry_after=0.01)
        yield delta("Hello", finish="stop")

    engine = FakeEngine(dies_twice)
    engine.reason = "The model is being loaded."
    async with serve(engine) as served:
        batch = await served.batch([request("a")])
        async with asyncio.timeout(20):
            while (await served.api.batches.retrieve(batch.id)).status != "in_progress":  # noqa: ASYNC110  # clients poll
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert engine.pages == [], "without an engine, there is no attempt"
        engine.reason = None
        done = await served.ended(batch)
        assert done.request_counts.completed == 1
        assert len(engine.pages) == 3


async def test_a_request_is_tried_again_after_trouble_of_the_machine(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocr_server.batches.answer.MAX_WAIT_S", 0.01)

    async def full_disk(number: int, page: Page) -> AsyncGenerator[PageDelta]:
        if number < 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield delta("Hello", finish="stop")

    async with serve(FakeEngine(full_disk)) as served:
        done = await served.ended(await served.batch([request("a")]))
        assert done.request_counts.completed == 1


async def test_the_number_of_attempts_is_limited(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocr_server.batches.answer.MAX_WAIT_S", 0.01)
    async with serve(FakeEngine(fails(Unavailable("It died.")))) as served:
        done = await served.ended(await served.batch([request("a")]))
        line = (await served.lines(done.error_file_id))["a"]
        assert line["response"]["status_code"] == 503
        assert len(served.engine.pages) == 5


async def test_a_failure_of_the_engine_is_an_error_of_the_request(serve: Serve) -> None:
    async with serve(FakeEngine(fails(EngineFailure("It broke on this page.")))) as served:
        done = await served.ended(await served.batch([request("a")]))
        assert (await served.lines(done.error_file_id))["a"]["response"]["status_code"] == 500
        assert len(served.engine.pages) == 1


@pytest.mark.slow
async def test_other_requests_have_priority(serve: Serve) -> None:
    """When the pages of a batch occupy all slots, the next free slot goes to another request."""
    gate = asyncio.Semaphore(0)

    async def waits(_: int, page: Page) -> AsyncGenerator[PageDelta]:
        await gate.acquire()
        yield delta("Hello", finish="stop")

    # MAX_CONCURRENCY=1 is 17 slots with those that are loaded ahead
    async with serve(FakeEngine(waits), MAX_CONCURRENCY=1, BATCH_CONCURRENCY=100, MAX_WAITING_PAGES=1) as served:
        batch = await served.batch([request(str(number)) for number in range(60)])
        await until(lambda: len(served.engine.pages) == 17)
        asked = asyncio.create_task(served.http.post(CHAT, json=chat(seed=77)))
        admission = served.app.state.runtime.admission
        await until(lambda: bool(admission._queue))  # it counts as waiting before its picture is opened
        gate.release()
        await until(lambda: len(served.engine.pages) == 18)
        assert served.engine.pages[17].decoding.seed == 77
        for _ in range(60):
            gate.release()
        assert (await asked).status_code == 200
        assert (await served.ended(batch)).request_counts.completed == 60


@pytest.mark.slow
async def test_batches_take_turns(serve: Serve) -> None:
    """A short batch does not have to wait for the end of a long one."""
    async with serve(FakeEngine(says("Hello")), BATCH_CONCURRENCY=1) as served:
        long = await served.batch([request(str(number)) for number in range(150)])
        short = await served.ended(await served.batch([request("a")]))
        assert short.status == "completed"
        assert (await served.api.batches.retrieve(long.id)).status == "in_progress"
        await served.ended(long)


@pytest.mark.slow
async def test_the_number_of_concurrent_requests_is_limited(serve: Serve) -> None:
    running = 0
    most = 0

    async def counts(_: int, page: Page) -> AsyncGenerator[PageDelta]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        running -= 1
        yield delta("Hello", finish="stop")

    async with serve(FakeEngine(counts), BATCH_CONCURRENCY=3) as served:
        made = [await served.batch([request(str(number)) for number in range(10)]) for _ in range(2)]
        for batch in made:
            await served.ended(batch)
        assert most == 3


async def test_the_number_of_batches_of_a_client_is_limited(serve: Serve) -> None:
    async with serve(FakeEngine(never), MAX_BATCHES_OF_CLIENT=2) as served:
        for _ in range(2):
            await served.batch([request("a")])
        with pytest.raises(openai.RateLimitError):
            await served.batch([request("a")])


async def test_clients_see_only_their_own_batches(serve: Serve) -> None:
    async with serve(API_KEYS="alice:sk-a,bob:sk-b") as served:
        alice, bob = served.sdk("sk-a"), served.sdk("sk-b")
        batch = await served.ended(await served.batch([request("a")], api=alice), api=alice)
        assert batch.status == "completed"
        assert [each.id async for each in alice.batches.list()] == [batch.id]
        assert [each.id async for each in bob.batches.list()] == []
        assert [each.id async for each in bob.files.list()] == []
        for attempt in (
            bob.batches.retrieve(batch.id),
            bob.batches.cancel(batch.id),
            bob.files.content(batch.output_file_id),
            bob.files.delete(batch.input_file_id),
            bob.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                await attempt
        with pytest.raises(openai.BadRequestError):
            await bob.batches.list(after=batch.id)


async def test_the_end_is_logged_and_counted(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = value("ocr_batches_total", status="completed"), value("ocr_batch_requests_total", outcome="failed")
    with caplog.at_level(logging.INFO):
        batch = await served.ended(await served.batch([request("a"), request("b", {})]))
        await until(lambda: f"{batch.id} completed: 2 requests, 1 completed, 1 failed" in caplog.text)
    assert value("ocr_batches_total", status="completed") == before[0] + 1
    assert value("ocr_batch_requests_total", outcome="failed") == before[1] + 1


async def test_batches_can_be_turned_off(serve: Serve) -> None:
    async with serve(BATCHES=False) as served:
        assert (await served.http.get("/v1/batches")).status_code == 404
        assert (await served.http.get("/v1/files")).status_code == 404


async def test_an_unavailable_database_is_reported(serve: Serve) -> None:
    async with serve(DATABASE_URL="sqlite:////proc/none/batches.db") as served:
        with pytest.raises(openai.InternalServerError) as caught:
            await served.api.batches.list()
        assert refusal(caught.value)[::2] == (503, "database_unavailable")
        assert (await served.http.post(CHAT, json=chat())).status_code == 200
