"""The parts of the Ray Serve deployment that need no cluster."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from config import Settings
from deploy import ray_serve
from deploy.ray_serve import ByPages, HeldBack, for_a_cluster, serve_metrics
from tests.ocr_server.conftest import until


class LoadingEngine:
    """An engine that is available when `ready` is set."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.checks = 0

    def unavailable(self) -> str | None:
        self.checks += 1
        return None if self.ready.is_set() else "The model is being loaded."


async def answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("read")


def client(engine: Any, seconds: float = 30.0) -> httpx.AsyncClient:
    app = HeldBack(Starlette(routes=[Route("/", answer, methods=["GET", "POST"])]), engine, seconds)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


class TestHeldBack:
    async def test_requests_wait_for_an_engine(self) -> None:
        engine = LoadingEngine()
        async with client(engine) as http:
            coming = asyncio.create_task(http.post("/"))
            await until(lambda: engine.checks >= 3)
            assert not coming.done()
            engine.ready.set()
            assert (await coming).text == "read"

    async def test_the_time_is_limited(self) -> None:
        """Afterwards the application answers, and says what is missing."""
        engine = LoadingEngine()
        async with client(engine, seconds=0.5) as http:
            assert (await http.post("/")).text == "read"
        assert engine.checks == 2

    async def test_probes_do_not_wait(self) -> None:
        engine = LoadingEngine()
        async with client(engine) as http:
            assert (await http.get("/")).text == "read"
        assert engine.checks == 0


class TestByPages:
    @staticmethod
    def replicas(pages: dict[str, float], queued: float = 0, requests: float = 1) -> float:
        context: Any = SimpleNamespace(
            aggregated_metrics={"pages": pages}, total_queued_requests=queued, total_num_requests=requests
        )
        return ByPages(target=50)(context)[0]

    def test_the_number_depends_on_the_pages(self) -> None:
        assert self.replicas({"a": 300, "b": 100}) == 8

    def test_queued_requests_count_as_a_page_each(self) -> None:
        assert self.replicas({"a": 50}, queued=100) == 3

    def test_there_is_a_replica_as_long_as_there_are_requests(self) -> None:
        assert self.replicas({"a": 1}) == 1
        assert self.replicas({}, requests=0) == 0


class TestSettings:
    def test_batches_need_a_shared_database_and_storage(self) -> None:
        assert not for_a_cluster(Settings()).BATCHES
        shared = {"DATABASE_URL": "postgresql+psycopg://host/name", "STORAGE_URL": "s3://bucket"}
        assert for_a_cluster(Settings(**shared)).BATCHES


def test_replicas_on_one_machine_serve_their_metrics_on_different_ports() -> None:
    first, second = (serve_metrics("127.0.0.1", 29464) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first < second
    assert httpx.get(f"http://127.0.0.1:{second}/metrics").is_success


@pytest.mark.parametrize("name", ["build", "ByPages"])
def test_the_names_in_the_configuration_exist(name: str) -> None:
    assert f"deploy.ray_serve:{name}" in (Path(ray_serve.__file__).parent / "ray_serve.yaml").read_text()
    assert hasattr(ray_serve, name)
