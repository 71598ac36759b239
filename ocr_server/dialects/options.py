"""Checks the options that the dialects share and turns them into parts of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deepseek_ocr.guard import Guard
from deepseek_ocr.modes import ResolutionMode
from ocr_server.dialects.wire import PageNumbers, ReadingOptions
from ocr_server.errors import InvalidRequest
from ocr_server.intake.document import DEFAULT_DPI
from ocr_server.intake.page_selection import Selection, parse_pages
from ocr_server.intake.source import Content, Source
from ocr_server.plan import PlannedSource

if TYPE_CHECKING:
    from config import Settings


OtherOptions = tuple[str, Mapping[str, Any]]
"""The prefix of options in the names of parameters, and their values."""


class SharedOptions:
    """The shared options of one request, under the names that its API gives them."""

    def __init__(
        self,
        options: ReadingOptions,
        pages: PageNumbers | None,
        settings: Settings,
        *,
        prefix: str,
        first_page: int,
        others: Sequence[OtherOptions] = (),
    ) -> None:
        """Args:
        pages: The selection of pages as the client wrote it; None for all.
        prefix: Prefix of the options' names in the request.
        first_page: Number of the first page in this API, 0 or 1.
        others: Some of the same options under other names. `options` take precedence.
        """
        self._named = [*others, (prefix, dict(options))]
        self._options = options
        self._settings = settings
        self._prefix = prefix
        self._selection = self._parse(pages, first_page)

    def source(
        self, content: Content, parameter: str, *, mode: ResolutionMode | None, alone: bool = True
    ) -> PlannedSource:
        """Return a source together with the options that apply to it.

        Args:
            parameter: The request parameter that gave the content.
            mode: The mode that the model's name or the picture's `detail` asks for. The options take precedence.
            alone: Whether it is the request's only source. If not, the selection of pages applies to documents only.

        Raises:
            InvalidRequest: The mode is not valid.
        """
        pages = self._selection
        if pages is not None and not alone:
            pages = replace(pages, documents_only=True)
        return PlannedSource(
            Source(content, pages, self._options.dpi or DEFAULT_DPI, self._options.password),
            self._mode(mode),
            {"file": parameter, "pages": f"{self._prefix}pages"},
        )

    def guard(self) -> Guard:
        """Return the settings of the n-gram guard. Raises InvalidRequest."""
        given = self._given(ReadingOptions.GUARD_FIELDS)
        defaults = {"ngram_size": self._settings.NGRAM_SIZE, "window_size": self._settings.WINDOW_SIZE}
        try:
            return Guard.from_args(defaults | given)
        except ValueError as error:
            raise self._error(error) from error

    def _mode(self, wanted: ResolutionMode | None) -> ResolutionMode:
        mode = wanted or self._settings.resolution_mode
        if self._options.mode is not None:
            named = self._settings.family.modes
            if self._options.mode not in named:
                raise InvalidRequest(
                    f"The model has no mode {self._options.mode!r}; its modes are {', '.join(named)}.",
                    param=f"{self._prefix}mode",
                )
            mode = named[self._options.mode]
        try:
            return mode.with_changes(self._given(ReadingOptions.MODE_FIELDS))
        except ValueError as error:
            raise self._error(error) from error

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the options among `names` that the request has."""
        merged: dict[str, Any] = {}
        for _, values in self._named:
            merged |= {name: values[name] for name in names if values.get(name) is not None}
        return merged

    def _parse(self, pages: PageNumbers | None, first: int) -> Selection | None:
        if pages is None:
            return None
        try:
            return parse_pages(pages, first=first)
        except ValueError as error:
            raise InvalidRequest(str(error), param=f"{self._prefix}pages", code="invalid_pages") from error

    def _error(self, error: ValueError) -> InvalidRequest:
        message = str(error)  # errors of `deepseek_ocr` start with the name of the field
        name = message.split(" ", 1)[0]
        prefix = next((each for each, values in reversed(self._named) if values.get(name) is not None), self._prefix)
        return InvalidRequest(message, param=prefix + name)


def check_prompt(text: str, settings: Settings, *, param: str) -> str:
    """Return `text` if it is not too long. Raises InvalidRequest."""
    if len(text) > settings.MAX_PROMPT_CHARS:
        raise InvalidRequest(
            f"The prompt has {len(text)} characters; the limit is {settings.MAX_PROMPT_CHARS}.", param=param
        )
    return text
