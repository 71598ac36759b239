"""Answers one request of a batch as its endpoint would, and tries again when the engine is not available."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from typing import Any

from ocr_server.batches.endpoint import Endpoint
from ocr_server.batches.leases import BatchAnswer
from ocr_server.batches.requests import Item
from ocr_server.errors import ApiError, TooMany, Unavailable, UnexpectedFailure, out_of_resources
from ocr_server.observability import logs, metrics
from ocr_server.runtime import Runtime
from ocr_server.session import Caller
from ocr_server.transport.json_lines import one_line

logger = logging.getLogger(__name__)

MAX_TRIES = 5
"""Maximum number of attempts at a request during which the engine fails."""
MIN_WAIT_S, MAX_WAIT_S = 0.5, 30.0
"""Minimum and maximum time between two attempts."""
ENGINE_POLL_S = 0.5


async def answered(runtime: Runtime, endpoint: Endpoint, item: Item, caller: Caller) -> BatchAnswer:
    """Return the answer to a request, or its error. Waits for as long as the engine is not available."""
    request_id = f"req_{uuid.uuid4().hex}"
    logs.request_id.set(request_id)
    status, body = await _tried(runtime, endpoint, item, caller)
    return BatchAnswer(
        item.line,
        status == 200,
        _line(item.custom_id, f'{{"status_code": {status}, "request_id": "{request_id}", "body": {body}}}', "null"),
        prompt_tokens=caller.account.get("prompt_tokens", 0),
        completion_tokens=caller.account.get("completion_tokens", 0),
    )


def unanswered(item: Item, code: str, message: str) -> BatchAnswer:
    """Return the entry for a request that was not processed, with the reason."""
    return BatchAnswer(item.line, False, _line(item.custom_id, "null", json.dumps({"code": code, "message": message})))


async def _tried(runtime: Runtime, endpoint: Endpoint, item: Item, caller: Caller) -> tuple[int, str]:
    """Return the HTTP status and the JSON of the answer or error."""
    tries = 0
    while True:
        while runtime.engine.unavailable():  # noqa: ASYNC110  # the engine has no event to wait for
            await asyncio.sleep(ENGINE_POLL_S)
        try:
            content = None if item.content is None else await item.content()
            return 200, await endpoint.answer(runtime, item.body, caller, content)
        except Exception as caught:
            error = caught if isinstance(caught, ApiError) else out_of_resources(caught)
            if error is None:
                logger.exception("a request of a batch failed unexpectedly")
                return _refused(500, UnexpectedFailure().body())
            tries += error.code == Unavailable.code  # trouble of the machine or of the storage does not count
            if not isinstance(error, Unavailable | TooMany) or tries >= MAX_TRIES:
                return _refused(error.status, error.body())
            wait = max(error.retry_after or MIN_WAIT_S * 2**tries, MIN_WAIT_S)
            metrics.BATCH_RETRIES.inc()
            caller.account.clear()
            await asyncio.sleep(min(wait, MAX_WAIT_S))


def _refused(status: int, body: dict[str, Any]) -> tuple[int, str]:
    return status, json.dumps(body, ensure_ascii=False)


def _line(custom_id: str, response: str, error: str) -> str:
    line_id, name = f"batch_req_{uuid.uuid4().hex}", json.dumps(custom_id, ensure_ascii=False)
    return one_line(f'{{"id": "{line_id}", "custom_id": {name}, "response": {response}, "error": {error}}}')
