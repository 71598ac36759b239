"""`POST /v1/ocr`: the pages of a document as markdown, figures and blocks, compatible with Mistral's OCR API."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import BinaryIO

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

from ocr_server.dialects.dialect import Api, Dialect
from ocr_server.dialects.http import ERRORS, caller_of, form_of, is_form, note_ignored, parsed, runtime_of
from ocr_server.dialects.ocr.plan import plan_ocr
from ocr_server.dialects.ocr.response import OcrPages
from ocr_server.dialects.ocr.wire import OcrDoneEvent, OcrPageEvent, OcrParameters, OcrRequest, OcrResponse
from ocr_server.dialects.validation import parse_body, parse_fields
from ocr_server.errors import InvalidRequest
from ocr_server.output.formats import FORMATS, FinishedPage
from ocr_server.plan import ReadPlan
from ocr_server.runtime import Runtime
from ocr_server.session import Session
from ocr_server.transport.disconnect import unless_disconnected
from ocr_server.transport.event_stream import event_stream

PATH = "/v1/ocr"
router = APIRouter(tags=["OCR"])
SENT_BYTES = 262_144
"""Size of the pieces in which a file is read and sent."""

_BODY = {"$ref": "#/components/schemas/OcrRequest"}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}},
    "additionalProperties": {"type": "string", "description": "Any field of OcrRequest except document."},
}
_MEDIA_TYPES = {each.media_type for each in FORMATS.values() if each.file is not None} | {"image/png"}


@router.post(
    PATH,
    response_model=OcrResponse,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _BODY}, "multipart/form-data": {"schema": _FORM}},
        }
    },
    responses={
        200: {
            "content": {
                "text/event-stream": {"schema": {"$ref": "#/components/schemas/OcrPageEvent"}},
                **{media_type: {} for media_type in sorted(_MEDIA_TYPES)},
            }
        },
        **ERRORS,
    },
)
async def read_document(request: Request) -> Response:
    """Read a PDF or picture. Upload it as the field `file` of a form, or send JSON with its URL or data URI."""
    settings = runtime_of(request).settings
    if is_form(request):
        body, data = await _uploaded(request)
        plan = plan_ocr(body, settings, data, parameter="file")
    else:
        body = await parsed(request, OcrRequest)
        plan = plan_ocr(body, settings)
    return await unless_disconnected(request, _answer(request, body, plan))


async def _answer(request: Request, body: OcrParameters, plan: ReadPlan) -> Response:
    runtime = runtime_of(request)
    session = await runtime.begin(plan, caller_of(request))
    try:
        if body.stream:
            chunks = _chunks(body, session, runtime)
            return await event_stream(chunks, shutdown_timeout=runtime.settings.SHUTDOWN_TIMEOUT)
        write = FORMATS[body.output].file if body.output in FORMATS else None
        if write is None:
            return Response(await respond(body, session, runtime), media_type="application/json")
        async with aclosing(_finished(body, session)) as pages:
            file = await write(pages, session.is_document)
        if isinstance(file.content, bytes | str):
            return Response(file.content, media_type=file.media_type)
        return _file_response(file.content, file.media_type)
    except BaseException:
        await session.close()
        raise


def _file_response(file: BinaryIO, media_type: str) -> StreamingResponse:
    """Return a response that sends an open file and closes it."""
    return StreamingResponse(
        iter(partial(file.read, SENT_BYTES), b""),
        media_type=media_type,
        headers={"content-length": str(os.fstat(file.fileno()).st_size)},
        background=BackgroundTask(file.close),
    )


async def respond(request: OcrParameters, session: Session, runtime: Runtime) -> str:
    """Read all pages and return the response as JSON. Closes the session."""
    pages = OcrPages(request, session)
    try:
        made = [page async for _, page in pages.pages()]
    except BaseException:
        await session.close()
        raise
    model = request.model or runtime.settings.MODEL_NAME
    return OcrResponse(pages=made, model=model, usage_info=pages.usage).model_dump_json()


async def _chunks(body: OcrParameters, session: Session, runtime: Runtime) -> AsyncGenerator[str]:
    pages, done = OcrPages(body, session), 0
    async with aclosing(pages.pages()) as read:
        async for _, page in read:
            done += 1
            yield OcrPageEvent(done=done, total=len(session.jobs), page=page).model_dump_json()
    yield OcrDoneEvent(model=body.model or runtime.settings.MODEL_NAME, usage_info=pages.usage).model_dump_json()


async def _finished(body: OcrParameters, session: Session) -> AsyncGenerator[FinishedPage]:
    async with aclosing(OcrPages(body, session).pages()) as read:
        async for reading, page in read:
            yield FinishedPage(reading, page.markdown)


async def _uploaded(request: Request) -> tuple[OcrParameters, bytes]:
    """Return the parameters and the file of a form."""
    async with form_of(request, max_fields=100) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequest("The form has no field file. With curl, add -F file=@invoice.pdf.", param="file")
        data = await file.read()
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    if "document" in fields:
        raise InvalidRequest("In a form, the document is the field file; document is not allowed.", param="document")
    parameters = parse_fields(fields, OcrParameters)
    note_ignored(request, parameters)
    return parameters, data


def check_batchable(request: OcrParameters) -> None:
    """Raise InvalidRequest for a stream and for an output other than JSON."""
    if request.stream:
        raise InvalidRequest("Requests of a batch cannot be streamed.", param="stream")
    if request.output != "json":
        raise InvalidRequest("In requests of a batch, output must be json.", param="output")


OCR: Dialect[OcrParameters] = Dialect(
    path=PATH,
    api=Api(router, {"documents": f"POST {PATH}"}, (OcrRequest, OcrPageEvent)),
    parse=partial(parse_body, model=OcrRequest),
    parse_template=partial(parse_body, model=OcrParameters),
    plan=plan_ocr,
    check_batchable=check_batchable,
    respond=respond,
)
