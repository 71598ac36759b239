"""What is ours of the deployment on Ray, without a cluster."""

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


class Loading:
    """An engine that is there when `ready` is set."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()

    def unavailable(self) -> str | None:
        return None if self.ready.is_set() else "The model is being loaded."


async def answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("read")


def client(engine: Any, seconds: float = 30.0) -> httpx.AsyncClient:
    app = HeldBack(Starlette(routes=[Route("/", answer, methods=["GET", "POST"])]), engine, seconds)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


class TestHeldBack:
    async def test_requests_wait_for_an_engine(self) -> None:
        engine = Loading()
        async with client(engine) as http:
            coming = asyncio.create_task(http.post("/"))
            await asyncio.sleep(0.6)
            assert not coming.done()
            engine.ready.set()
            assert (await coming).text == "read"

    async def test_not_for_ever(self) -> None:
        async with client(Loading(), seconds=0.5) as http:
            async with asyncio.timeout(5):
                assert (await http.post("/")).text == "read"  # and the server says itself what is missing

    async def test_probes_do_not_wait(self) -> None:
        async with client(Loading()) as http:
            async with asyncio.timeout(1):
                assert (await http.get("/")).text == "read"


class TestByPages:
    @staticmethod
    def replicas(pages: dict[str, float], queued: float = 0, requests: float = 1) -> float:
        context: Any = SimpleNamespace(
            aggregated_metrics={"pages": pages}, total_queued_requests=queued, total_num_requests=requests
        )
        return ByPages(target=50)(context)[0]

    def test_as_many_as_the_pages_want(self) -> None:
        assert self.replicas({"a": 300, "b": 100}) == 8

    def test_requests_that_are_in_no_replica_count(self) -> None:
        assert self.replicas({"a": 50}, queued=100) == 3

    def test_one_as_long_as_there_is_anything(self) -> None:
        assert self.replicas({"a": 1}) == 1
        assert self.replicas({}, requests=0) == 0


class TestSettings:
    def test_replicas_have_batches_only_if_they_share_them(self) -> None:
        assert not for_a_cluster(Settings()).BATCHES
        shared = {"DATABASE_URL": "postgresql+psycopg://host/name", "STORAGE_URL": "s3://bucket"}
        assert for_a_cluster(Settings(**shared)).BATCHES


def test_replicas_of_one_machine_tell_their_metrics_on_ports_of_their_own() -> None:
    first, second = serve_metrics(29464), serve_metrics(29464)
    assert first is not None
    assert second is not None
    assert first < second
    assert httpx.get(f"http://127.0.0.1:{second}/metrics").is_success


@pytest.mark.parametrize("name", ["build", "ByPages"])
def test_what_the_configuration_names_is_there(name: str) -> None:
    assert f"deploy.ray_serve:{name}" in (Path(ray_serve.__file__).parent / "ray_serve.yaml").read_text()
    assert hasattr(ray_serve, name)
