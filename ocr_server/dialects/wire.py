"""Base classes and fields that the wire types of all dialects share.

Wire types describe what clients send and receive. Only the dialects use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from deepseek_ocr.families import FAMILIES
from ocr_server.intake.document import MAX_DPI, MIN_DPI
from ocr_server.intake.page_selection import MAX_LENGTH as MAX_SELECTION
from ocr_server.output.tables import TableFormat

T = TypeVar("T")
Maybe = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""An optional field that is omitted from the answer if it is None."""


class Wire(BaseModel):
    """Base of what clients send. Types are not coerced, NaN is refused, and docstrings are the API documentation."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    REFUSED: ClassVar[Mapping[str, str]] = {}
    """Parameter that would change the answer but is not supported → the reason, for the error message."""

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown_field(cls, data: Any) -> Any:
        """Drop all unknown fields but the first, for each of which pydantic would collect an error."""
        if not isinstance(data, dict) or len(data) <= len(cls.model_fields):
            return data
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        first = next(name for name in data if name not in fields)
        return {name: value for name, value in data.items() if name in fields or name == first}


class Answer(BaseModel):
    """Base of what clients receive."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def known(names: Sequence[str], value: str) -> str:
    """Return `value` if it is one of `names`. For use in `AfterValidator`."""
    if value not in names:
        raise PydanticCustomError("name", "must be one of {names}", {"names": ", ".join(names)})
    return value


MODE_NAMES = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.modes))
ModeName = Annotated[
    str, AfterValidator(partial(known, MODE_NAMES)), Field(json_schema_extra={"enum": list(MODE_NAMES)})
]
"""A named resolution mode of any family. The plan checks whether the served model has it."""

LEAST_SECONDS, MOST_SECONDS = 3600, 30 * 86_400
"""Shortest and longest lifetime of a file."""

UNION_TAGS = frozenset({"<string>", "<list>", "<text>", "<image>", "<file>", "<other>"})
"""Names that pydantic reports for the members of unions in wire types. They are not part of a parameter's name."""


class ImageUrl(Wire):
    url: str
    """A `data:image/…;base64,…` URI or an http(s) URL."""
    detail: Literal["auto", "low", "high"] = "auto"
    """`low` selects the tiny mode, `high` the gundam mode, and `auto` the server's default mode."""


def string_or_list(value: Any) -> str:
    """Return the tag of the member of a union that `value` belongs to. For use in `Discriminator`."""
    return "<list>" if isinstance(value, list) else "<string>"


# Lists and mappings are limited, and validation ends at their first error: pydantic would collect one for each item.
PageNumbers = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[int], Field(max_length=MAX_SELECTION, fail_fast=True), Tag("<list>")],
    Discriminator(string_or_list),
]


class ReadingOptions(Wire):
    """Options on how pages are rendered and read."""

    dpi: Annotated[int | None, Field(ge=MIN_DPI, le=MAX_DPI)] = None
    """Resolution at which the pages of a PDF are rendered, pixels per inch: 36 to 600. The default is 144."""
    password: Annotated[str | None, Field(max_length=1000)] = None
    """Password of an encrypted PDF."""
    mode: ModeName | None = None
    """Name of a resolution mode. The following five fields override parts of it."""
    base_size: int | None = None
    """Side length of the global view, pixels: a multiple of 16 from 64 to 1280."""
    image_size: int | None = None
    """Side length of a tile, pixels: a multiple of 16 from 64 to 1280."""
    crop_mode: bool | None = None
    """Whether large pictures are split into tiles."""
    min_crops: int | None = None
    """Minimum number of tiles of a picture that is split, 1 to 9."""
    max_crops: int | None = None
    """Maximum number of tiles, 1 to 9."""
    ngram_size: int | None = None
    """Length of the n-grams that may not occur twice within the window, at most 128; 0 turns this guard off."""
    window_size: int | None = None
    """Number of most recent tokens that the guard searches."""
    whitelist_token_ids: Annotated[list[int], Field(max_length=1000, fail_fast=True)] | None = None
    """Ids of tokens that the guard never bans. The default is `<td>` and `</td>`."""
    table_format: TableFormat | None = None
    """How tables are written in markdown: `html`, as the model writes them, or `markdown`."""

    MODE_FIELDS: ClassVar = ("base_size", "image_size", "crop_mode", "min_crops", "max_crops")
    GUARD_FIELDS: ClassVar = ("ngram_size", "window_size", "whitelist_token_ids")

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the fields among `names` that the client set."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ExpiresAfter(Wire):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_SECONDS, le=MOST_SECONDS)]
    """Lifetime after the anchor, seconds: from an hour to 30 days."""
