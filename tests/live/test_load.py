"""Concurrent clients, and clients that disconnect: nobody blocks the others, and abandoned work is given up."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_requests import PICTURES, SIGN, call, joined, request, text_of, truth
from live_server import WAIT_SECONDS, Server
from openai import AsyncOpenAI, OpenAI

from tests.reliability.load import MOMENTS, Load

pytestmark = pytest.mark.live

CHAT = "/v1/chat/completions"
ENDLESS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4000, "ocr": {"ngram_size": 0, "mode": "tiny"}}
"""Options for an answer that takes at least half a minute."""


async def test_sixteen_concurrent_clients_get_their_own_answers(async_client: AsyncOpenAI, engine_idle: Server) -> None:
    pictures = [PICTURES[number % len(PICTURES)] for number in range(16)]

    async def read(number: int) -> str:
        picture = pictures[number]
        if number % 4 == 3:
            stream = await async_client.chat.completions.create(**call(picture), stream=True)
            return joined([chunk async for chunk in stream])
        return text_of(await async_client.chat.completions.create(**call(picture)))

    found = await asyncio.gather(*map(read, range(16)))
    assert found == [truth(picture) for picture in pictures]


def test_closing_a_stream_aborts_its_work(client: OpenAI, engine_idle: Server) -> None:
    with engine_idle.gives_up_work():
        stream = client.chat.completions.create(**call(**ENDLESS), stream=True)
        for _ in range(5):
            next(stream)
        engine_idle.wait_busy()
        stream.close()


async def test_disconnecting_before_the_answer_aborts_the_work(engine_idle: Server) -> None:
    with engine_idle.gives_up_work():
        async with httpx.AsyncClient(base_url=engine_idle.url, timeout=None) as http:
            answer = asyncio.create_task(http.post(CHAT, json=request(**ENDLESS)))
            await asyncio.to_thread(engine_idle.wait_busy)
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer


def test_a_timeout_of_the_sdk_aborts_the_work(client: OpenAI, engine_idle: Server) -> None:
    with engine_idle.gives_up_work(), pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.5).chat.completions.create(**call(**ENDLESS))


@pytest.mark.parametrize("options", [{"n": 2, "temperature": 1.0}, {}], ids=["two choices", "three pages"])
def test_all_parts_of_a_request_are_aborted(client: OpenAI, engine_idle: Server, options: dict[str, Any]) -> None:
    pictures = (SIGN,) if options else (SIGN, SIGN, SIGN)
    with engine_idle.gives_up_work():
        stream = client.chat.completions.create(**call(*pictures, **ENDLESS, **options), stream=True)
        next(stream)
        next(stream)
        engine_idle.wait_busy(len(pictures) + len(options) // 2)
        stream.close()


async def test_half_of_the_clients_leave_at_any_moment(engine_idle: Server) -> None:
    """The short form of `python -m tests.reliability.load`."""
    load = Load(engine_idle.url, 24, process=psutil.Process(engine_idle.process.pid))
    outcome = await load.run()
    assert outcome.good, outcome
    assert outcome.correct == 12
    assert outcome.disconnected == dict.fromkeys(MOMENTS, 4)
    assert outcome.memory_mb["after"] - outcome.memory_mb["before"] < 200


async def test_a_page_that_fails_aborts_the_other_pages(engine_idle: Server) -> None:
    with engine_idle.gives_up_work():
        async with httpx.AsyncClient(base_url=engine_idle.url, timeout=WAIT_SECONDS) as http:
            answer = await http.post(CHAT, json=request(SIGN, SIGN, b"no picture", **ENDLESS))
        assert answer.status_code == 400


async def test_a_slow_client_does_not_block_others(async_client: AsyncOpenAI, engine_idle: Server) -> None:
    body = request(**ENDLESS | {"max_tokens": 600}, stream=True)
    async with httpx.AsyncClient(base_url=engine_idle.url, timeout=WAIT_SECONDS) as slow:  # noqa: SIM117
        async with slow.stream("POST", CHAT, json=body) as unread:
            assert unread.status_code == 200
            answers = await asyncio.gather(*(async_client.chat.completions.create(**call()) for _ in range(3)))
            assert [text_of(answer) for answer in answers] == [truth(SIGN)] * 3
            assert (await unread.aread()).endswith(b"data: [DONE]\n\n"), "the slow client should lose nothing"


async def test_health_responds_while_the_engine_works(engine_idle: Server) -> None:
    with engine_idle.gives_up_work():
        async with httpx.AsyncClient(base_url=engine_idle.url, timeout=WAIT_SECONDS) as http:
            work = asyncio.gather(*(http.post(CHAT, json=request(**ENDLESS), timeout=None) for _ in range(6)))
            await asyncio.to_thread(engine_idle.wait_busy, 6)
            for _ in range(5):
                assert (await http.get("/health")).status_code == 200
            assert not work.done(), "the engine should have been working all the time"
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
