"""What a dialect is: an API by which pages are read. Requests become plans, and a plan's events become answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel

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
    """Routes that belong together."""

    router: APIRouter
    endpoints: dict[str, str]
    """What `GET /` lists: name → method and path."""
    wire_types: Sequence[type[BaseModel]] = ()
    """Types that FastAPI does not see, since they are parsed and sent by hand; for the OpenAPI schema."""


@dataclass(frozen=True)
class Dialect(Generic[W]):
    """An API by which pages are read: `plan`, and `respond`."""

    path: str
    api: Api
    parse: Callable[[bytes], W]
    """Body → request. Raises InvalidRequest."""
    parse_template: Callable[[bytes], W]
    """The same for a body without a picture or document, of which `plan` is given one. Raises InvalidRequest."""
    plan: Callable[[W, Settings, Content | None], ReadPlan]
    """Request → plan. Pure: nothing is fetched or decoded. Raises InvalidRequest, NotFound.

    The last argument is a source that comes with the request from elsewhere (a batch's file); None if the request
    names its own."""
    check_batchable: Callable[[W], None]
    """Raises InvalidRequest where a request asks for what a batch cannot have, such as a stream."""
    respond: Callable[[W, Session, Runtime], Coroutine[Any, Any, str]]
    """Read the pages → the whole answer as JSON. Closes the session."""

    async def answer(self, runtime: Runtime, body: bytes, caller: Caller, content: Content | None = None) -> str:
        """Answer a request of a batch.

        Args:
            content: What is read, if the body is a template.

        Raises:
            ApiError: The request cannot be answered.
        """
        request, plan = self.understand(body, runtime.settings, content)
        return await self.respond(request, await runtime.begin(plan, caller), runtime)

    def understand(self, body: bytes, settings: Settings, content: Content | None) -> tuple[W, ReadPlan]:
        """A batch's request and its plan. Raises InvalidRequest, NotFound."""
        request = self.parse(body) if content is None else self.parse_template(body)
        self.check_batchable(request)
        return request, self.plan(request, settings, content)
