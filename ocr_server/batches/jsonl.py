"""A JSONL file of requests, as OpenAI's batches have it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Collection, Generator, Iterator
from typing import Any

from pydantic_core import from_json, to_json

from ocr_server.batches.requests import Checked, Item, count_errors, unfit_id
from ocr_server.batches.storage import Storage

KEYS = {"custom_id", "method", "url", "body"}


class LineTooLong(Exception):
    def __init__(self, line: int) -> None:
        self.line = line


class BadLine(Exception):
    """args: code, message, param."""


class JsonlRequests:
    def __init__(self, storage: Storage, file_id: str, endpoint: str, *, most: int, longest: int) -> None:
        """Args:
        most: requests.
        longest: bytes of a line.
        """
        self._storage = storage
        self._file_id = file_id
        self._endpoint = endpoint
        self._most = most
        self._longest = longest

    async def check(self) -> Checked:
        return await asyncio.to_thread(self._check)

    async def items(self, done: Collection[int]) -> AsyncGenerator[Item]:
        lines = self._lines()
        try:
            while (item := await asyncio.to_thread(self._next, lines, done)) is not None:
                yield item
        finally:
            await asyncio.to_thread(lines.close)

    async def close(self) -> None:
        pass

    def _check(self) -> Checked:
        checked, seen = Checked(), set[bytes]()
        try:
            for line, data in self._lines():
                checked.total += 1
                if checked.total > self._most:
                    break
                try:
                    name, _ = parse_line(data, self._endpoint)
                except BadLine as error:
                    code, message, param = error.args
                    if checked.wrong(code, message, line=line, param=param):
                        break
                    continue
                digest = hashlib.sha256(name.encode()).digest()
                if digest in seen and checked.wrong(
                    "duplicate_custom_id",
                    "This custom_id stands on an earlier line, too.",
                    line=line,
                    param="custom_id",
                ):
                    break
                seen.add(digest)
        except LineTooLong as error:
            limit = f"{self._longest:,} bytes"
            checked.wrong("line_too_long", f"The line is longer than {limit}.", line=error.line)
        return count_errors(checked, self._most)

    def _next(self, lines: Iterator[tuple[int, bytes]], done: Collection[int]) -> Item | None:
        for line, data in lines:
            if line not in done:
                name, body = parse_line(data, self._endpoint)
                return Item(line, name, to_json(body))
        return None

    def _lines(self) -> Generator[tuple[int, bytes]]:
        """The number and the bytes of each line that is not blank. Raises LineTooLong; as `Storage.open`."""
        number, kept = 0, bytearray()
        for chunk in self._storage.chunks(self._file_id):
            *whole, rest = chunk.split(b"\n")
            for end in whole:
                number += 1
                if len(kept) + len(end) > self._longest:
                    raise LineTooLong(number)
                kept += end
                line, kept = bytes(kept), bytearray()
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
            kept += rest
            if len(kept) > self._longest:
                raise LineTooLong(number + 1)
        if kept.strip():
            yield number + 1, bytes(kept).removeprefix(b"\xef\xbb\xbf" if number == 0 else b"")


def parse_line(data: bytes, endpoint: str) -> tuple[str, dict[str, Any]]:
    """The custom_id and the body of a request.

    Raises:
        BadLine: it is none, or not for `endpoint`.
    """
    try:
        line = from_json(data, allow_inf_nan=False)
    except ValueError:
        raise BadLine("invalid_json_line", "This line is not valid JSON.", None) from None
    if not isinstance(line, dict):
        raise BadLine("invalid_json_line", "This line is not a JSON object.", None)
    if missing := sorted(KEYS - line.keys()):
        raise BadLine("missing_required_parameter", f"There is no {missing[0]}.", missing[0])
    if unknown := sorted(line.keys() - KEYS):
        raise BadLine("unknown_parameter", "A line has custom_id, method, url and body only.", unknown[0][:100])
    if wrong := unfit_id(line["custom_id"]):
        raise BadLine("invalid_custom_id", wrong, "custom_id")
    if line["method"] != "POST":
        raise BadLine("invalid_method", "The method is POST.", "method")
    if line["url"] != endpoint:
        raise BadLine("invalid_url", f"The url is that of the batch's endpoint, {endpoint}.", "url")
    if not isinstance(line["body"], dict):
        raise BadLine("invalid_body", "The body is a JSON object.", "body")
    return line["custom_id"], line["body"]
