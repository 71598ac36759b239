"""The server on a Ray cluster: each replica is the whole server, with an engine on GPUs of its own.

    pip install -r deploy/requirements_ray.txt
    ray start --head                      # and `ray start --address=HEAD:6379` on the others
    serve deploy deploy/ray_serve.yaml    # once more after every change of it: a rolling update

`deploy/ray_serve.yaml` has everything that is to be set. A replica takes requests when its model is loaded; one whose
engine dies holds them back until there is another; one whose engine can't be had is replaced.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ray import serve

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.config import AutoscalingContext
    from starlette.types import ASGIApp, Receive, Scope, Send

    from config import Settings
    from ocr_server.reading.engine import Engine

PAGES = "pages"
HELD_SECONDS = 90.0
"""How long a request is held back for an engine: a little longer than one takes to load."""
POLL_SECONDS = 0.25
METRICS_PORTS = 16
"""Ports tried for a replica's metrics: as many replicas can be on a machine."""


class EngineGone(Exception):
    """Tells Ray that a replica is to be replaced."""


class HeldBack:
    """Has requests wait while there is no engine, so that the replica is seen to be busy and others are asked.

    A replica that refused them at once would look idle, and be sent all the more.
    """

    def __init__(self, app: ASGIApp, engine: Engine, seconds: float = HELD_SECONDS) -> None:
        self._app = app
        self._engine = engine
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            tries = round(self._seconds / POLL_SECONDS)
            while tries and self._engine.unavailable():
                tries -= 1
                await asyncio.sleep(POLL_SECONDS)
        await self._app(scope, receive, send)


@serve.ingress()
class OcrServer:
    """One replica."""

    async def __init__(self, options: dict[str, Any], metrics_port: int | None) -> None:  # type: ignore[misc]
        """Load the model.

        Args:
            options: settings, as in `config.Settings`.
            metrics_port: the first of those on which a replica's metrics can be had; None for none.
        """
        from config import Settings
        from ocr_server.engine.build import dedicated_engine, prepare_process
        from ocr_server.engine.environment import VLLM_LOG_LEVELS
        from ocr_server.observability import logs

        self._settings = settings = for_a_cluster(Settings(**options))
        logs.set_up(settings.LOG_LEVEL, settings.LOG_FORMAT)
        logging.getLogger("vllm").setLevel(VLLM_LOG_LEVELS[settings.LOG_LEVEL])
        prepare_process(settings)
        self._engine = dedicated_engine(settings)
        self._hopeless = asyncio.create_task(self._engine.given_up())
        await self._engine.loaded()
        if metrics_port is not None:
            serve_metrics(metrics_port)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from ocr_server.app import create_app
        from ocr_server.observability import tracing
        from ocr_server.runtime import Runtime

        self._runtime = Runtime.build(self._settings, self._engine)
        return HeldBack(create_app(self._runtime, tracing.provider()), self._engine)

    async def check_health(self) -> None:
        """Raises EngineGone when the replica has no engine and will have none."""
        if self._hopeless.done():
            raise EngineGone("the engine has died too often")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Pages that are read or wait here: a request may have a thousand."""
        admission = self._runtime.admission
        return {PAGES: admission.pages_in_flight + admission.pages_waiting}


class ByPages:
    """The autoscaling policy: as many replicas as it takes for each to have `target` pages. Ray applies the bounds and
    delays."""

    def __init__(self, target: float = 64.0) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        of_replicas = (context.aggregated_metrics or {}).get(PAGES, {})
        not_there_yet = context.total_queued_requests or 0.0  # of which each has a page at least
        wanted = (sum(of_replicas.values()) + not_there_yet) / self._target
        return max(wanted, 1.0 if context.total_num_requests else 0.0), {}


def for_a_cluster(settings: Settings) -> Settings:
    """Batches are for servers that share a database and a storage: with files of its own, each replica would know
    other batches than the next."""
    if settings.DATABASE_URL.get_secret_value() and settings.STORAGE_URL:
        return settings
    return settings.model_copy(update={"BATCHES": False})


def serve_metrics(first_port: int) -> int | None:
    """Prometheus' page of this replica alone, on the first port from `first_port` on that is free."""
    from prometheus_client import start_http_server

    from ocr_server.observability.metrics import registry

    for port in range(first_port, first_port + METRICS_PORTS):
        try:
            start_http_server(port, registry=registry())
        except OSError:
            continue
        return port
    logging.warning("no port is free for this replica's metrics, from %d on", first_port)
    return None


def build(args: dict[str, Any]) -> Application:
    """What `ray_serve.yaml` names. `args`: `settings`, as in `config.Settings`, and `metrics_port`."""
    return serve.deployment(OcrServer).bind(dict(args.get("settings") or {}), args.get("metrics_port", 9464))
