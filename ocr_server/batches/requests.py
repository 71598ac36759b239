"""What a batch is made of: requests, each with its line and its name, out of whichever file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ocr_server.errors import ApiError
from ocr_server.intake.decode import is_pdf
from ocr_server.intake.source import Content

HEAD_BYTES = 2048
"""Of a file's beginning, for `kind_of`."""
MOST_ERRORS = 100
"""That are told of one file."""
MOST_ID_CHARS = 512
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")

Error = dict[str, Any]
"""code, message, param, line, as OpenAI's batch lists them."""


class Item(NamedTuple):
    """One request."""

    line: int
    """In a JSONL file, from 1; otherwise the page or the picture, from 1."""
    custom_id: str
    body: bytes
    content: Callable[[], Awaitable[Content]] | None = None
    """Gets what is read, if it is in the batch's own file. Raises ApiError."""


@dataclass
class Checked:
    """What became of looking through an input."""

    total: int = 0
    errors: list[Error] = field(default_factory=list)

    def wrong(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> bool:
        """Note an error; whether there are so many that the rest need not be looked at."""
        self.errors.append({"code": code, "message": message, "line": line, "param": param})
        return len(self.errors) >= MOST_ERRORS

    def refused(self, error: ApiError) -> Checked:
        """Note an error of the whole input; itself."""
        self.wrong(error.code or "invalid_request", error.message, param=error.param)
        return self


class Requests(Protocol):
    """The requests of one input file. Close it."""

    async def check(self) -> Checked:
        """Look through all of it."""

    def items(self, done: Collection[int]) -> AsyncGenerator[Item]:
        """Those whose line is not in `done`, in order; only after a check that found no error, now or earlier."""

    async def close(self) -> None: ...


def kind_of(head: bytes) -> str:
    """jsonl, pdf or zip, by a file's beginning."""
    if head.startswith(_ZIP):
        return "zip"
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") and is_pdf(head):
        return "pdf"
    return "jsonl"


def count_errors(checked: Checked, most: int) -> Checked:
    """Also wrong are no requests, and more than `most`."""
    if not checked.errors and checked.total == 0:
        checked.wrong("empty_file", "The file has no requests.")
    if checked.total > most:
        checked.wrong("too_many_requests", f"The file has more requests than a batch may have: {most:,}.")
    return checked


def unfit_id(name: Sequence[str] | Any) -> str | None:
    """What is wrong with a custom_id, if anything is."""
    if not isinstance(name, str) or not name:
        return "custom_id must be a text that is not empty."
    if len(name) > MOST_ID_CHARS or "\0" in name:
        return f"custom_id must have at most {MOST_ID_CHARS} characters, none of them NUL."
    return None
