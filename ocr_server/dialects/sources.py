"""The sources of a plan: what a conversation asks to read, or what a batch's file contains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_ocr.modes import ResolutionMode
from ocr_server.dialects.messages import Conversation
from ocr_server.dialects.options import SharedOptions
from ocr_server.errors import InvalidRequest
from ocr_server.intake.source import Content
from ocr_server.plan import PlannedSource

if TYPE_CHECKING:
    from config import Settings


def planned_sources(
    asked: Conversation,
    shared: SharedOptions,
    settings: Settings,
    content: Content | None,
    *,
    mode: ResolutionMode | None,
    place: str,
) -> tuple[PlannedSource, ...]:
    """Return the sources, each with the options that apply to it.

    Args:
        mode: The mode that the request asks for; None for the one that the `detail` of each picture asks for.
        content: What to read if the request is a batch's template; None if the request has pictures of its own.
        place: Name of the conversation in the request.

    Raises:
        InvalidRequest: There are too many, or a template has pictures of its own.
    """
    if content is not None:
        if asked.to_read:
            raise InvalidRequest(
                "The requests of a batch of a PDF or zip can have no pictures of their own.", param=place
            )
        return (shared.source(content, "input_file_id", mode=mode),)
    if len(asked.to_read) > settings.MAX_IMAGES:
        raise InvalidRequest(
            f"The request has {len(asked.to_read)} pictures; the limit is {settings.MAX_IMAGES}.", param=place
        )
    return tuple(
        shared.source(
            each.content,
            each.parameter,
            mode=mode or settings.family.modes.get(settings.detail_modes.get(each.detail, "")),
            alone=len(asked.to_read) == 1,
        )
        for each in asked.to_read
    )
