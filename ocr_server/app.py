"""Builds the application from its components: routes, middleware, error handlers, lifespan."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from ocr_server import __version__
from ocr_server.batches.service import batches_for
from ocr_server.dialects.registry import DIALECTS, apis
from ocr_server.dialects.service.web_page import WebPage
from ocr_server.dialects.validation import invalid_request
from ocr_server.errors import ApiError, UnexpectedFailure, error_body, out_of_resources
from ocr_server.memory import MemoryBudget
from ocr_server.observability import metrics, tracing
from ocr_server.observability.event_loop import LoopWatchdog
from ocr_server.runtime import MEGA, Runtime
from ocr_server.transport.auth import ApiKeys
from ocr_server.transport.bodies import BodyLimit
from ocr_server.transport.boundary import BrowserBoundary, RelativeRedirects
from ocr_server.transport.disconnect import CLIENT_CLOSED_REQUEST
from ocr_server.transport.keys import KeyRing, parse_keys
from ocr_server.transport.middleware import (
    IGNORED,
    REQUEST_ID,
    CutOff,
    HeadAsGet,
    IgnoredParameters,
    Observed,
    RequestId,
    SafeHeaders,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from config import Settings

logger = logging.getLogger(__name__)

MAX_PATH_CHARS = 200
"""How much of a path an error repeats."""
FORM_BYTES = 100_000
"""Allowance for everything in an upload form except its file: bytes."""


def create_app(runtime: Runtime, traces: TracerProvider | None = None) -> FastAPI:
    """Return the server's ASGI application. Its lifespan starts the engine and closes the runtime and `traces`."""
    settings = runtime.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runtime.engine.start()
        if batches is not None:
            batches.start()
        try:
            with metrics.watching(runtime.engine, runtime.admission, runtime.memory):
                async with LoopWatchdog(expected=runtime.engine.unavailable) as app.state.watchdog:
                    yield
        finally:
            if batches is not None:
                await batches.close()
            await runtime.close()
            if traces is not None:
                await tracing.close(traces)

    ring = KeyRing(
        parse_keys(settings.API_KEYS.get_secret_value()),
        Path(settings.API_KEYS_FILE) if settings.API_KEYS_FILE else None,
    )
    batches = batches_for(runtime, DIALECTS, ring) if settings.serves_batches else None
    app = FastAPIOffline(  # its /docs loads nothing from other hosts
        title="DeepSeek-OCR API server",
        version=__version__,
        description="DeepSeek-OCR behind OpenAI's Chat Completions and Responses APIs and Mistral's OCR API.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.runtime = runtime
    app.state.batches = batches
    served = apis(settings)
    app.state.endpoints = {name: path for api in served for name, path in api.endpoints.items()}
    for api in served:
        app.include_router(api.router)
    app.mount("/ui", WebPage(settings.family), name="ui")
    _add_middleware(app, settings, runtime.memory, ring, traces)
    _handle_errors(app)
    _document_wire_types(app, [model for api in served for model in api.wire_types])
    return app


def _add_middleware(
    app: FastAPI, settings: Settings, memory: MemoryBudget, ring: KeyRing, traces: TracerProvider | None
) -> None:
    """Add the middleware from the innermost to the outermost: the one added last is outermost."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        BodyLimit,
        limit=settings.MAX_BODY_MB * MEGA,
        limits={"/v1/files": settings.MAX_FILE_MB * MEGA + FORM_BYTES} if settings.serves_batches else {},
        memory=memory,
        timeout=settings.RECEIVE_TIMEOUT,
    )
    app.add_middleware(ApiKeys, ring=ring, metrics_need_one=settings.METRICS_KEY_REQUIRED)
    origins = settings.cors_origins
    app.add_middleware(
        BrowserBoundary,
        ring=ring,
        own_name=socket.gethostname(),
        allowed_hosts=settings.allowed_hosts,
        origins=origins,
    )
    if origins:
        # Outside of both, so that preflight requests need no key and a page can read why it was refused.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,  # a page of a public site may use a server in a private network
            expose_headers=[REQUEST_ID, IGNORED, "retry-after"],
        )
    app.add_middleware(IgnoredParameters)
    app.add_middleware(SafeHeaders)
    app.add_middleware(RelativeRedirects)
    app.add_middleware(Observed)
    app.add_middleware(CutOff)
    if traces is not None:
        app.add_middleware(tracing.Traced, provider=traces)
    app.add_middleware(RequestId)


def _handle_errors(app: FastAPI) -> None:
    """Answer every error with OpenAI's error body."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @app.exception_handler(OSError)
    @app.exception_handler(MemoryError)
    @app.exception_handler(RuntimeError)
    async def machine_trouble(request: Request, error: Exception) -> JSONResponse:
        exhausted = out_of_resources(error)
        if exhausted is None:
            raise error
        logger.error("the machine has run out of resources: %r", error)
        return await api_error(request, exhausted)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # The first part of a place says whether it is in the query, the path or a header.
        problems = [{**each, "loc": each["loc"][1:]} for each in error.errors()]
        return await api_error(request, invalid_request(cast(list[ErrorDetails], problems)))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        message, headers = str(error.detail), error.headers
        if error.status_code in (404, 405):
            path = request.url.path[:MAX_PATH_CHARS]
            message = f"{request.method} {path} does not exist; GET / lists the available endpoints."
        if error.status_code == 405:
            headers = {"allow": ", ".join(_methods_of(request))}
        body = error_body(message, type_="invalid_request_error", code=code)
        return JSONResponse(body, status_code=error.status_code, headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody receives it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, _: Exception) -> JSONResponse:
        # Starlette runs this outside of all middleware and then raises the error again, so that it is logged.
        request_id = getattr(request.state, "request_id", "")
        logger.error("request %s failed unexpectedly", request_id)
        headers = {"x-request-id": request_id, "x-content-type-options": "nosniff"}
        return JSONResponse(UnexpectedFailure().body(), status_code=500, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """Return all methods of the requested path. Starlette's own list is that of the first route of the path."""
    methods: set[str] = set()
    for route in request.app.router.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or {"GET"}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _document_wire_types(app: FastAPI, wire_types: Sequence[type[BaseModel]]) -> None:
    """Add types to the OpenAPI schema that FastAPI does not see because they are parsed or sent by hand."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemas = schema["components"]["schemas"]
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # FastAPI's own; here validation errors are 400
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for model in wire_types:
            definition = model.model_json_schema(ref_template="#/components/schemas/{model}")
            definitions = {**definition.pop("$defs", {}), model.__name__: definition}
            for name, each in definitions.items():
                schemas.setdefault(name, each)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
