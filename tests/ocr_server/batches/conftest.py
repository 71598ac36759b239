"""An application with batches in a temporary folder, and the official SDK as its client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from sqlalchemy import Table, update

from config import Settings
from ocr_server.app import create_app
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import FakeEngine, chat

ENDED = {"completed", "failed", "expired", "cancelled"}


class Served:
    """A running application. `api` is the official SDK; `http` sends requests that the SDK cannot."""

    def __init__(self, app: FastAPI, engine: FakeEngine) -> None:
        self.app = app
        self.engine = engine
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://server")
        self.api = self.sdk()

    def sdk(self, key: str = "EMPTY") -> AsyncOpenAI:
        """Return a client with an API key. It validates every response against the types of the SDK."""
        return AsyncOpenAI(
            base_url="http://server/v1",
            api_key=key,
            max_retries=0,
            http_client=self.http,
            _strict_response_validation=True,
        )

    async def batch(self, content: bytes | Sequence[Any], api: AsyncOpenAI | None = None, **more: Any) -> Any:
        """Upload a file, given as bytes or as the lines of a JSONL file, and create a batch of it."""
        api = api or self.api
        data = content if isinstance(content, bytes) else jsonl(content)
        file = await api.files.create(file=("requests.jsonl", data), purpose="batch")
        options = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **more}
        return await api.batches.create(input_file_id=file.id, **options)

    async def ended(self, batch: Any, seconds: float = 60.0, api: AsyncOpenAI | None = None) -> Any:
        """Wait for the end of a batch, and return it."""
        async with asyncio.timeout(seconds):
            while batch.status not in ENDED:
                await asyncio.sleep(0.02)
                batch = await (api or self.api).batches.retrieve(batch.id)
        return batch

    async def change(self, table: Table, row_id: str, **values: Any) -> None:
        """Change a row of the database."""
        changed = update(table).where(table.c.id == row_id).values(values)
        await self.app.state.batches.database.run(lambda connection: connection.execute(changed))

    async def lines(self, file_id: str | None) -> dict[str, Any]:
        """Return the lines of an output or error file, by custom_id, and check that each occurs once."""
        if file_id is None:
            return {}
        content = await self.api.files.content(file_id)
        found = [json.loads(line) for line in content.text.splitlines()]
        by_name = {line["custom_id"]: line for line in found}
        assert len(by_name) == len(found)
        return by_name


def request(name: str, body: dict[str, Any] | None = None, url: str = "/v1/chat/completions") -> dict[str, Any]:
    """A line of a JSONL file. By default, the request is to read one white picture."""
    return {"custom_id": name, "method": "POST", "url": url, "body": chat() if body is None else body}


def jsonl(lines: Sequence[Any]) -> bytes:
    """A JSONL file. Strings are lines as they are."""
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()


def refusal(error: openai.APIStatusError) -> tuple[int, str | None, str | None]:
    """Status, param and code of an error."""
    return error.status_code, error.param, error.code


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(settings: Settings, tmp_path: Path) -> Serve:
    """Runs an application as `async with serve(engine, SETTING=…)`. All applications of a test share one folder."""

    @asynccontextmanager
    async def running(engine: FakeEngine | None = None, **more: Any) -> AsyncIterator[Served]:
        given = {
            "BATCHES": True,
            "DATABASE_URL": f"sqlite:///{tmp_path}/batches.db",
            "STORAGE_URL": str(tmp_path / "files"),
            **more,
        }
        engine = engine or FakeEngine()
        app = create_app(Runtime.build(Settings(**{**settings.model_dump(), **given}), engine))
        async with app.router.lifespan_context(app):
            served = Served(app, engine)
            async with served.http:
                yield served

    return running


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as served:
        yield served
