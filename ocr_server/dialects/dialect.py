"""A dialect: an API through which pages are read.

It turns a request into a plan, and the events of the plan's session into an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel

from ocr_server.dialects.messages import nothing_to_read
from ocr_server.dialects.wire import Wire
from ocr_server.intake.source import Content
from ocr_server.plan import ReadPlan
from ocr_server.runtime import Runtime
from ocr_server.session import Caller, Session

if TYPE_CHECKING:
    from config import Settings

W = TypeVar("W", bound=Wire)


@dataclass(frozen=True)
class Api:
    """A group of routes."""

    router: APIRouter
    endpoints: dict[str, str]
    """What `GET /` lists: name → method and path."""
    wire_types: Sequence[type[BaseModel]] = ()
    """Types to add to the OpenAPI schema: FastAPI does not see types that are parsed or sent by hand."""


@dataclass(frozen=True)
class Dialect(Generic[W]):
    """An API through which pages are read."""

    path: str
    api: Api
    parse: Callable[[bytes], W]
    """Parses a request body. Raises InvalidRequest."""
    parse_template: Callable[[bytes], W]
    """Parses the body of a request whose picture or document is passed to `plan`. Raises InvalidRequest."""
    plan: Callable[[W, Settings, Content | None], ReadPlan]
    """Turns a request into a plan. Pure: nothing is fetched or decoded. Raises InvalidRequest, NotFound.

    The last argument is the content to read if it does not come with the request but from a batch's file; None if the
    request names its own picture or document.
    """
    check_batchable: Callable[[W], None]
    """Raises InvalidRequest if the request asks for something that batches do not support, such as a stream."""
    respond: Callable[[W, Session, Runtime], Coroutine[Any, Any, str]]
    """Reads the pages and returns the whole answer as JSON. Closes the session."""

    async def answer(self, runtime: Runtime, body: bytes, caller: Caller, content: Content | None = None) -> str:
        """Answer a request of a batch, as JSON.

        Args:
            content: What to read if the body is a template; None if the body names its own picture or document.

        Raises:
            ApiError: The request cannot be answered.
        """
        request, plan = await runtime.sized(len(body), self.understand, body, runtime.settings, content)
        return await self.respond(request, await runtime.begin(plan, caller), runtime)

    def understand(self, body: bytes, settings: Settings, content: Content | None) -> tuple[W, ReadPlan]:
        """Parse and plan a request of a batch. Raises InvalidRequest, NotFound."""
        request = self.parse(body) if content is None else self.parse_template(body)
        self.check_batchable(request)
        plan = self.plan(request, settings, content)
        if not plan.sources:
            raise nothing_to_read()
        return request, plan
