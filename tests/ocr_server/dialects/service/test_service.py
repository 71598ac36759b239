"""The health probes, and the security headers of all responses."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from ocr_server import __version__
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, fails


class TestProbes:
    @pytest.mark.parametrize("path", ["/livez", "/ping"])
    async def test_liveness(self, client: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
        engine.reason = "The engine has stopped working."
        assert (await client.get(path)).status_code == 200
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")

    async def test_ping_is_empty(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/ping")).content == b""

    async def test_readiness(self, client: httpx.AsyncClient, app: FastAPI, engine: FakeEngine) -> None:
        admission = app.state.runtime.admission
        admission.pages_in_flight, admission.pages_waiting = 3, 40
        response = await client.get("/readyz")
        rest = {"version": __version__, "pages_in_flight": 3, "pages_waiting": 40}
        assert (response.status_code, response.json()) == (200, {"status": "ready", "reason": None, **rest})
        engine.reason = "The model is being loaded."
        response = await client.get("/readyz")
        assert (response.status_code, (await client.head("/readyz")).status_code) == (503, 503)
        assert response.json() == {"status": "unavailable", "reason": engine.reason, **rest}


class TestHeaders:
    async def test_content_types_are_not_sniffed(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        for path in ("/", "/docs", "/livez", "/metrics", "/nothing", "/static-offline-docs/swagger-ui.css"):
            assert (await client.get(path)).headers["x-content-type-options"] == "nosniff", path
        engine.script = fails(RuntimeError())
        response = await client.post(CHAT, json=chat())
        assert (response.status_code, response.headers["x-content-type-options"]) == (500, "nosniff")

    async def test_pages_cannot_be_framed(self, client: httpx.AsyncClient) -> None:
        page = (await client.get("/docs")).headers
        assert (page["x-frame-options"], page["referrer-policy"]) == ("DENY", "no-referrer")
        assert "x-frame-options" not in (await client.get("/")).headers
