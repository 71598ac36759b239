"""The opened documents of a request, as pages to read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from vllm.sampling_params import SamplingParams

from ocr_server.intake.document import Document
from ocr_server.intake.prepare import Source
from ocr_server.reading.page import Job

T = TypeVar("T")


class Documents:
    """What a request wants read, opened; they are closed when the reading ends."""

    def __init__(self, sources: Sequence[Source], documents: Sequence[Document]) -> None:
        self._sources = sources
        self._documents = documents

    @property
    def size_bytes(self) -> int:
        return sum(document.size_bytes for document in self._documents)

    @property
    def is_document(self) -> bool:
        """Whether any of them is more than a picture."""
        return any(document.is_document for document in self._documents)

    def jobs(self, prompt: str, params: SamplingParams) -> list[Job]:
        """All pages, in order."""
        return [
            Job(
                load=partial(document.page, place),
                mode=source.mode,
                prompt=prompt,
                params=params,
                source=number,
                number=index,
            )
            for number, (source, document) in enumerate(zip(self._sources, self._documents, strict=True))
            for place, index in enumerate(document.indices)
        ]

    async def closing(self, events: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Pass `events` on, and close the documents after them."""
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        finally:
            await self.close()

    async def close(self) -> None:
        for document in self._documents:
            await document.close()
