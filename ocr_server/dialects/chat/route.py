"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from ocr_server.dialects.chat.plan import plan_chat
from ocr_server.dialects.chat.response import ChatAnswer
from ocr_server.dialects.chat.wire import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, ChatTemplate
from ocr_server.dialects.dialect import Api, Dialect
from ocr_server.dialects.http import ERRORS, caller_of, parsed, runtime_of
from ocr_server.dialects.validation import parse_body
from ocr_server.errors import InvalidRequest
from ocr_server.runtime import Runtime
from ocr_server.session import Session
from ocr_server.transport.disconnect import unless_disconnected
from ocr_server.transport.event_stream import event_stream

PATH = "/v1/chat/completions"
router = APIRouter(tags=["Chat"])


@router.post(
    PATH,
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
    """Read the pictures and documents of a chat request. The texts of their pages are joined in order."""
    runtime = runtime_of(request)
    body = await parsed(request, ChatCompletionRequest)

    async def answer() -> Response:
        session = await runtime.begin(plan_chat(body, runtime.settings), caller_of(request))
        if not body.stream:
            return Response(await respond(body, session, runtime), media_type="application/json")
        try:
            chunks = ChatAnswer(body, session, runtime.fingerprint).chunks()
            return await event_stream(chunks, shutdown_timeout=runtime.settings.SHUTDOWN_TIMEOUT)
        except BaseException:
            await session.close()
            raise

    return await unless_disconnected(request, answer())


async def respond(request: ChatCompletionRequest, session: Session, runtime: Runtime) -> str:
    """Read all pages and return the chat completion as JSON. Closes the session."""
    try:
        return (await ChatAnswer(request, session, runtime.fingerprint).completion()).model_dump_json()
    except BaseException:
        await session.close()
        raise


def check_batchable(request: ChatCompletionRequest) -> None:
    """Raise InvalidRequest for a stream."""
    if request.stream:
        raise InvalidRequest("Requests of a batch cannot be streamed.", param="stream")


CHAT: Dialect[ChatCompletionRequest] = Dialect(
    path=PATH,
    api=Api(router, {"chat completions": f"POST {PATH}"}, (ChatCompletionRequest, ChatCompletionChunk)),
    parse=partial(parse_body, model=ChatCompletionRequest),
    parse_template=partial(parse_body, model=ChatTemplate),
    plan=plan_chat,
    check_batchable=check_batchable,
    respond=respond,
)
