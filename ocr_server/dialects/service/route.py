"""Information about the server: `/`, the health probes, `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ocr_server import __version__
from ocr_server.dialects.dialect import Api
from ocr_server.dialects.http import runtime_of
from ocr_server.dialects.service.wire import ApiInformation, Health, Liveness, Readiness
from ocr_server.observability.metrics import registry
from ocr_server.output.formats import FORMATS
from ocr_server.transport.negotiation import PAGE, prefers_html

router = APIRouter(tags=["Service"])


@router.head("/", include_in_schema=False, response_model=None)
@router.get("/", response_model=ApiInformation, responses={307: {"description": "Redirects browsers to the web page."}})
async def api_information(request: Request, response: Response) -> ApiInformation | Response:
    """List what the server offers. A browser, which asks for HTML, is redirected to the web page at `/ui/`."""
    if prefers_html(request.headers.get("accept", "")):
        return Response(status_code=307, headers={"location": PAGE.lstrip("/"), "vary": "accept"})
    response.headers["vary"] = "accept"
    runtime = runtime_of(request)
    family = runtime.settings.family
    return ApiInformation(
        name="DeepSeek-OCR API server",
        version=__version__,
        model=runtime.settings.MODEL_NAME,
        checkpoint=runtime.settings.checkpoint_name,
        endpoints=request.app.state.endpoints,
        modes=list(family.modes),
        prompts=list(family.prompts.values()),
        formats={each.name: each.description for each in FORMATS.values()},
        documentation="/docs",
    )


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={503: {"model": Health}})
async def health(request: Request, response: Response) -> Health:
    """Return 200 if pages can be read, or 503 with the reason, as while the model is being loaded."""
    runtime = runtime_of(request)
    if (reason := runtime.engine.unavailable()) is not None:
        response.status_code = 503
        return Health(status="unavailable", reason=reason, model=runtime.settings.MODEL_NAME, version=__version__)
    return Health(status="ok", model=runtime.settings.MODEL_NAME, version=__version__)


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez() -> Liveness:
    """Return 200 as long as the process answers, whatever the state of the engine."""
    return Liveness()


@router.head("/ping", include_in_schema=False)
@router.get("/ping", response_class=Response)
async def ping() -> Response:
    """Return 200 with an empty body, for health checks that look at the status only."""
    return Response()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Return 200 if pages can be read, or 503 with the reason, and the number of pages in flight and waiting."""
    runtime = runtime_of(request)
    reason = runtime.engine.unavailable()
    response.status_code = 200 if reason is None else 503
    return Readiness(
        status="ready" if reason is None else "unavailable",
        reason=reason,
        version=__version__,
        pages_in_flight=runtime.admission.pages_in_flight,
        pages_waiting=runtime.admission.pages_waiting,
    )


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics() -> Response:
    """Return the metrics of the server (`ocr_…`) and of vLLM (`vllm:…`) in Prometheus' text format."""
    return Response(generate_latest(registry()), media_type=CONTENT_TYPE_LATEST)


SERVICE = Api(
    router,
    {
        "health": "GET /health",
        "liveness": "GET /livez",
        "readiness": "GET /readyz",
        "ping": "GET /ping",
        "metrics": "GET /metrics",
        "web page": "GET /ui/",
        "interactive documentation": "GET /docs",
        "schema": "GET /openapi.json",
    },
)
