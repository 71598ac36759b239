"""Refusals: the answer comes first, then a little of the body is read, so that the client receives the answer."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message

from ocr_server.errors import NotFound
from ocr_server.transport.refusal import refuse


async def events_of(*bodies: Message, **limits: Any) -> list[str]:
    """Return the events of a refused request with a body. After `bodies`, the client sends nothing more."""
    happened: list[str] = []
    coming = iter(bodies)

    async def receive() -> Message:
        happened.append("receive")
        message = next(coming, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    async def send(message: Message) -> None:
        happened.append(message["type"].removeprefix("http.response."))

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"100")]}
    await refuse(NotFound("No."), scope, receive, send, **limits)
    return happened


async def test_the_time_for_the_rest_of_a_body_is_limited() -> None:
    assert await events_of(linger_seconds=0.01) == ["start", "body", "receive", "body"]


async def test_the_size_of_the_rest_of_a_body_is_limited() -> None:
    part = {"type": "http.request", "body": b"x" * 10, "more_body": True}
    assert await events_of(*[part] * 10, linger_bytes=15) == ["start", "body", "receive", "receive", "body"]
