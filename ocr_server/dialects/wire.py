"""What the wire types of all dialects share.

Wire types are what a client sends and gets; nothing behind the dialects knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from deepseek_ocr.families import FAMILIES
from ocr_server.intake.document import MAX_DPI, MIN_DPI
from ocr_server.output.tables import TableFormat

T = TypeVar("T")
Maybe = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""A field that is left out of the answer where it is None."""


class Wire(BaseModel):
    """What a client sends: types are not coerced, NaN is refused, docstrings become the documentation."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    REFUSED: ClassVar[Mapping[str, str]] = {}
    """Parameters that would change the answer and cannot be honoured → the reason, for the error message."""


class Answer(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def known(names: Sequence[str], value: str) -> str:
    """`value` if it is one of `names`; for `AfterValidator`."""
    if value not in names:
        raise PydanticCustomError("name", "must be one of {names}", {"names": ", ".join(names)})
    return value


MODE_NAMES = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.modes))
ModeName = Annotated[
    str, AfterValidator(partial(known, MODE_NAMES)), Field(json_schema_extra={"enum": list(MODE_NAMES)})
]
"""A named resolution mode of any family; whether the served model has it, the plan checks."""

LEAST_SECONDS, MOST_SECONDS = 3600, 30 * 86_400
"""Legal lifetimes of files."""

UNION_TAGS = frozenset({"<string>", "<parts>", "<text>", "<image>", "<file>", "<other>"})
"""Names that pydantic reports for members of the unions in wire types; they are no part of a request."""


class ImageUrl(Wire):
    url: str
    """A `data:image/…;base64,…` URI or an http(s) URL."""
    detail: Literal["auto", "low", "high"] = "auto"
    """`low` reads in tiny mode, `high` in gundam mode, `auto` in the server's default mode."""


PageNumbers = str | list[int]


class ReadingOptions(Wire):
    """How pages are made, and how the model is run on them."""

    dpi: Annotated[int | None, Field(ge=MIN_DPI, le=MAX_DPI)] = None
    """At which a PDF's pages are rendered, 36 to 600; 144 if not given."""
    password: str | None = None
    """Opens an encrypted PDF."""
    mode: ModeName | None = None
    """A named resolution mode; the fields below change it."""
    base_size: int | None = None
    """Side of the global view, pixels; a multiple of 16 from 64 to 1280."""
    image_size: int | None = None
    """Side of a tile, pixels; a multiple of 16 from 64 to 1280."""
    crop_mode: bool | None = None
    """Whether large pictures are cut into tiles."""
    min_crops: int | None = None
    """Fewest tiles of a picture that is cut, 1 to 9."""
    max_crops: int | None = None
    """Most tiles, 1 to 9."""
    ngram_size: int | None = None
    """No n-gram of this length is repeated within the window; 0 turns the guard off; at most 128."""
    window_size: int | None = None
    """How many of the last tokens the guard looks at."""
    whitelist_token_ids: list[int] | None = None
    """Tokens the guard never bans; `<td>` and `</td>` if not given."""
    table_format: TableFormat | None = None
    """How tables are written in markdown: `html`, as the model does, or `markdown`."""

    MODE_FIELDS: ClassVar = ("base_size", "image_size", "crop_mode", "min_crops", "max_crops")
    GUARD_FIELDS: ClassVar = ("ngram_size", "window_size", "whitelist_token_ids")

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The fields among `names` that the client set."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ExpiresAfter(Wire):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_SECONDS, le=MOST_SECONDS)]
    """From an hour to 30 days after the anchor."""
