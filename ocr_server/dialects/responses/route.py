"""`POST /v1/responses`."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from ocr_server.dialects.dialect import Api, Dialect
from ocr_server.dialects.http import ERRORS, caller_of, parsed, runtime_of
from ocr_server.dialects.responses.plan import plan_response
from ocr_server.dialects.responses.response import ResponsesAnswer
from ocr_server.dialects.responses.wire import ResponseEvent, ResponseObject, ResponsesRequest, ResponsesTemplate
from ocr_server.dialects.validation import parse_body
from ocr_server.errors import InvalidRequest
from ocr_server.runtime import Runtime
from ocr_server.session import Session
from ocr_server.transport.disconnect import unless_disconnected
from ocr_server.transport.event_stream import event_stream

PATH = "/v1/responses"
router = APIRouter(tags=["Responses"])

_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "description": "The type of the event, as in the data."},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/ResponseEvent"},
        },
    },
}
"""An event of a stream: unlike those of the other APIs, it has a name."""


@router.post(
    PATH,
    response_model=ResponseObject,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ResponsesRequest"}}},
        }
    },
    responses={
        200: {"content": {"text/event-stream": {"schema": _EVENT}}},
        **ERRORS,
    },
)
async def create_response(request: Request) -> Response:
    """Read the pictures and documents of a request. The texts of their pages are joined in order. Nothing is stored."""
    runtime = runtime_of(request)
    body = await parsed(request, ResponsesRequest)

    async def answer() -> Response:
        session = await runtime.begin(plan_response(body, runtime.settings), caller_of(request))
        if not body.stream:
            return Response(await respond(body, session, runtime), media_type="application/json")
        try:
            answer = ResponsesAnswer(body, session)
            return await event_stream(
                answer.events(), shutdown_timeout=runtime.settings.SHUTDOWN_TIMEOUT, failed=answer.failed, last=()
            )
        except BaseException:
            await session.close()
            raise

    return await unless_disconnected(request, answer())


async def respond(request: ResponsesRequest, session: Session, _: Runtime) -> str:
    """Read all pages and return the response as JSON. Closes the session."""
    try:
        return (await ResponsesAnswer(request, session).response()).model_dump_json()
    except BaseException:
        await session.close()
        raise


def check_batchable(request: ResponsesRequest) -> None:
    """Raise InvalidRequest for a stream."""
    if request.stream:
        raise InvalidRequest("Requests of a batch cannot be streamed.", param="stream")


RESPONSES: Dialect[ResponsesRequest] = Dialect(
    path=PATH,
    api=Api(router, {"responses": f"POST {PATH}"}, (ResponsesRequest, ResponseEvent)),
    parse=partial(parse_body, model=ResponsesRequest),
    parse_template=partial(parse_body, model=ResponsesTemplate),
    plan=plan_response,
    check_batchable=check_batchable,
    respond=respond,
)
