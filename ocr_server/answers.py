"""Pieces of text → OpenAI's chat completion, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ocr_server.errors import EngineFailure
from ocr_server.reading.page import LogprobStep, Page
from ocr_server.reading.page import TokenLogprob as Token
from ocr_server.reading.reader import Part
from ocr_server.schemas.chat import (
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


class ChatAnswer:
    """The answer to one request. Use either `completion` or `chunks`, once."""

    def __init__(self, *, model: str, request: ChatCompletionRequest, pages: Sequence[Page], fingerprint: str) -> None:
        self._model = model
        self._fingerprint = fingerprint
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._choices = request.n or 1
        self._pages = len(pages)
        self._top_logprobs = request.top_logprobs or 0
        self._include_usage = request.stream_options is not None and request.stream_options.include_usage
        self._image_tokens = sum(page.image.num_tokens for page in pages)
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._finish: defaultdict[int, list[str]] = defaultdict(list)
        """For each choice: how its pages ended."""

    async def completion(self, parts: AsyncGenerator[Part]) -> ChatCompletion:
        """Wait for all of it."""
        text: defaultdict[int, str] = defaultdict(str)
        steps: defaultdict[int, list[LogprobStep]] = defaultdict(list)
        has_logprobs = False
        async with aclosing(parts):
            async for part in parts:
                self._count(part)
                text[part.choice] += part.text
                if part.delta.logprobs is not None:
                    has_logprobs = True
                    steps[part.choice] += part.delta.logprobs
        if not self._finish:
            raise EngineFailure("The engine gave no answer.")
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                Choice(
                    index=index,
                    message=AssistantMessage(content=text[index]),
                    logprobs=self._logprobs(steps[index]) if has_logprobs else None,
                    finish_reason=self._finish_reason(index),
                )
                for index in range(self._choices)
            ],
            usage=self._usage(),
            system_fingerprint=self._fingerprint,
        )

    async def chunks(self, parts: AsyncGenerator[Part]) -> AsyncGenerator[str]:
        """The same as JSON chunks: the role first, then text as it comes, the ends, and the usage if asked for."""
        started = False
        async with aclosing(parts):
            async for part in parts:
                if not started:  # only now is it certain that there will be an answer
                    started = True
                    for index in range(self._choices):
                        yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
                self._count(part)
                steps = part.delta.logprobs
                if part.text or steps:
                    yield self._chunk(
                        ChunkChoice(
                            index=part.choice,
                            delta=Delta(content=part.text),
                            logprobs=None if steps is None else self._logprobs(steps),
                        )
                    )
                if len(self._finish[part.choice]) == self._pages and part.delta.finish_reason is not None:
                    end = self._finish_reason(part.choice)
                    yield self._chunk(ChunkChoice(index=part.choice, delta=Delta(), finish_reason=end))
        if not started:
            raise EngineFailure("The engine gave no answer.")
        if self._include_usage:
            yield self._chunk(None, usage=self._usage())

    def _chunk(self, choice: ChunkChoice | None, usage: Usage | None = None) -> str:
        chunk = ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[] if choice is None else [choice],
            usage=usage,
            system_fingerprint=self._fingerprint,
        )
        # As OpenAI: a delta holds only what is new; `usage` is there only if it was asked for.
        exclude: dict[str, Any] = {}
        if not self._include_usage:
            exclude["usage"] = True
        if choice is not None:
            exclude["choices"] = {"__all__": {"delta": _unset(choice)}}
        return chunk.model_dump_json(exclude=exclude)

    def _count(self, part: Part) -> None:
        delta = part.delta
        if delta.finish_reason is not None:
            self._finish[part.choice].append(delta.finish_reason)
        if part.choice != delta.choice:
            return  # a copy, which cost the engine nothing
        self._completion_tokens += delta.num_tokens
        if delta.finish_reason is not None and part.choice == 0:
            self._prompt_tokens += delta.prompt_tokens

    def _finish_reason(self, choice: int) -> FinishReason:
        return "length" if "length" in self._finish[choice] else "stop"

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._prompt_tokens + self._completion_tokens,
            prompt_tokens_details=PromptTokensDetails(image_tokens=self._image_tokens),
        )

    def _logprobs(self, steps: list[LogprobStep]) -> ChoiceLogprobs:
        return ChoiceLogprobs(
            content=[
                TokenLogprob(
                    **_token(step.chosen),
                    top_logprobs=[TopLogprob(**_token(token)) for token in step.top[: self._top_logprobs]],
                )
                for step in steps
            ]
        )


def _token(token: Token) -> dict[str, object]:
    # JSON has no −inf; OpenAI gives −9999 for tokens that can't occur.
    return {"token": token.token, "logprob": max(token.logprob, -9999.0), "bytes": list(token.token.encode())}


def _unset(choice: ChunkChoice) -> set[str]:
    return {"role", "content"} - choice.delta.model_fields_set
