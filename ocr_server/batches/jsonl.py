"""Batches whose input is a JSONL file in OpenAI's format, where each line is a request."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Collection, Generator, Iterator
from typing import Any

from pydantic_core import from_json, to_json

from ocr_server.batches.requests import CheckResult, Item, count_errors, custom_id_problem
from ocr_server.batches.storage import Storage
from ocr_server.errors import InvalidRequest
from ocr_server.transport.json_limits import check_json

KEYS = {"custom_id", "method", "url", "body"}
"""Keys of each line."""


class LineTooLong(Exception):
    """A line exceeds the maximum length."""

    def __init__(self, line: int) -> None:
        self.line = line


class TooManyBlankLines(Exception):
    """There are more blank lines than the file may have requests."""


class BadLine(Exception):
    """A line is not a valid request. `args` are the code, the message and the parameter of the error."""


class JsonlRequests:
    """The lines of a JSONL file."""

    def __init__(
        self, storage: Storage, file_id: str, endpoint: str, *, max_requests: int, max_line_bytes: int
    ) -> None:
        """Args:
        storage: Where the file is stored.
        file_id: Id of the file.
        endpoint: Path of the endpoint that all requests must have.
        max_requests: Maximum number of requests.
        max_line_bytes: Maximum length of a line in bytes.
        """
        self._storage = storage
        self._file_id = file_id
        self._endpoint = endpoint
        self._max_requests = max_requests
        self._max_line_bytes = max_line_bytes

    async def check(self) -> CheckResult:
        return await self._storage.run(self._check)

    async def items(self, done: Collection[int]) -> AsyncGenerator[Item]:
        lines = self._lines()
        try:
            while (item := await self._storage.run(self._next, lines, done)) is not None:
                yield item
        finally:
            await self._storage.run(lines.close)

    async def close(self) -> None:
        pass

    def _check(self) -> CheckResult:
        checked, seen = CheckResult(), set[bytes]()
        try:
            for line, data in self._lines():
                checked.total += 1
                if checked.total > self._max_requests:
                    break
                try:
                    name, _ = parse_line(data, self._endpoint)
                except BadLine as error:
                    code, message, param = error.args
                    if checked.add_error(code, message, line=line, param=param):
                        break
                    continue
                digest = hashlib.sha256(name.encode()).digest()
                if digest in seen and checked.add_error(
                    "duplicate_custom_id",
                    "This custom_id is already used on an earlier line.",
                    line=line,
                    param="custom_id",
                ):
                    break
                seen.add(digest)
        except LineTooLong as error:
            message = f"The line exceeds the limit of {self._max_line_bytes:,} bytes."
            checked.add_error("line_too_long", message, line=error.line)
        except TooManyBlankLines:
            message = f"The file has more than {self._max_requests:,} blank lines."
            checked.add_error("too_many_blank_lines", message)
        return count_errors(checked, self._max_requests)

    def _next(self, lines: Iterator[tuple[int, bytes]], done: Collection[int]) -> Item | None:
        for line, data in lines:
            if line not in done:
                name, body = parse_line(data, self._endpoint)
                return Item(line, name, to_json(body))
        return None

    def _lines(self) -> Generator[tuple[int, bytes]]:
        """Yield the number and the bytes of each line that is not blank.

        Raises:
            LineTooLong: A line exceeds the maximum length.
            TooManyBlankLines: The blank lines exceed the maximum number of requests.
            NotFound, Unavailable: As `Storage.open`.
        """
        number, blank, kept = 0, 0, bytearray()
        for chunk in self._storage.chunks(self._file_id):
            *whole, rest = chunk.split(b"\n")
            for end in whole:
                number += 1
                if len(kept) + len(end) > self._max_line_bytes:
                    raise LineTooLong(number)
                kept += end
                line, kept = bytes(kept), bytearray()
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
                    continue
                blank += 1
                if blank > self._max_requests:
                    raise TooManyBlankLines
            kept += rest
            if len(kept) > self._max_line_bytes:
                raise LineTooLong(number + 1)
        if kept.strip():
            yield number + 1, bytes(kept).removeprefix(b"\xef\xbb\xbf" if number == 0 else b"")


def parse_line(data: bytes, endpoint: str) -> tuple[str, dict[str, Any]]:
    """Return the custom_id and the body of a request.

    Raises:
        BadLine: The line is not a valid request for `endpoint`.
    """
    try:
        check_json(data)
        line = from_json(data, allow_inf_nan=False)
    except InvalidRequest as error:
        raise BadLine(error.code, error.message, None) from None
    except ValueError:
        raise BadLine("invalid_json_line", "This line is not valid JSON.", None) from None
    if not isinstance(line, dict):
        raise BadLine("invalid_json_line", "This line is not a JSON object.", None)
    if missing := sorted(KEYS - line.keys()):
        raise BadLine("missing_required_parameter", f"{missing[0]} is missing.", missing[0])
    if unknown := sorted(line.keys() - KEYS):
        raise BadLine(
            "unknown_parameter", "Unknown key. A line consists of custom_id, method, url and body.", unknown[0][:100]
        )
    if wrong := custom_id_problem(line["custom_id"]):
        raise BadLine("invalid_custom_id", wrong, "custom_id")
    if line["method"] != "POST":
        raise BadLine("invalid_method", "method must be POST.", "method")
    if line["url"] != endpoint:
        raise BadLine("invalid_url", f"url must be the endpoint of the batch, {endpoint}.", "url")
    if not isinstance(line["body"], dict):
        raise BadLine("invalid_body", "body must be a JSON object.", "body")
    return line["custom_id"], line["body"]
