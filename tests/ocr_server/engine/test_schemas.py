"""JSON schemas that are refused, or end the process that compiles them, but never the engine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from ocr_server.engine.schemas import MAX_WAITING, Schemas
from ocr_server.errors import DecodingError, Unavailable
from ocr_server.event_loop_thread import EventLoopThread
from tests.processes import children

pytestmark = pytest.mark.engine

TOKENIZER = Path(__file__).parents[3] / "nano" / "checkpoint" / "tokenizer.json"
SMALL = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
MINUTES = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(4000)}}
"""Takes a minute or more to compile."""


@pytest.fixture(scope="module")
def loop() -> Iterator[EventLoopThread]:
    """A loop in real time, unlike that of the async tests in this folder."""
    loop = EventLoopThread("schemas")
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def schemas(loop: EventLoopThread) -> Iterator[Schemas]:
    schemas = Schemas(lambda: TOKENIZER, seconds=1)
    yield schemas
    loop.run(schemas.close())


def in_background(loop: EventLoopThread, schemas: Schemas, schema: Mapping[str, Any]) -> Future[None]:
    checking: Future[None] = Future()

    async def check() -> None:
        try:
            await schemas.check(schema)
        except Exception as error:
            checking.set_exception(error)

    threading.Thread(target=lambda: loop.run(check()), daemon=True).start()
    return checking


def compilers() -> list[psutil.Process]:
    return list(children("ocr_server.engine.schema_worker"))


def reason(loop: EventLoopThread, schemas: Schemas, schema: Mapping[str, Any]) -> str:
    with pytest.raises(DecodingError) as caught:
        loop.run(schemas.check(schema))
    assert (caught.value.field, caught.value.code) == ("json_schema", "invalid_schema")
    return caught.value.message


def test_a_usual_schema_compiles(loop: EventLoopThread, schemas: Schemas) -> None:
    loop.run(schemas.check(SMALL))


def test_a_schema_that_takes_too_long_is_refused_and_others_are_compiled_after_it(
    loop: EventLoopThread, schemas: Schemas
) -> None:
    assert "more than 1 seconds to compile" in reason(loop, schemas, MINUTES)
    (compiler,) = compilers()
    used = compiler.cpu_times()
    assert "more than 1 seconds to compile" in reason(loop, schemas, MINUTES)
    assert compiler.cpu_times().children_user == used.children_user, "the result is remembered"
    loop.run(schemas.check({"type": "array", "items": SMALL}))
    assert compilers() == [compiler]


def test_a_schema_that_takes_too_much_memory_is_refused(loop: EventLoopThread) -> None:
    schemas = Schemas(lambda: TOKENIZER, seconds=60, memory_bytes=20_000_000)
    try:
        assert "too much memory" in reason(loop, schemas, MINUTES)
    finally:
        loop.run(schemas.close())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "string", "pattern": "("},
        {"$ref": "#/nowhere"},
        {"type": "object", "properties": {"\ud800": {}}},
        {"properties": 5},
    ],
)
def test_a_schema_that_cannot_be_compiled_is_refused_in_one_sentence(
    loop: EventLoopThread, schemas: Schemas, schema: dict[str, Any]
) -> None:
    message = reason(loop, schemas, schema)
    assert message.startswith("The JSON schema cannot be used: ")
    assert message.endswith(".")
    assert ".cc" not in message


@pytest.mark.parametrize(
    ("kind", "good", "bad", "name"),
    [
        ("regex", "[0-9]{4}", "(", "regular expression"),
        ("regex", "a|b", "a\\0b".replace("\\0", chr(0)), "regular expression"),
        ("grammar", 'root ::= "a" | "b"', "nonsense", "grammar"),
        ("choice", ["yes", 'a "quoted" \\ one\n'], None, "list of choices"),
    ],
)
def test_grammars(loop: EventLoopThread, schemas: Schemas, kind: str, good: Any, bad: Any, name: str) -> None:
    loop.run(schemas.check(good, kind))
    if bad is not None:
        with pytest.raises(DecodingError) as caught:
            loop.run(schemas.check(bad, kind))
        assert (caught.value.field, caught.value.code) == (kind, "invalid_grammar")
        assert caught.value.message.startswith(f"The {name} ")


def test_only_so_many_schemas_wait(loop: EventLoopThread, schemas: Schemas) -> None:
    async def flood() -> list[BaseException | None]:
        return await asyncio.gather(
            *(schemas.check({"const": number}) for number in range(MAX_WAITING + 2)), return_exceptions=True
        )

    results = loop.run(flood())
    refused = [each for each in results if each is not None]
    assert len(refused) == 2
    assert all(isinstance(each, Unavailable) and each.retry_after for each in refused)


def test_a_process_that_is_killed_is_no_fault_of_the_schema(loop: EventLoopThread, schemas: Schemas) -> None:
    slow = {**MINUTES, "title": "killed"}
    loop.run(schemas.check({"const": "started"}))
    (compiler,) = compilers()
    checking = in_background(loop, schemas, slow)
    while not compiler.children():
        time.sleep(0.01)
    (fork,) = compiler.children()
    os.kill(fork.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="try again"):
        checking.result()
    compiler.kill()
    compiler.wait()
    with pytest.raises(Unavailable, match="try again"):
        loop.run(schemas.check({"const": "lost"}))
    loop.run(schemas.check({"const": "lost"}))


def test_closing_ends_the_process_and_what_it_compiles(loop: EventLoopThread) -> None:
    schemas = Schemas(lambda: TOKENIZER, seconds=600)
    before = set(compilers())
    checking = in_background(loop, schemas, MINUTES)
    while not (forks := [fork for each in set(compilers()) - before for fork in each.children()]):
        time.sleep(0.01)
    loop.run(schemas.close())
    with pytest.raises(Unavailable):
        checking.result()
    psutil.wait_procs(forks, timeout=60)
    assert not any(fork.is_running() for fork in forks)
    with pytest.raises(Unavailable, match="shutting down"):
        loop.run(schemas.check(SMALL))
