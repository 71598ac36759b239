"""What `POST /v1/chat/completions` and `POST /v1/ocr` do, whoever asks: a route, or a batch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from ocr_server.dialects.chat.plan import Reading, translate
from ocr_server.dialects.chat.response import ChatAnswer, Form
from ocr_server.dialects.chat.wire import ChatCompletionRequest
from ocr_server.dialects.ocr.plan import OcrReading, translate_ocr
from ocr_server.dialects.ocr.response import OcrPages
from ocr_server.dialects.ocr.wire import OcrRequest, OcrResponse
from ocr_server.dialects.validation import parse_body
from ocr_server.errors import InvalidRequest, Unavailable
from ocr_server.intake.intake import Opens
from ocr_server.output.artifacts import Wanted, page_picture
from ocr_server.reading.page import PageReading
from ocr_server.reading.reader import Event
from ocr_server.reading.session import Account, Session
from ocr_server.runtime import Context
from ocr_server.transport.auth import ANONYMOUS

Events = AsyncGenerator[Event]


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    client: str = ANONYMOUS
    account: Account = field(default_factory=Account)
    """Told what the request came to."""
    in_background: bool = False
    """Whether everybody else goes first."""
    opens: Opens | None = None
    """Opens the sources instead of the server's intake."""


@dataclass(frozen=True)
class ChatWork:
    """A chat request under way. Close the session if `events` is not begun."""

    session: Session
    answer: ChatAnswer
    events: Events


@dataclass(frozen=True)
class OcrWork:
    """An OCR request under way. Close the session if `events` is not begun."""

    session: Session
    pages: OcrPages
    events: Events
    model: str


async def begin_chat(state: Context, body: ChatCompletionRequest, caller: Caller) -> ChatWork:
    """Understand the request, queue up and open its sources. Raises as `translate` and `Session.begin`."""
    reading = translate(body, state.settings)
    session = await _begin(state, reading, caller)
    try:
        if reading.single_page and len(session.jobs) > 1:
            raise InvalidRequest(
                "A structured response_format holds for one page; this request has more.", param="response_format"
            )
        blocks, raw = reading.options.output == "blocks", reading.options.output == "raw"
        pictures = reading.options.include_page_images
        answer = ChatAnswer(
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
    except BaseException:
        await session.close()
        raise
    finish = Wanted(figures=reading.options.include_figures) if blocks else None
    show = page_picture if pictures else None
    return ChatWork(session, answer, session.events(live=body.stream, show=show, finish=finish))


async def begin_ocr(state: Context, body: OcrRequest, caller: Caller) -> OcrWork:
    """As `begin_chat`."""
    reading = translate_ocr(body, state.settings)
    session = await _begin(state, reading, caller)
    finish = replace(reading.wanted, of_document=session.is_document)
    return OcrWork(session, OcrPages(body, session.size_bytes), session.events(finish=finish), reading.model)


async def _begin(state: Context, reading: Reading | OcrReading, caller: Caller) -> Session:
    if reason := state.engine.unavailable():
        raise Unavailable(reason, retry_after=state.engine.retry_after)  # before anything is fetched or decoded
    return await Session.begin(
        state.admission,
        caller.opens or state.intake,
        state.reader,
        [reading.source] if isinstance(reading, OcrReading) else reading.sources,
        reading.prompt,
        reading.params,
        client=caller.client,
        account=caller.account,
        in_background=caller.in_background,
    )


async def chat_json(work: ChatWork) -> str:
    """The whole completion. Closes the session."""
    try:
        return (await work.answer.completion(work.events)).model_dump_json()
    except BaseException:
        await work.session.close()
        raise


async def ocr_json(work: OcrWork) -> str:
    """The whole response. Closes the session."""
    try:
        made = [work.pages.page(event) async for event in work.events if isinstance(event, PageReading)]
    except BaseException:
        await work.session.close()
        raise
    return OcrResponse(pages=made, model=work.model, usage_info=work.pages.usage).model_dump_json()


async def _chat(state: Context, data: bytes, caller: Caller) -> str:
    body = parse_body(data, ChatCompletionRequest)
    if body.stream:
        raise InvalidRequest("A request of a batch can't be streamed.", param="stream")
    return await chat_json(await begin_chat(state, body, caller))


async def _ocr(state: Context, data: bytes, caller: Caller) -> str:
    body = parse_body(data, OcrRequest)
    if body.stream:
        raise InvalidRequest("A request of a batch can't be streamed.", param="stream")
    if body.output != "json":
        raise InvalidRequest("A request of a batch has output json.", param="output")
    return await ocr_json(await begin_ocr(state, body, caller))


ENDPOINTS: dict[str, Callable[[Context, bytes, Caller], Awaitable[str]]] = {
    "/v1/chat/completions": _chat,
    "/v1/ocr": _ocr,
}
"""Those whose requests a batch may have: a body's bytes become the answer's JSON."""
