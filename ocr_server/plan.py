"""What a request asks for, whichever API it uses: what to read, how to read it, and what to make of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deepseek_ocr.families import Family
from deepseek_ocr.modes import ResolutionMode
from ocr_server.errors import ApiError, DecodingError, InputError, InvalidRequest, NotFound, TooLarge
from ocr_server.intake.errors import About, SourceError, SourceNotFound, SourceTooLarge
from ocr_server.intake.source import Source
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.formats import Format
from ocr_server.output.formats.raw import RAW
from ocr_server.reading.decoding import Decoding


@dataclass(frozen=True)
class PlannedSource:
    """A source, the mode in which its pages are read, and the names of its parameters in the request."""

    source: Source
    mode: ResolutionMode
    parameters: Mapping[About, str]
    """Names of the request parameters that gave the file and the selection of its pages."""


@dataclass(frozen=True)
class PageLimit:
    """A parameter with which a request may have only so many pages."""

    parameter: str
    pages: int


@dataclass(frozen=True)
class ReadPlan:
    """What a dialect makes of a request. Everything behind the dialects knows only the plan."""

    family: Family
    sources: tuple[PlannedSource, ...]
    prompt: str
    decoding: Decoding
    artifacts: Artifacts = field(default_factory=Artifacts)
    text: Format = RAW
    """Format of the text of the answer, if its dialect has one."""
    show_pages: bool = False
    """Whether the picture of each page is wanted before its text."""
    page_limit: PageLimit | None = None
    """A parameter of the request that limits the number of its pages."""
    decoding_parameters: Mapping[str, str] = field(default_factory=dict)
    """Field of `Decoding` → name of the request parameter that gave it, where the two differ."""

    def api_error(self, error: InputError) -> ApiError:
        """Return the error for the client, with the name of the request parameter that caused it."""
        kind: type[ApiError] = InvalidRequest
        if isinstance(error, SourceTooLarge):
            kind = TooLarge
        elif isinstance(error, SourceNotFound):
            kind = NotFound
        return kind(error.message, code=error.code, param=self._parameter(error))

    def _parameter(self, error: InputError) -> str | None:
        if isinstance(error, SourceError):
            return self.sources[error.source].parameters[error.about]
        if isinstance(error, DecodingError):
            return self.decoding_parameters.get(error.field, error.field) or None
        return None
