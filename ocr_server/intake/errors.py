"""What intake raises: problems of a source or of one of its pages, without the names of request parameters.

Which field of which request a problem belongs to is known at the edge only, see `ReadPlan.api_error`.
"""

from __future__ import annotations

from typing import Literal

from ocr_server.errors import InputError

About = Literal["file", "pages"]


class SourceError(InputError):
    """A source, or a page of it, cannot be read. The message is safe to show."""

    def __init__(self, message: str, *, code: str | None = None, about: About = "file", source: int = 0) -> None:
        """Args:
        about: Whether the file is the problem or the selection of its pages.
        source: Which of the request's sources it is, from 0.
        """
        super().__init__(message, code=code)
        self.about: About = about
        self.source = source


class SourceNotFound(SourceError):
    """The client has no such file."""


class SourceTooLarge(SourceError):
    """The file, or a page of it, exceeds a limit of the server."""

    def __init__(self, message: str, *, code: str = "too_large") -> None:
        super().__init__(message, code=code)
