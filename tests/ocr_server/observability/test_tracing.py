"""Spans of requests and of their pages, collected by an exporter in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from config import Settings
from ocr_server.app import create_app
from ocr_server.errors import EngineFailure, Unavailable
from ocr_server.observability import tracing
from ocr_server.reading.page import PageDelta
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import (
    CHAT,
    FakeEngine,
    chat,
    client_of,
    delta,
    fails,
    message,
    picture,
    png,
    says,
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    def __iter__(self) -> Iterator[ReadableSpan]:
        return iter(self._kept.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def app(settings: Settings, engine: FakeEngine, spans: Spans) -> AsyncIterator[FastAPI]:
    app = create_app(Runtime.build(settings, engine), spans.provider)
    yield app
    await app.state.runtime.intake.close()


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def test_a_request_and_its_pages(client: httpx.AsyncClient, engine: FakeEngine, spans: Spans) -> None:
    engine.script = says("Hello", "you")
    body = chat(message(picture(), picture(png(9, 9)), "Free OCR."), ocr={"mode": "tiny"})
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200
    request = spans.one(f"POST {CHAT}")
    assert request.kind is SpanKind.SERVER
    assert attributes(request) == {
        "ocr.request_id": "mine",
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
    }
    assert request.context is not None
    assert request.parent is not None
    assert format_trace_id(request.context.trace_id) == TRACE
    assert format_span_id(request.parent.span_id) == PARENT
    below = [span for span in spans if span is not request]
    assert all(span.parent is not None and span.parent.span_id == request.context.span_id for span in below)
    assert sorted(span.name for span in below) == ["engine", "engine", "intake", "intake", "open", "queue", "queue"]
    for name in ("queue", "intake", "engine"):
        assert sorted(str(attributes(span)["ocr.page"]) for span in spans.named(name)) == ["0", "1"]
    assert attributes(min(spans.named("engine"), key=lambda span: str(attributes(span)["ocr.page"]))) == {
        "ocr.page": 0,
        "ocr.mode": "tiny",
        "ocr.image_tokens": 73,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert all(span.status.status_code is StatusCode.UNSET for span in spans)


async def test_streams_and_artifacts(client: httpx.AsyncClient, spans: Spans) -> None:
    """The span of a request ends with the last byte of the response. Making artifacts is a stage."""
    async with client.stream("POST", CHAT, json=chat(stream=True)) as answer:
        await answer.aread()
    request, engine = spans.one(f"POST {CHAT}"), spans.one("engine")
    assert engine.end_time is not None
    assert request.end_time is not None
    assert engine.end_time <= request.end_time
    assert not spans.named("output")
    body = {"model": "deepseek-ocr", "document": {"type": "image_url", "image_url": png()}}
    assert (await client.post("/v1/ocr", json=body)).status_code == 200
    assert attributes(spans.one("output")) == {"ocr.page": 0}


async def test_pages_read_again(client: httpx.AsyncClient, engine: FakeEngine, spans: Spans) -> None:
    async def script(number: int, _: object) -> AsyncIterator[PageDelta]:
        yield delta("Hello", finish="stop" if number else "repetition")

    engine.script = script  # type: ignore[assignment]
    assert (await client.post(CHAT, json=chat())).status_code == 200
    ends = [attributes(span)["gen_ai.response.finish_reasons"] for span in spans.named("engine")]
    assert ends == [("repetition",), ("stop",)]
    assert len(spans.named("queue")) == 1


async def test_spans_contain_nothing_of_the_document(
    client: httpx.AsyncClient, engine: FakeEngine, spans: Spans
) -> None:
    """Nor of the prompt, the answer, the URL, the key, or the message of an exception."""
    headers = {"authorization": "Bearer sk-secret", "cookie": "secret"}
    url = "https://secret.example/secret.png?secret"
    bodies = [
        chat(message(picture(), "A secret prompt."), ocr={"mode": "tiny"}),
        chat(message(picture(url), "Free OCR.")),
        chat(message(picture("data:image/png;base64,c2VjcmV0"), "Free OCR.")),
        chat(secret="secret"),
    ]
    for script in (
        says("secret"),
        fails(EngineFailure("secret")),
        fails(RuntimeError("secret")),
        fails(Unavailable("secret")),
    ):
        engine.script = script
        for body in bodies:
            await client.post(f"{CHAT}?secret=secret", json=body, headers=headers)
    await client.get("/v1/models/secret")
    await client.get("/secret?secret")
    await client.request("SECRET", "/secret")
    assert len(spans.named("engine")) == 8
    assert len(spans.named(f"POST {CHAT}")) == 16
    assert {span.name for span in spans} >= {"GET none", "_OTHER none", "GET /v1/models/{model_id}"}
    for span in spans:
        assert "secret" not in span.to_json().lower()
        assert not span.events


@pytest.mark.parametrize(
    ("error", "status"), [(EngineFailure("no"), 500), (Unavailable("no"), 503), (RuntimeError(), 500)]
)
async def test_failures_are_recorded(
    client: httpx.AsyncClient, engine: FakeEngine, spans: Spans, error: Exception, status: int
) -> None:
    engine.script = fails(error)
    assert (await client.post(CHAT, json=chat())).status_code == status
    assert attributes(spans.one("engine"))["error.type"] == type(error).__name__
    assert attributes(spans.one(f"POST {CHAT}"))["http.response.status_code"] == status
    for name in ("engine", f"POST {CHAT}"):
        assert spans.one(name).status.status_code is StatusCode.ERROR
    assert spans.one("intake").status.status_code is StatusCode.UNSET


async def test_an_invalid_request_is_not_an_error_of_the_server(client: httpx.AsyncClient, spans: Spans) -> None:
    assert (await client.post(CHAT, content=b"{")).status_code == 400
    assert [(span.name, span.status.status_code) for span in spans] == [(f"POST {CHAT}", StatusCode.UNSET)]


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/ping", "/metrics"])
async def test_probes_are_not_traced(client: httpx.AsyncClient, spans: Spans, path: str) -> None:
    assert (await client.get(path)).status_code == 200
    assert not list(spans)


async def test_an_application_without_a_provider_is_not_traced(
    settings: Settings, spans: Spans, client: httpx.AsyncClient
) -> None:
    """Even if another application in the same process is traced."""
    engine = FakeEngine()
    other = create_app(Runtime.build(settings, engine))
    seen: list[object] = []

    async def script(_: int, __: object) -> AsyncIterator[PageDelta]:
        seen.append(tracing.headers())
        yield delta("Hello", finish="stop")

    engine.script = script  # type: ignore[assignment]
    async with client_of(other) as plain:
        assert (await plain.post(CHAT, json=chat())).status_code == 200
    await other.state.runtime.intake.close()
    assert seen == [None]
    assert not list(spans)


async def test_the_engine_gets_the_current_span(client: httpx.AsyncClient, engine: FakeEngine, spans: Spans) -> None:
    seen: list[dict[str, str] | None] = []

    async def script(_: int, __: object) -> AsyncIterator[PageDelta]:
        seen.append(tracing.headers())
        yield delta("Hello", finish="stop")

    engine.script = script  # type: ignore[assignment]
    await client.post(CHAT, json=chat())
    context = spans.one("engine").context
    assert context is not None
    assert seen[0] is not None
    assert seen[0]["traceparent"].split("-")[1:3] == [
        format_trace_id(context.trace_id),
        format_span_id(context.span_id),
    ]


async def test_the_last_spans_are_sent_when_the_server_stops(settings: Settings) -> None:
    class Watched(TracerProvider):
        shut = False

        def shutdown(self) -> None:
            self.shut = True
            super().shutdown()

    made = Watched(shutdown_on_exit=False)
    app = create_app(Runtime.build(settings, FakeEngine()), made)
    async with app.router.lifespan_context(app):
        assert not made.shut
    assert made.shut


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (tracing.EXPORTER, tracing.PROTOCOL, tracing.ENDPOINT, tracing.ALL_ENDPOINT, "OTEL_SDK_DISABLED"):
            monkeypatch.setenv(name, "")  # so that changes by the code under test are undone, too
            monkeypatch.delenv(name)

    @pytest.mark.parametrize(
        ("variables", "names", "engine"),
        [
            ({}, [], None),
            ({tracing.EXPORTER: "none", tracing.ALL_ENDPOINT: "http://here:1"}, [], None),
            ({tracing.EXPORTER: "console"}, ["console"], None),
            ({tracing.EXPORTER: "otlp, console"}, ["otlp", "console"], None),
            ({tracing.ALL_ENDPOINT: "http://here:1"}, ["otlp"], None),
            ({tracing.ENDPOINT: "http://here:1/v1/traces"}, ["otlp"], "http://here:1/v1/traces"),
            ({tracing.ENDPOINT: "http://here:1", tracing.EXPORTER: "console"}, ["console"], None),
            ({tracing.ENDPOINT: "http://here:1", "OTEL_SDK_DISABLED": "TRUE"}, [], None),
        ],
    )
    def test_exporters(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: list[str], engine: str | None
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert tracing.exporters() == names
        assert tracing.engine_endpoint() == engine
        made = tracing.provider()
        assert (made is None) is (not names)
        if made is not None:
            assert made.resource.attributes["service.name"] == "deepseek-ocr"
            made.shutdown()

    def test_the_name_of_the_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(tracing.EXPORTER, "console")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "scans")
        made = tracing.provider()
        assert made is not None
        assert made.resource.attributes["service.name"] == "scans"
        made.shutdown()

    @pytest.mark.parametrize("variables", [{tracing.EXPORTER: "pigeon"}, {tracing.PROTOCOL: "http/pigeon"}])
    def test_an_exporter_that_is_not_available_is_logged_and_ignored(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str]
    ) -> None:
        monkeypatch.setenv(tracing.ALL_ENDPOINT, "http://here:1")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert tracing.provider() is None
        assert "tracing is disabled" in caplog.text
