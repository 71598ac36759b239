"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ocr_server.dialects.chat.wire import ChatCompletion, ChatCompletionRequest
from ocr_server.dialects.endpoints import begin_chat, chat_json
from ocr_server.dialects.http import ERRORS, caller, context, parsed
from ocr_server.transport.disconnect import unless_disconnected
from ocr_server.transport.event_stream import event_stream

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

    async def answer() -> Response:
        work = await begin_chat(state, body, caller(request))
        if not body.stream:
            return Response(await chat_json(work), media_type="application/json")
        try:
            return await event_stream(work.answer.chunks(work.events), shutdown_timeout=state.settings.SHUTDOWN_TIMEOUT)
        except BaseException:
            await work.session.close()
            raise

    return await unless_disconnected(request, answer())
