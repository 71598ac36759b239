"""Runs the server on a Ray cluster. Each replica is a complete server with an engine on its own GPUs.

    pip install -r deploy/requirements_ray.txt
    export PYTHONPATH=$PWD                # in the project's folder: Ray's processes import from it
    export RAY_AUTH_MODE=token            # whoever reaches a cluster without a token can run programs on it
    ray get-auth-token --generate         # copy ~/.ray/auth_token to the other machines
    ray start --head                      # and `ray start --address=HEAD:6379` on the other machines, likewise
    serve deploy deploy/ray_serve.yaml    # again after every change of the file, for a rolling update

`deploy/ray_serve.yaml` contains the whole configuration. A replica accepts requests when its model is loaded. While its
engine restarts, requests wait. If its engine cannot be restarted, Ray replaces the replica.
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
"""Name of the autoscaling metric."""
HELD_SECONDS = 90.0
"""Maximum time that a request waits for an engine: a little longer than an engine takes to load."""
POLL_SECONDS = 0.25
"""Time between two checks whether there is an engine."""
METRICS_PORTS = 16
"""Number of ports to try for the metrics of a replica, and so the maximum number of replicas on a machine."""


class EngineGone(Exception):
    """The replica has no engine and must be replaced."""


class HeldBack:
    """ASGI middleware that lets POST requests wait while there is no engine.

    Ray then sees that the replica is busy, and sends requests to others. A replica that refused requests at once would
    look idle and would be sent even more of them. After `seconds` a request is passed on, and is answered with 503.
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
    """A replica of the server."""

    async def __init__(self, options: dict[str, Any], metrics_host: str, metrics_port: int | None) -> None:  # type: ignore[misc]
        """Load the model.

        Args:
            options: Settings, as in `config.Settings`.
            metrics_host: The address on which the metrics are served.
            metrics_port: The first port to try for the metrics of this replica. None for no metrics.
        """
        from config import Settings
        from ocr_server.engine.build import dedicated_engine, prepare_process
        from ocr_server.engine.environment import VLLM_LOG_LEVELS
        from ocr_server.observability import logs
        from ocr_server.transport.boundary import reachable_by

        self._settings = settings = for_a_cluster(Settings(**options))
        logs.set_up(settings.LOG_LEVEL, settings.LOG_FORMAT)
        logging.getLogger("vllm").setLevel(VLLM_LOG_LEVELS[settings.LOG_LEVEL])
        access = reachable_by("Ray's HTTP proxies", keys=settings.has_keys, origins=settings.cors_origins)
        logging.log(logging.INFO if settings.has_keys else logging.WARNING, access)
        prepare_process(settings)
        self._engine = dedicated_engine(settings)
        self._hopeless = asyncio.create_task(self._engine.given_up())
        await self._engine.loaded()
        if metrics_port is not None:
            serve_metrics(metrics_host, metrics_port)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from ocr_server.app import create_app
        from ocr_server.observability import tracing
        from ocr_server.runtime import Runtime

        self._runtime = Runtime.build(self._settings, self._engine)
        return HeldBack(create_app(self._runtime, tracing.provider()), self._engine)

    async def check_health(self) -> None:
        """Raise EngineGone if the replica has no engine and will not get one. Ray calls this periodically."""
        if self._hopeless.done():
            raise EngineGone("the engine has crashed too often")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the number of pages that are being read or waiting, since a request can have a thousand pages."""
        admission = self._runtime.admission
        return {PAGES: admission.pages_in_flight + admission.pages_waiting}


class ByPages:
    """Autoscaling policy: as many replicas as are needed for each to have `target` pages.

    Ray applies the minimum, the maximum and the delays.
    """

    def __init__(self, target: float = 64.0) -> None:
        """Args:
        target: Number of pages for each replica.
        """
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas, and the state of the policy, which has none."""
        of_replicas = (context.aggregated_metrics or {}).get(PAGES, {})
        queued = context.total_queued_requests or 0.0  # not yet in a replica; each has at least one page
        wanted = (sum(of_replicas.values()) + queued) / self._target
        return max(wanted, 1.0 if context.total_num_requests else 0.0), {}


def for_a_cluster(settings: Settings) -> Settings:
    """Turn batches off unless all replicas share a database and a storage.

    Otherwise each replica would have different files and batches.
    """
    if settings.DATABASE_URL.get_secret_value() and settings.STORAGE_URL:
        return settings
    return settings.model_copy(update={"BATCHES": False})


def serve_metrics(host: str, first_port: int) -> int | None:
    """Serve the metrics of this replica at `host`, on the first free port from `first_port` on, and return the port.

    Return None if none of `METRICS_PORTS` ports is free.
    """
    from prometheus_client import start_http_server

    from ocr_server.observability.metrics import registry

    for port in range(first_port, first_port + METRICS_PORTS):
        try:
            start_http_server(port, addr=host, registry=registry())
        except OSError:
            continue
        return port
    logging.warning("the metrics of this replica are not served: no port from %d on is free", first_port)
    return None


def build(args: dict[str, Any]) -> Application:
    """Build the application. `ray_serve.yaml` refers to this function.

    Args:
        args: `settings`, as in `config.Settings`, `metrics_host` and `metrics_port`.
    """
    settings = dict(args.get("settings") or {})
    return serve.deployment(OcrServer).bind(
        settings, args.get("metrics_host", "127.0.0.1"), args.get("metrics_port", 9464)
    )
