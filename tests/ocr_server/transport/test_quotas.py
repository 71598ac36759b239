"""Daily quotas of keys."""

from __future__ import annotations

import httpx
import pytest

from config import Settings
from ocr_server.app import create_app
from ocr_server.errors import TooMany
from ocr_server.runtime import Runtime
from ocr_server.transport.quotas import Quota, Usage
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, client_of, error_of

ALICE, BOB, CAROL = ({"authorization": f"Bearer {key}"} for key in ("sk-a", "sk-b", "sk-c"))


def with_keys(settings: Settings, keys: str) -> Runtime:
    return Runtime.build(Settings(**{**settings.model_dump(), "API_KEYS": keys}), FakeEngine())


async def ask(client: httpx.AsyncClient, key: dict[str, str], pictures: int = 1) -> httpx.Response:
    body = chat()
    body["messages"][0]["content"] *= pictures
    return await client.post(CHAT, json=body, headers=key)


async def test_pages(settings: Settings) -> None:
    runtime = with_keys(settings, "sk-a pages_per_day=3,sk-b")
    async with client_of(create_app(runtime)) as client:
        assert (await ask(client, ALICE, 2)).status_code == 200
        response = await ask(client, ALICE, 2)
        error = error_of(response, 429)
        assert error["code"] == "quota_exceeded"
        assert "3 pages" in error["message"]
        assert 0 < int(response.headers["retry-after"]) <= 86_400
        assert len(runtime.engine.pages) == 2, "nothing of a refused request is read"
        assert (await ask(client, ALICE)).status_code == 200
        error_of(await ask(client, ALICE), 429)
        assert (await client.get("/v1/models", headers=ALICE)).status_code == 200
        assert (await ask(client, BOB)).status_code == 200
        assert runtime.admission.pages_waiting == runtime.admission.pages_in_flight == 0


async def test_a_refused_request_counts_no_pages(settings: Settings) -> None:
    async with client_of(create_app(with_keys(settings, "sk-a pages_per_day=1"))) as client:
        for _ in range(3):
            error_of(await client.post(CHAT, json={**chat(), "temperature": 9}, headers=ALICE), 400)
        assert (await ask(client, ALICE)).status_code == 200


async def test_bytes(settings: Settings) -> None:
    async with client_of(create_app(with_keys(settings, "sk-a megabytes_per_day=1,sk-b"))) as client:
        large = {**chat(), "user": "x" * 600_000}
        assert (await client.post(CHAT, json=large, headers=ALICE)).status_code == 200
        assert error_of(await client.post(CHAT, json=large, headers=ALICE), 429)["code"] == "quota_exceeded"
        assert (await ask(client, ALICE)).status_code == 200, "a smaller one fits"
        assert (await client.post(CHAT, json=large, headers=BOB)).status_code == 200


async def test_bodies_of_unknown_length_count_as_they_arrive(settings: Settings) -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(20):
            yield b"x" * 60_000

    async with client_of(create_app(with_keys(settings, "sk-a megabytes_per_day=1"))) as client:
        error_of(await client.post(CHAT, content=chunks(), headers=ALICE), 400)
        error_of(await ask(client, ALICE), 429)


async def test_keys_of_one_owner_count_together(settings: Settings) -> None:
    keys = "sk-a owner=x pages_per_day=2,sk-b owner=x pages_per_day=2,sk-c pages_per_day=2"
    async with client_of(create_app(with_keys(settings, keys))) as client:
        for key in (ALICE, BOB):
            assert (await ask(client, key)).status_code == 200
        error_of(await ask(client, BOB), 429)
        assert (await ask(client, CAROL)).status_code == 200


def test_the_day_ends_at_midnight_utc() -> None:
    now = 86_400.0 * 20_000 - 10
    quota = Quota(Usage(), 5, 5_000_000, clock=lambda: now)
    quota.take_pages(5)
    quota.take_bytes(5_000_000)
    for check in (quota.check_pages, quota.check_bytes):
        with pytest.raises(TooMany) as caught:
            check(1)
        assert caught.value.retry_after == 10
    assert not quota.has_pages()
    now += 10
    quota.check_pages(5)
    quota.check_bytes(5_000_000)
    assert quota.has_pages()
