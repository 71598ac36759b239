"""Many clients at once, and clients that go away: nobody waits for the others, and no work is left behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_requests import PICTURES, SIGN, call, joined, request, text_of, truth
from live_server import Server
from openai import AsyncOpenAI, OpenAI

from tests.reliability.load import Load

pytestmark = pytest.mark.live

CHAT = "/v1/chat/completions"
ENDLESS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4000, "ocr": {"ngram_size": 0, "mode": "tiny"}}
"""An answer that takes half a minute at least."""


async def test_sixteen_readers_at_once_each_get_their_own(async_client: AsyncOpenAI, engine_idle: Server) -> None:
    pictures = [PICTURES[number % len(PICTURES)] for number in range(16)]

    async def read(number: int) -> str:
        picture = pictures[number]
        if number % 4 == 3:
            stream = await async_client.chat.completions.create(**call(picture), stream=True)
            return joined([chunk async for chunk in stream])
        return text_of(await async_client.chat.completions.create(**call(picture)))

    found = await asyncio.gather(*map(read, range(16)))
    assert found == [truth(picture) for picture in pictures]


def test_a_client_that_leaves_a_stream_ends_its_work(client: OpenAI, engine_idle: Server) -> None:
    stream = client.chat.completions.create(**call(**ENDLESS), stream=True)
    for _ in range(5):
        next(stream)
    engine_idle.wait_busy()
    stream.close()
    assert engine_idle.wait_idle(5) < 5


def test_a_client_that_leaves_before_the_answer_ends_its_work(engine_idle: Server) -> None:
    with (
        httpx.Client(base_url=engine_idle.url, timeout=1.5) as impatient,
        pytest.raises(httpx.ReadTimeout),
    ):
        impatient.post(CHAT, json=request(**ENDLESS))
    assert engine_idle.wait_idle(5) < 5


def test_the_sdk_giving_up_ends_the_work(client: OpenAI, engine_idle: Server) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.5).chat.completions.create(**call(**ENDLESS))
    assert engine_idle.wait_idle(5) < 5


@pytest.mark.parametrize("options", [{"n": 2, "temperature": 1.0}, {}], ids=["two choices", "three pages"])
def test_all_parts_of_a_request_end_with_it(client: OpenAI, engine_idle: Server, options: dict[str, Any]) -> None:
    pictures = (SIGN,) if options else (SIGN, SIGN, SIGN)
    stream = client.chat.completions.create(**call(*pictures, **ENDLESS, **options), stream=True)
    next(stream)
    next(stream)
    engine_idle.wait_busy(len(pictures) + len(options) // 2)
    stream.close()
    assert engine_idle.wait_idle(5) < 5


async def test_half_of_the_clients_leave_at_any_moment(engine_idle: Server) -> None:
    """The short form of `python -m tests.reliability.load`."""
    load = Load(engine_idle.url, 24, process=psutil.Process(engine_idle.process.pid))
    outcome = await load.run()
    assert outcome.good, outcome
    assert min(outcome.left.values()) >= 4, "clients should have left at every moment"
    assert outcome.next_answer < 10
    assert outcome.memory_mb["after"] - outcome.memory_mb["before"] < 200


async def test_a_page_that_fails_ends_its_siblings(engine_idle: Server) -> None:
    async with httpx.AsyncClient(base_url=engine_idle.url, timeout=20) as http:
        answer = await http.post(CHAT, json=request(SIGN, SIGN, b"no picture", **ENDLESS))
    assert answer.status_code == 400
    assert await asyncio.to_thread(engine_idle.wait_idle, 5) < 5


async def test_a_slow_reader_holds_up_nobody(async_client: AsyncOpenAI, engine_idle: Server) -> None:
    body = request(**ENDLESS | {"max_tokens": 600}, stream=True)
    async with httpx.AsyncClient(base_url=engine_idle.url, timeout=30) as slow:  # noqa: SIM117
        async with slow.stream("POST", CHAT, json=body) as unread:
            assert unread.status_code == 200
            started = time.monotonic()
            answers = await asyncio.gather(*(async_client.chat.completions.create(**call()) for _ in range(3)))
            assert [text_of(answer) for answer in answers] == [truth(SIGN)] * 3
            assert time.monotonic() - started < 20
            assert (await unread.aread()).endswith(b"data: [DONE]\n\n"), "and it loses nothing"


async def test_health_answers_while_the_engine_works(engine_idle: Server) -> None:
    async with httpx.AsyncClient(base_url=engine_idle.url, timeout=30) as http:
        work = asyncio.gather(*(http.post(CHAT, json=request(max_tokens=30)) for _ in range(6)))
        waits = []
        while not work.done():
            started = time.monotonic()
            assert (await http.get("/health")).status_code == 200
            waits.append(time.monotonic() - started)
            await asyncio.sleep(0.05)
        assert all(answer.status_code == 200 for answer in await work)
    assert len(waits) > 3
    assert max(waits) < 2
