"""Worker processes whose calls the tests can look at."""

from __future__ import annotations

from typing import Any, BinaryIO

from ocr_server.intake.source_page import Rgb
from ocr_server.intake.workers import Workers


class RecordingWorkers(Workers):
    """Real workers that record every call, so that a test can tell what was decoded or rendered, and when."""

    def __init__(self, *, count: int = 1, timeout_s: float = 20, memory_bytes: int = 4_000_000_000) -> None:
        super().__init__(count=count, timeout_s=timeout_s, memory_bytes=memory_bytes)
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        """Document, function and arguments of each call."""
        self.pdfs: list[BinaryIO] = []
        """The file of each PDF that was opened."""
        self.pending = 0
        """Number of calls that have not returned yet."""

    async def call(
        self,
        document: str,
        function: str,
        *arguments: Any,
        data: bytes | None = None,
        file: BinaryIO | None = None,
    ) -> tuple[Any, Rgb | None]:
        self.calls.append((document, function, arguments))
        if file is not None and file not in self.pdfs:
            self.pdfs.append(file)
        self.pending += 1
        try:
            return await super().call(document, function, *arguments, data=data, file=file)
        finally:
            self.pending -= 1

    @property
    def decoded(self) -> int:
        """Number of times that decoding a picture was asked for."""
        return sum(function == "picture_worker.decode" for _, function, _ in self.calls)

    @property
    def rendered(self) -> list[int]:
        """Indices of the PDF pages that were rendered."""
        return [arguments[1] for _, function, arguments in self.calls if function == "pdf_worker.render"]
