"""Traces for OpenTelemetry: a span for each request, and one for each stage of each of its pages.

No span holds anything of a document, a prompt, a URL or a key: of an exception, too, only the type is told. Off unless
the standard environment variables ask for it; what is off costs a look at a context variable.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from opentelemetry import propagate
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, Tracer, get_current_span
from opentelemetry.util.types import AttributeValue
from prometheus_client import Histogram
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

SERVICE = "deepseek-ocr"
EXPORTER, PROTOCOL = "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
ENDPOINT, ALL_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
UNTRACED = frozenset({"/health", "/livez", "/readyz", "/ping", "/metrics"})
"""Paths that are asked every few seconds by machines, and say nothing."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
"""Of the request that is being answered, if it is traced."""


def provider() -> TracerProvider | None:
    """As the environment has it; None if it asks for no traces, or for what is not installed.

    `OTEL_TRACES_EXPORTER` names exporters (otlp, console, none), with commas between. It is otlp if it isn't set and
    an endpoint is. The rest of OpenTelemetry's variables are read by its SDK. Call it once: it starts threads.
    """
    names = exporters()
    if not names:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        protocol = os.environ.setdefault(PROTOCOL, os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"))
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        made = TracerProvider(resource=resource, shutdown_on_exit=False)
        for name in names:
            kind = PROTOCOLS[protocol] if name == "otlp" else name
            (exporter,) = entry_points(group="opentelemetry_traces_exporter", name=kind)
            made.add_span_processor(BatchSpanProcessor(exporter.load()()))
    except (ImportError, KeyError, ValueError) as error:
        logger.error("no traces: %s=%s can't be had here (%r)", EXPORTER, ",".join(names), error)
        return None
    return made


def exporters() -> list[str]:
    """The names that `OTEL_TRACES_EXPORTER` asks for; empty for no traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    default = "otlp" if os.environ.get(ENDPOINT) or os.environ.get(ALL_ENDPOINT) else "none"
    names = [name.strip() for name in (os.environ.get(EXPORTER) or default).split(",")]
    return [name for name in names if name and name != "none"]


def engine_endpoint() -> str | None:
    """Where vLLM sends spans of its own: only if the endpoint for traces is set, by the variable that it reads too."""
    return os.environ.get(ENDPOINT) or None if "otlp" in exporters() else None


async def close(made: TracerProvider) -> None:
    """Send what has not been sent, within the exporter's time limit."""
    await asyncio.to_thread(made.shutdown)


@contextmanager
def stage(name: str, seconds: Histogram | None = None, **attributes: AttributeValue) -> Iterator[Span]:
    """A part of the work on a request: its time goes to Prometheus if it has a histogram, and into a span.

    Args:
        attributes: with `_` for `.` in their names. More can be set on the span that this yields.
    """
    with seconds.time() if seconds is not None else nullcontext():
        tracer = _tracer.get()
        if tracer is None:
            yield INVALID_SPAN
            return
        told = {key.replace("_", ".", 1): value for key, value in attributes.items()}
        with tracer.start_as_current_span(
            name, attributes=told, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                if isinstance(error, Exception):
                    span.set_status(StatusCode.ERROR)
                raise


def request_done(method: str, route: str, status: int) -> None:
    """Tell the span of a request, which is the current one, how it ended.

    Args:
        route: its template.
    """
    if _tracer.get() is None:
        return
    span = get_current_span()
    told = method if method in METHODS else "_OTHER"
    span.update_name(f"{told} {route}")
    span.set_attributes({"http.request.method": told, "http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def headers() -> dict[str, str] | None:
    """The current span as HTTP headers have it, so that vLLM's spans are below it; None if there is none."""
    if _tracer.get() is None:
        return None
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


class Traced:
    """ASGI middleware: a span around every request, below that which the client names in `traceparent`."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("ocr_server")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        token = _tracer.set(self._tracer)
        try:
            with self._tracer.start_as_current_span(
                "request",
                context=propagate.extract(given),
                kind=SpanKind.SERVER,
                attributes={"ocr.request_id": scope["state"]["request_id"]},
                record_exception=False,
                set_status_on_exception=False,
            ):
                await self._app(scope, receive, send)
        finally:
            _tracer.reset(token)
