"""`PUT /process`: the pages of a file as markdown, for Open WebUI's external document loader.

The body is the file itself. The loader can send no options, so that the settings of the server apply.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import unquote

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from ocr_server.dialects.dialect import Api
from ocr_server.dialects.http import ERRORS, caller_of, runtime_of
from ocr_server.dialects.options import SharedOptions
from ocr_server.dialects.page_report import page_report
from ocr_server.dialects.process.wire import PageMetadata, ProcessedPage
from ocr_server.dialects.wire import ReadingOptions
from ocr_server.errors import ApiError, EngineFailure, InputError
from ocr_server.output.markdown import to_markdown
from ocr_server.output.tables import html_tables_to_markdown
from ocr_server.plan import ReadPlan
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import PageReading
from ocr_server.session import Session
from ocr_server.transport.disconnect import unless_disconnected

if TYPE_CHECKING:
    from config import Settings

PATH = "/process"
MAX_NAME_CHARS = 255
BODY = "body"
"""Name of the file in errors."""
router = APIRouter(tags=["Open WebUI"])
_PAGES = TypeAdapter(list[ProcessedPage])


@router.put(
    PATH,
    response_model=list[ProcessedPage],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses=ERRORS,
)
@router.put(f"/v1{PATH}", include_in_schema=False)
async def process_file(request: Request) -> Response:
    """Read a PDF or picture, and return its pages as markdown, for Open WebUI's external document loader."""
    data = await request.body()
    return await unless_disconnected(request, _answer(request, plan_process(data, runtime_of(request).settings)))


def plan_process(data: bytes, settings: Settings) -> ReadPlan:
    """Return the plan for a file: the settings of the server apply."""
    shared = SharedOptions(ReadingOptions(), None, settings, prefix="", first_page=1)
    return ReadPlan(
        family=settings.family,
        sources=(shared.source(data, BODY, mode=None),),
        prompt=settings.DEFAULT_PROMPT,
        decoding=Decoding(guard=shared.guard()),
    )


async def _answer(request: Request, plan: ReadPlan) -> Response:
    session = await runtime_of(request).begin(plan, caller_of(request))
    name = unquote(request.headers.get("x-filename", ""))[:MAX_NAME_CHARS]
    return Response(_PAGES.dump_json(await _pages(session, name)), media_type="application/json")


async def _pages(session: Session, name: str) -> list[ProcessedPage]:
    """Read all pages. Closes the session. Raises ApiError if none can be read."""
    pages, errors = [], []
    async with aclosing(session.events()) as events:
        async for event in events:
            if isinstance(event, PageReading):
                pages.append(_page(event, name, total=len(session.jobs)))
                if event.error is not None:
                    errors.append(event.error)
    if len(errors) == len(pages):  # the loader shows only the error of a response
        error = errors[0]
        if isinstance(error, InputError):
            raise session.plan.api_error(error)
        raise error if isinstance(error, ApiError) else EngineFailure(error.message, code=error.code)
    return pages


def _page(reading: PageReading, name: str, *, total: int) -> ProcessedPage:
    report = page_report(reading)
    return ProcessedPage(
        page_content=html_tables_to_markdown(to_markdown(reading.text())),
        metadata=PageMetadata(
            source=name,
            page=reading.number,
            page_label=str(reading.number + 1),
            total_pages=total,
            finish_reason=report.finish_reason,
            error=None if report.error is None else report.error.message,
        ),
    )


PROCESS = Api(router, {"Open WebUI's external document loader": f"PUT {PATH}"})
