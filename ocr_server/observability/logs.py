"""What is logged, and how: as text or JSON, with the request's id, and nothing of a document, a prompt or a key."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

ACCESS = logging.getLogger("ocr_server.access")
ANONYMOUS = "anonymous"
"""The client of requests without an API key."""
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Of the request that is being answered. It is not set back: what the server itself logs of a request that failed
comes after all middleware."""

TALKATIVE = ("sse_starlette", "httpcore", "httpx", "python_multipart", "multipart", "PIL", "hpack")
"""At the level `debug` these would log what they handle: documents, URLs, headers."""
_TEXT = "%(levelname)s %(asctime)s %(name)s%(request)s: %(message)s"


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Everything that is logged in this process goes to `stream` (stderr by default), in one form.

    Args:
        level: debug, info, warning or error.
        form: text or json.
    """
    logging.basicConfig(level=level.upper(), handlers=[handler(form, stream)], force=True)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(level.upper())))
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs URLs as information


def handler(form: str, stream: TextIO | None = None) -> logging.Handler:
    """As `set_up` installs it."""
    made = logging.StreamHandler(stream or sys.stderr)
    made.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    made.addFilter(of_request)
    return made


def of_request(record: logging.LogRecord) -> bool:
    """Say in a record which request it was made for, and keep what an exception says out of it.

    Where a request is answered, an exception's message may quote what was being read; its type and place are enough
    to find what went wrong.
    """
    made_for = request_id.get()
    record.request_id = made_for
    record.request = f" [{made_for}]" if made_for else ""
    if made_for and record.exc_info and record.exc_info[1] is not None:
        record.exc_text = "\n".join(_discreet(record.exc_info[1]))  # which formatters take instead of their own
    return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if said := getattr(record, "request_id", ""):
            line["request_id"] = said
        line |= getattr(record, "fields", {})
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


def access(
    *, method: str, route: str, status: int, client: str, seconds: float, reading: Mapping[str, object] | None = None
) -> None:
    """The one line that a request leaves behind when it has ended.

    Args:
        route: its template: what a client put into the path, or behind it, is nobody's business.
        reading: what was read, if anything: `pages`, `failed_pages`, `prompt_tokens`, `completion_tokens`.
    """
    fields: dict[str, object] = {
        "method": method,
        "route": route,
        "status": status,
        "client": client,
        "seconds": round(seconds, 4),
        **{name: reading[name] for name in READING if reading is not None and name in reading},
    }
    counts = "".join(f" {name}={fields[name]}" for name in READING if name in fields)
    text = f"{method} {route} {status} {seconds:.3f}s client={client}{counts}"
    ACCESS.info("%s", text, extra={"fields": fields})


READING = ("pages", "failed_pages", "prompt_tokens", "completion_tokens")
"""What of `scope["state"]["reading"]` is logged."""


def _discreet(error: BaseException, depth: int = 0) -> Iterator[str]:
    """Traceback and type of `error` and of what led to it, without what they say."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and depth < 10:
        yield from _discreet(earlier, depth + 1)
        yield "which led to:"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    yield f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, BaseExceptionGroup) and depth < 10:
        for each in error.exceptions:
            yield "in the group:"
            yield from _discreet(each, depth + 1)
