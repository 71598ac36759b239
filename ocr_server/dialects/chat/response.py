"""Turns the pages of a session into OpenAI's chat completion, as a whole or in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ocr_server.dialects.chat.plan import blocks_json, copies
from ocr_server.dialects.chat.wire import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FinishReason,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from ocr_server.dialects.messages import NOTHING_TO_READ
from ocr_server.dialects.page_report import OcrExtension, PageReport, page_opened, page_report
from ocr_server.dialects.page_texts import PageTexts
from ocr_server.dialects.text_options import OcrOptions
from ocr_server.errors import EngineFailure
from ocr_server.reading.page import LogprobStep, PageReading, ScoredToken
from ocr_server.reading.reader import Event, Opened, Piece
from ocr_server.session import Session

_TEXT = "{text}"
"""Placeholder for the text of a chunk."""


class ChatAnswer:
    """The answer to one request. Use either `completion` or `chunks`, once."""

    def __init__(self, request: ChatCompletionRequest, session: Session, fingerprint: str) -> None:
        self._events = session.events
        self._model = request.model
        self._fingerprint = fingerprint
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._choices = request.n or 1
        self._copies = copies(request)
        """Number of choices that repeat one of the engine's."""
        self._texts = PageTexts(
            request.ocr or OcrOptions(),
            session,
            blocks=blocks_json(request, session.plan.text),
            choices=self._choices,
            copies=self._copies,
        )
        self._pages = len(session.jobs)
        self._top_logprobs = request.top_logprobs or 0
        self._as_ids = request.return_tokens_as_token_ids
        self._continuous = request.stream_options is not None and request.stream_options.continuous_usage_stats
        """Whether each chunk has the usage so far."""
        self._unfinished = 0, 0
        """Tokens of the prompt and the answer of the page that is being read."""
        self._include_usage = request.stream_options is not None and request.stream_options.include_usage
        self._image_tokens = self._prompt_tokens = self._completion_tokens = 0
        self._cut: set[int] = set()
        """Choices that are incomplete."""
        self._around: dict[int, tuple[str, str]] = {}
        """For each choice: the JSON before and after the text, in a chunk that contains only text."""

    async def completion(self) -> ChatCompletion:
        """Read all pages and return the completion. Closes the session."""
        text: defaultdict[int, list[str]] = defaultdict(list)
        steps: defaultdict[int, list[LogprobStep]] = defaultdict(list)
        reports: list[PageReport] = []
        ids: defaultdict[int, list[int]] = defaultdict(list)
        prompt_ids: list[int] = []
        has_logprobs = False
        async with aclosing(self._events()) as events:
            async for event in events:
                report = self._report(event)
                for choice, piece in self._texts.of(event, report):
                    text[choice].append(piece)
                if isinstance(event, PageReading):
                    self._count(event)
                    reports += [report] if report else []
                elif isinstance(event, Piece):
                    prompt_ids += event.delta.prompt_token_ids
                    has_logprobs = has_logprobs or event.delta.logprobs is not None
                    for choice in self._texts.choices_of(event.delta.choice):
                        steps[choice] += event.delta.logprobs or ()
                        ids[choice] += event.delta.token_ids
        if not self._pages:
            text = defaultdict(lambda: [NOTHING_TO_READ])
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                Choice(
                    index=index,
                    message=AssistantMessage(
                        content="".join(text[index]),
                        ocr=OcrExtension(pages=reports) if self._texts.has_reports else None,
                    ),
                    logprobs=self._logprobs(steps[index]) if has_logprobs else None,
                    finish_reason=self._finish_reason(index),
                    token_ids=ids.get(index) or None,
                )
                for index in range(self._choices)
            ],
            usage=self._usage(),
            system_fingerprint=self._fingerprint,
            prompt_token_ids=prompt_ids or None,
        )

    async def chunks(self) -> AsyncGenerator[str]:
        """Yield the completion as JSON chunks: the role, text as it is generated, finish reasons, usage if requested.

        Closes the session at its end.
        """
        started = False
        async with aclosing(self._events()) as events:
            async for event in events:
                if not started:  # only now is it certain that there will be an answer
                    started = True
                    prompt_ids = list(event.delta.prompt_token_ids) if isinstance(event, Piece) else []
                    for index in range(self._choices):
                        first = ChunkChoice(index=index, delta=Delta(role="assistant", content=""))
                        yield self._chunk(first, prompt_token_ids=prompt_ids or None)
                if isinstance(event, Opened):
                    opened = page_opened(event, pages=self._pages)
                    for index in range(self._choices):
                        yield self._chunk(ChunkChoice(index=index, delta=Delta(ocr_page=opened)))
                    continue
                logprobs = token_ids = None
                if isinstance(event, Piece):
                    generated = self._unfinished[1] + event.delta.num_tokens * self._copies
                    self._unfinished = event.delta.prompt_tokens, generated
                    token_ids = list(event.delta.token_ids) or None
                    logprobs = self._logprobs(event.delta.logprobs) if event.delta.logprobs else None
                report = self._report(event)
                for choice, text in self._texts.of(event, report):
                    if logprobs is not None or token_ids is not None or (text and self._continuous):
                        delta = Delta(content=text)
                        yield self._chunk(
                            ChunkChoice(index=choice, delta=delta, logprobs=logprobs, token_ids=token_ids)
                        )
                    elif text:
                        yield self._text_chunk(choice, text)
                if isinstance(event, PageReading):
                    self._count(event)
                    if report is not None:
                        ocr = OcrExtension(pages=[report])
                        for index in range(self._choices):
                            yield self._chunk(ChunkChoice(index=index, delta=Delta(ocr=ocr)))
        if not self._pages:
            for index in range(self._choices):
                yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content=NOTHING_TO_READ)))
        for index in range(self._choices):
            yield self._chunk(ChunkChoice(index=index, delta=Delta(), finish_reason=self._finish_reason(index)))
        if self._include_usage:
            yield self._chunk(None, usage=self._usage())

    def _report(self, event: Event) -> PageReport | None:
        return page_report(event) if self._texts.has_reports and isinstance(event, PageReading) else None

    def _count(self, reading: PageReading) -> None:
        if reading.error is None and not reading.deltas:
            raise EngineFailure("The engine returned no answer.")
        self._prompt_tokens += reading.prompt_tokens
        self._completion_tokens += reading.completion_tokens * self._copies
        self._unfinished = 0, 0
        self._image_tokens += reading.image_tokens
        for choice in range(self._choices):
            of_engine = choice if self._copies == 1 else 0
            if reading.finish_reason(of_engine) != "stop":
                self._cut.add(choice)

    def _finish_reason(self, choice: int) -> FinishReason:
        return "length" if choice in self._cut else "stop"

    def _chunk(
        self, choice: ChunkChoice | None, usage: Usage | None = None, prompt_token_ids: list[int] | None = None
    ) -> str:
        if self._include_usage and self._continuous:
            usage = self._usage()
        chunk = ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[] if choice is None else [choice],
            usage=usage,
            system_fingerprint=self._fingerprint,
            prompt_token_ids=prompt_token_ids,
        )
        # As in OpenAI's API: a delta contains only what is new, and `usage` is present only if it was requested.
        exclude: dict[str, Any] = {}
        if not self._include_usage:
            exclude["usage"] = True
        if choice is not None:
            exclude["choices"] = {"__all__": {"delta": _unset(choice)}}
        return chunk.model_dump_json(exclude=exclude)

    def _text_chunk(self, choice: int, text: str) -> str:
        """Return the same chunk as `_chunk`, but five times as fast, since it is needed for every token."""
        if choice not in self._around:
            chunk = self._chunk(ChunkChoice(index=choice, delta=Delta(content=_TEXT)))
            before, after = chunk.split(json.dumps(_TEXT))
            self._around[choice] = before, after
        before, after = self._around[choice]
        return before + json.dumps(text, ensure_ascii=False) + after

    def _usage(self) -> Usage:
        prompt_tokens = self._prompt_tokens + self._unfinished[0]
        completion_tokens = self._completion_tokens + self._unfinished[1]
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(image_tokens=self._image_tokens),
        )

    def _logprobs(self, steps: list[LogprobStep]) -> ChoiceLogprobs:
        return ChoiceLogprobs(
            content=[
                TokenLogprob(
                    **_token(step.chosen, as_id=self._as_ids),
                    top_logprobs=[
                        TopLogprob(**_token(token, as_id=self._as_ids)) for token in step.top[: self._top_logprobs]
                    ],
                )
                for step in steps
            ]
        )


def _token(token: ScoredToken, *, as_id: bool) -> dict[str, object]:
    text = f"token_id:{token.token_id}" if as_id else token.token
    # JSON has no −inf; OpenAI uses −9999 for tokens that cannot occur.
    return {"token": text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.token.encode())}


def _unset(choice: ChunkChoice) -> set[str]:
    return {"role", "content"} - choice.delta.model_fields_set
