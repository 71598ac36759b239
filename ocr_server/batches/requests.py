"""The requests of a batch, whatever the kind of its input file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ocr_server.errors import ApiError
from ocr_server.intake.decode import is_pdf
from ocr_server.intake.source import Content

HEAD_BYTES = 2048
"""Size of the beginning of a file that `kind_of` needs."""
MAX_ERRORS = 100
"""Maximum number of errors that are reported for a file."""
MAX_ID_CHARS = 512
"""Maximum length of a custom_id."""
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")

Error = dict[str, Any]
"""code, message, param and line, as in OpenAI's batch object."""


class Item(NamedTuple):
    """A request of a batch."""

    line: int
    """Number of the line, page or picture in the input, counted from 1."""
    custom_id: str
    body: bytes
    content: Callable[[], Awaitable[Content]] | None = None
    """Returns the picture or document, if it is in the input file rather than in the body. Raises ApiError."""


@dataclass
class CheckResult:
    """Result of checking an input file."""

    total: int = 0
    """Number of requests."""
    errors: list[Error] = field(default_factory=list)

    def add_error(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> bool:
        """Add an error, and return whether the maximum number of errors has been reached."""
        self.errors.append({"code": code, "message": message, "line": line, "param": param})
        return len(self.errors) >= MAX_ERRORS

    def with_error(self, error: ApiError) -> CheckResult:
        """Add an error of the whole input, and return this object."""
        self.add_error(error.code or "invalid_request", error.message, param=error.param)
        return self


class Requests(Protocol):
    """The requests in an input file. Must be closed."""

    async def check(self) -> CheckResult:
        """Check the whole input."""

    def items(self, done: Collection[int]) -> AsyncGenerator[Item]:
        """Yield the requests whose line is not in `done`, in order. The input must have been checked without errors."""

    async def close(self) -> None:
        """Close the input file."""


def kind_of(head: bytes) -> str:
    """Return the kind of a file, jsonl, pdf or zip, by its first `HEAD_BYTES` bytes."""
    if head.startswith(_ZIP):
        return "zip"
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") and is_pdf(head):
        return "pdf"
    return "jsonl"


def count_errors(checked: CheckResult, max_requests: int) -> CheckResult:
    """Add an error if there are no requests or more than `max_requests`, and return `checked`."""
    if not checked.errors and checked.total == 0:
        checked.add_error("empty_file", "The file contains no requests.")
    if checked.total > max_requests:
        checked.add_error("too_many_requests", f"The file exceeds the limit of {max_requests:,} requests.")
    return checked


def custom_id_problem(name: Any) -> str | None:
    """Return what is wrong with a custom_id, or None."""
    if not isinstance(name, str) or not name:
        return "custom_id must be a non-empty string."
    if len(name) > MAX_ID_CHARS or "\0" in name:
        return f"custom_id must have at most {MAX_ID_CHARS} characters and no NUL character."
    return None
