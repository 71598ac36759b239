"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ocr_server.answers import ChatAnswer, Form
from ocr_server.disconnect import unless_disconnected
from ocr_server.errors import InvalidRequest, Unavailable
from ocr_server.reading.product import Wanted, page_picture
from ocr_server.routes.common import ERRORS, begin, context, parsed
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
        raise Unavailable(reason, retry_after=state.engine.retry_after)  # before anything is fetched or decoded

    async def answer() -> Response:
        session = await begin(request, reading.sources, reading.prompt, reading.params)
        try:
            if reading.single_page and len(session.jobs) > 1:
                raise InvalidRequest(
                    "A structured response_format holds for one page; this request has more.", param="response_format"
                )
            blocks, raw = reading.options.output == "blocks", reading.options.output == "raw"
            pictures = reading.options.include_page_images
            chat = ChatAnswer(
                request=body,
                numbers=[job.number for job in session.jobs],
                form=Form(
                    separator=reading.separator,
                    markdown=not raw,
                    table_format=reading.options.table_format or "html",
                    copies=reading.copies,
                    reports=not raw or pictures or session.is_document or len(session.jobs) > 1,
                    json=reading.json,
                ),
                fingerprint=state.fingerprint,
            )
            finish = Wanted(figures=reading.options.include_figures) if blocks else None
            show = page_picture if pictures else None
            events = session.events(live=body.stream, show=show, finish=finish)
            if body.stream:
                return await event_stream(chat.chunks(events), shutdown_timeout=state.settings.SHUTDOWN_TIMEOUT)
            return Response((await chat.completion(events)).model_dump_json(), media_type="application/json")
        except BaseException:
            await session.close()
            raise

    return await unless_disconnected(request, answer())
