"""Turns the pages of a session into OpenAI's response, as a whole or as a stream of events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel

from ocr_server.dialects.messages import NOTHING_TO_READ
from ocr_server.dialects.page_report import OcrExtension, PageReport, page_opened, page_report
from ocr_server.dialects.page_texts import PageTexts
from ocr_server.dialects.responses.plan import blocks_json
from ocr_server.dialects.responses.wire import (
    IncompleteDetails,
    OutputMessage,
    OutputText,
    ResponseError,
    ResponseInputTokensDetails,
    ResponseObject,
    ResponsesRequest,
    ResponseTokenLogprob,
    ResponseTopLogprob,
    ResponseUsage,
    Status,
)
from ocr_server.dialects.text_options import OcrOptions
from ocr_server.errors import ApiError, EngineFailure
from ocr_server.reading.page import LogprobStep, PageReading, ScoredToken
from ocr_server.reading.reader import Opened, Piece
from ocr_server.session import Session
from ocr_server.transport.event_stream import ServerEvent

MAX_ECHO_CHARS = 10_000
"""Longest value of the request that is repeated in the response, as JSON."""


class ResponsesAnswer:
    """The answer to one request. Use either `response` or `events`, once."""

    def __init__(self, request: ResponsesRequest, session: Session) -> None:
        self._request = request
        self._events = session.events
        self._id = f"resp_{uuid.uuid4().hex}"
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._texts = PageTexts(request.ocr or OcrOptions(), session, blocks=blocks_json(request, session.plan.text))
        self._pages = len(session.jobs)
        self._top_logprobs = request.top_logprobs or 0
        self._image_tokens = self._input_tokens = self._output_tokens = 0
        self._is_cut = False
        """Whether a page is incomplete."""
        self._text: list[str] = []
        self._steps: list[LogprobStep] = []
        self._reports: list[PageReport] = []
        self._number = 0
        """Sequence number of the next event."""

    async def response(self) -> ResponseObject:
        """Read all pages and return the response. Closes the session."""
        async with aclosing(self._events()) as events:
            async for event in events:
                report = self._report(event)
                self._text += (text for _, text in self._texts.of(event, report))
                if isinstance(event, PageReading):
                    self._count(event)
                    self._reports += [report] if report else []
                elif isinstance(event, Piece):
                    self._steps += event.delta.logprobs or []
        if not self._pages:
            self._text = [NOTHING_TO_READ]
        return self._ended()

    async def events(self) -> AsyncGenerator[ServerEvent]:
        """Yield the events of the stream, from `response.created` to `response.completed` or `response.incomplete`.

        What this server adds to OpenAI's events, the picture of a page and the report on it, comes with an event of
        type `response.output_text.delta` whose `delta` is empty. Closes the session at the end.
        """
        async with aclosing(self._events()) as events:
            async for event in events:
                if not self._number:  # only now is it certain that there will be an answer
                    for started in self._started():
                        yield started
                if isinstance(event, Opened):
                    yield self._delta("", ocr_page=page_opened(event, pages=self._pages).model_dump(mode="json"))
                    continue
                steps = (event.delta.logprobs or []) if isinstance(event, Piece) else []
                report = self._report(event)
                for _, text in self._texts.of(event, report):
                    self._text.append(text)
                    self._steps += steps
                    if text or steps:
                        yield self._delta(text, steps)
                if isinstance(event, PageReading):
                    self._count(event)
                    if report is not None:
                        yield self._delta("", ocr=OcrExtension(pages=[report]).model_dump(mode="json"))
                        self._reports.append(_without_figures(report))
        if not self._pages:
            self._text = [NOTHING_TO_READ]
            for started in self._started():
                yield started
            yield self._delta(NOTHING_TO_READ)
        for ended in self._endings():
            yield ended

    def failed(self, error: ApiError) -> Iterator[ServerEvent]:
        """Yield the last events of a stream that fails. The SDKs raise the error of the last one."""
        if not self._number:
            yield self._event("response.created", response=self._object("in_progress"))
        response = self._object("failed")
        response.error = ResponseError(code=error.code or "server_error", message=error.message)
        yield self._event("response.failed", response=response)
        # OpenAI documents the fields of the error at the top, but sends them inside. The SDKs look for the latter.
        inner = error.body()["error"]
        yield self._event("error", code=error.code, message=error.message, param=error.param, error=inner)

    def _started(self) -> Iterator[ServerEvent]:
        response = self._object("in_progress")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        item = OutputMessage(id=self._item_id, status="in_progress", content=[])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._part_event("response.content_part.added", part=OutputText(text=""))

    def _endings(self) -> Iterator[ServerEvent]:
        response = self._ended()
        (item,) = response.output
        (part,) = item.content
        logprobs = [each.model_dump() for each in part.logprobs]
        yield self._part_event("response.output_text.done", text=part.text, logprobs=logprobs)
        yield self._part_event("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{response.status}", response=response)

    def _event(self, kind: str, **fields: Any) -> ServerEvent:
        event = {"type": kind, "sequence_number": self._number} | {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in fields.items()
        }
        self._number += 1
        return ServerEvent(json.dumps(event, ensure_ascii=False), name=kind)

    def _part_event(self, kind: str, **fields: Any) -> ServerEvent:
        return self._event(kind, item_id=self._item_id, output_index=0, content_index=0, **fields)

    def _delta(self, text: str, steps: list[LogprobStep] | None = None, **more: Any) -> ServerEvent:
        logprobs = [each.model_dump() for each in self._logprobs(steps or [])]
        return self._part_event("response.output_text.delta", delta=text, logprobs=logprobs, **more)

    def _report(self, event: object) -> PageReport | None:
        return page_report(event) if self._texts.has_reports and isinstance(event, PageReading) else None

    def _count(self, reading: PageReading) -> None:
        if reading.error is None and not reading.deltas:
            raise EngineFailure("The engine returned no answer.")
        self._input_tokens += reading.prompt_tokens
        self._output_tokens += reading.completion_tokens
        self._image_tokens += reading.image_tokens
        self._is_cut |= reading.finish_reason(0) != "stop"

    def _ended(self) -> ResponseObject:
        """Return the response with its output."""
        response = self._object("incomplete" if self._is_cut else "completed")
        part = OutputText(text="".join(self._text), logprobs=self._logprobs(self._steps))
        ocr = OcrExtension(pages=self._reports) if self._texts.has_reports else None
        response.output = (OutputMessage(id=self._item_id, status=response.status, content=[part], ocr=ocr),)
        response.usage = ResponseUsage(
            input_tokens=self._input_tokens,
            input_tokens_details=ResponseInputTokensDetails(image_tokens=self._image_tokens),
            output_tokens=self._output_tokens,
            total_tokens=self._input_tokens + self._output_tokens,
        )
        if self._is_cut:
            response.incomplete_details = IncompleteDetails()
        else:
            response.completed_at = int(time.time())
        return response

    def _object(self, status: Status) -> ResponseObject:
        """Return the response without its output: what the request asked for."""
        request = self._request
        wanted = request.text_format
        text_format = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)
        return ResponseObject(
            id=self._id,
            created_at=self._created,
            status=status,
            model=request.model,
            instructions=_echo(request.instructions),
            max_output_tokens=request.max_output_tokens,
            metadata=_echo(request.metadata) or {},
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            text={"format": _echo(text_format) or {"type": text_format["type"]}},
            tool_choice="none" if request.tool_choice == "none" else "auto",
            top_logprobs=self._top_logprobs,
        )

    def _logprobs(self, steps: list[LogprobStep]) -> tuple[ResponseTokenLogprob, ...]:
        most = self._top_logprobs
        return tuple(
            ResponseTokenLogprob(
                **_token(step.chosen), top_logprobs=[ResponseTopLogprob(**_token(each)) for each in step.top[:most]]
            )
            for step in steps
        )


def _echo(value: Any) -> Any:
    """Return `value`, or None if it is too long to be repeated several times."""
    return value if len(json.dumps(value)) <= MAX_ECHO_CHARS else None


def _without_figures(report: PageReport) -> PageReport:
    if report.figures is None:
        return report
    return report.model_copy(update={"figures": [each.model_copy(update={"data": None}) for each in report.figures]})


def _token(token: ScoredToken) -> dict[str, Any]:
    # JSON has no −inf; OpenAI uses −9999 for tokens that cannot occur.
    return {"token": token.token, "logprob": max(token.logprob, -9999.0), "bytes": list(token.token.encode())}
