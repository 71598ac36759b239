"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ocr_server.answers import ChatAnswer
from ocr_server.disconnect import unless_disconnected
from ocr_server.errors import InvalidRequest, Unavailable
from ocr_server.reading.page import Page
from ocr_server.reading.reader import joined, read_pages
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
    """Read the pictures of a chat request. Each picture is read as a page; the answers are joined in order."""
    state = context(request)
    body = await parsed(request, ChatCompletionRequest)
    reading = translate(body, state.settings)
    if reason := state.engine.unavailable():
        raise Unavailable(reason)  # before anything is fetched or decoded

    async def answer() -> Response:
        images = await state.intake.pages(reading.images, most=state.settings.MAX_IMAGES)
        if reading.single_page and len(images) > 1:
            raise InvalidRequest(
                "A structured response_format holds for one page; this request has more.", param="response_format"
            )
        pages = [Page(image, reading.prompt, reading.params) for image in images]
        parts = joined(read_pages(state.engine, pages), copies=reading.copies)
        chat = ChatAnswer(model=reading.model, request=body, pages=pages, fingerprint=state.fingerprint)
        if body.stream:
            return await event_stream(chat.chunks(parts), shutdown_timeout=state.settings.SHUTDOWN_TIMEOUT)
        return Response((await chat.completion(parts)).model_dump_json(), media_type="application/json")

    return await unless_disconnected(request, answer())
