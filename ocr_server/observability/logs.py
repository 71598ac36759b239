"""Logging as text or JSON, with the id of the request. Documents, prompts and keys are never logged."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

ACCESS = logging.getLogger("ocr_server.access")
ANONYMOUS = "anonymous"
"""Name of clients without an API key."""
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Id of the current request. It is not reset, since the server logs a failed request after all middleware has ended."""

VERBOSE_LOGGERS = ("sse_starlette", "httpcore", "httpx", "python_multipart", "multipart", "PIL", "hpack")
"""Loggers that would log documents, URLs or headers at the level `debug`. Their level is at least `info`."""
_TEXT = "%(levelname)s %(asctime)s %(name)s%(request)s: %(message)s"


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Configure logging for the whole process.

    Args:
        level: debug, info, warning or error.
        form: text or json.
        stream: Where log records are written. Default: stderr.
    """
    logging.basicConfig(level=level.upper(), handlers=[handler(form, stream)], force=True)
    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(level.upper())))
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs URLs at the level info


def handler(form: str, stream: TextIO | None = None) -> logging.Handler:
    """Return the handler that `set_up` installs."""
    made = logging.StreamHandler(stream or sys.stderr)
    made.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    made.addFilter(of_request)
    return made


def of_request(record: logging.LogRecord) -> bool:
    """Add the id of the current request to a log record, and remove the messages of exceptions.

    During a request, the message of an exception may quote the document. Its type and traceback are enough to find the
    cause.
    """
    made_for = request_id.get()
    record.request_id = made_for
    record.request = f" [{made_for}]" if made_for else ""
    if made_for and record.exc_info and record.exc_info[1] is not None:
        record.exc_text = "\n".join(_without_messages(record.exc_info[1]))  # used by formatters
    return True


class JsonFormatter(logging.Formatter):
    """Formats each record as a JSON object on one line."""

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
    *,
    method: str,
    route: str,
    status: int,
    client: str,
    seconds: float,
    reading: Mapping[str, object] | None = None,
    ignored: Sequence[str] = (),
) -> None:
    """Write the access log entry of a request that has ended.

    Args:
        method: HTTP method.
        route: Template of the route. The path itself may contain private data and is not logged.
        status: HTTP status.
        client: Label of the API key.
        seconds: Duration of the request.
        reading: Counts of what was read, if anything: `pages`, `failed_pages`, `prompt_tokens`, `completion_tokens`.
        ignored: Names of the fields of the request that have no effect.
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
    if ignored:
        fields["ignored"] = list(ignored)
        counts += f" ignored={json.dumps(','.join(ignored))}"  # the names are the client's
    text = f"{method} {route} {status} {seconds:.3f}s client={client}{counts}"
    ACCESS.info("%s", text, extra={"fields": fields})


READING = ("pages", "failed_pages", "prompt_tokens", "completion_tokens")
"""The entries of `scope["state"]["reading"]` that are logged."""


def _without_messages(error: BaseException, depth: int = 0) -> Iterator[str]:
    """Yield the tracebacks and types of an exception and of its causes, without their messages."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and depth < 10:
        yield from _without_messages(earlier, depth + 1)
        yield "which led to:"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    yield f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, BaseExceptionGroup) and depth < 10:
        for each in error.exceptions:
            yield "in the group:"
            yield from _without_messages(each, depth + 1)
