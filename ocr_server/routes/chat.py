"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ocr_server.answers import ChatAnswer, Form
from ocr_server.disconnect import unless_disconnected
from ocr_server.errors import InvalidRequest, Unavailable
from ocr_server.reading.jobs import Documents
from ocr_server.reading.product import Wanted
from ocr_server.routes.common import ERRORS, context, parsed
from ocr_server.schemas.chat import ChatCompletion, ChatCompletionRequest
from ocr_server.stream import event_stream
from ocr_server.translate import translate

router = APIRouter(tags=["Chat"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}}},
        }
    },
    responses={
        200: {"content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ChatCompletionChunk"}}}},
        **ERRORS,
    },
)
async def create_chat_completion(request: Request) -> Response:
    """Read the pictures and documents of a chat request, page by page; the pages' answers are joined in order."""
    state = context(request)
    body = await parsed(request, ChatCompletionRequest)
    reading = translate(body, state.settings)
    if reason := state.engine.unavailable():
        raise Unavailable(reason)  # before anything is fetched or decoded

    async def answer() -> Response:
        documents = Documents(reading.sources, await state.intake.open(reading.sources))
        jobs = documents.jobs(reading.prompt, reading.params)
        if reading.single_page and len(jobs) > 1:
            await documents.close()
            raise InvalidRequest(
                "A structured response_format holds for one page; this request has more.", param="response_format"
            )
        blocks = reading.options.output == "blocks"
        chat = ChatAnswer(
            request=body,
            sources=[(job.source, job.number) for job in jobs],
            form=Form(
                separator=reading.separator,
                markdown=reading.options.output != "raw",
                table_format=reading.options.table_format or "html",
                copies=reading.copies,
                reports=reading.options.output != "raw" or documents.is_document or len(jobs) > 1,
                json=reading.json,
            ),
            fingerprint=state.fingerprint,
        )
        finish = Wanted(figures=reading.options.include_figures) if blocks else None
        events = documents.closing(state.reader.read(jobs, live=body.stream, finish=finish))
        if body.stream:
            return await event_stream(chat.chunks(events), shutdown_timeout=state.settings.SHUTDOWN_TIMEOUT)
        return Response((await chat.completion(events)).model_dump_json(), media_type="application/json")

    return await unless_disconnected(request, answer())
