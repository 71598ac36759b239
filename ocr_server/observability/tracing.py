"""OpenTelemetry traces: a span for each request, and one for each stage of each of its pages.

Spans contain nothing of a document, a prompt, a URL or a key. Of an exception, only the type is recorded. Tracing is
off unless the standard environment variables enable it. While it is off, its cost is reading a context variable.
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
"""Paths that are polled every few seconds. Their requests are not traced."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
"""Tracer of the current request. None if the request is not traced."""


def provider() -> TracerProvider | None:
    """Create the tracer provider that the environment configures. Call this only once, since it starts threads.

    `OTEL_TRACES_EXPORTER` names one or more exporters (otlp, console, none), separated by commas. If it is not set, but
    an endpoint is, the default is otlp. OpenTelemetry's SDK reads the other variables.

    Returns:
        The provider, or None if no exporter is configured or an exporter is not installed.
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
        logger.error(
            "tracing is disabled: the exporter of %s=%s is not available (%r)", EXPORTER, ",".join(names), error
        )
        return None
    return made


def exporters() -> list[str]:
    """Return the names of the configured exporters. The list is empty if tracing is off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    default = "otlp" if os.environ.get(ENDPOINT) or os.environ.get(ALL_ENDPOINT) else "none"
    names = [name.strip() for name in (os.environ.get(EXPORTER) or default).split(",")]
    return [name for name in names if name and name != "none"]


def engine_endpoint() -> str | None:
    """Return the endpoint to which vLLM sends its own spans, or None.

    vLLM sends spans only if `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, which it reads as well.
    """
    return os.environ.get(ENDPOINT) or None if "otlp" in exporters() else None


async def close(made: TracerProvider) -> None:
    """Send the remaining spans, within the time limit of the exporter, and shut down."""
    await asyncio.to_thread(made.shutdown)


@contextmanager
def stage(name: str, seconds: Histogram | None = None, **attributes: AttributeValue) -> Iterator[Span]:
    """Measure a stage of the work on a request: as a span, and optionally in a Prometheus histogram.

    Args:
        name: Name of the span.
        seconds: Histogram for the duration.
        attributes: Attributes of the span. The first `_` of a name stands for `.`. More can be set on the span that
            this context manager yields.
    """
    with seconds.time() if seconds is not None else nullcontext():
        tracer = _tracer.get()
        if tracer is None:
            yield INVALID_SPAN
            return
        values = {key.replace("_", ".", 1): value for key, value in attributes.items()}
        with tracer.start_as_current_span(
            name, attributes=values, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                if isinstance(error, Exception):
                    span.set_status(StatusCode.ERROR)
                raise


def request_done(method: str, route: str, status: int) -> None:
    """Record the result of a request in its span, which must be the current one.

    Args:
        method: HTTP method.
        route: Template of the route.
        status: HTTP status.
    """
    if _tracer.get() is None:
        return
    span = get_current_span()
    known = method if method in METHODS else "_OTHER"
    span.update_name(f"{known} {route}")
    span.set_attributes({"http.request.method": known, "http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def headers() -> dict[str, str] | None:
    """Return HTTP headers for the current span, so that vLLM's spans become its children. None without a span."""
    if _tracer.get() is None:
        return None
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


class Traced:
    """ASGI middleware that creates a span for every request, as a child of the span in the `traceparent` header."""

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
