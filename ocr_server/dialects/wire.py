"""Base classes and fields that the wire types of all dialects share.

Wire types describe what clients send and receive. Only the dialects use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from deepseek_ocr.families import FAMILIES
from ocr_server.intake.document import MAX_DPI, MIN_DPI
from ocr_server.intake.page_selection import MAX_LENGTH as MAX_SELECTION
from ocr_server.output.tables import TableFormat

T = TypeVar("T")
Maybe = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""An optional field that is omitted from the answer if it is None."""


MAX_IGNORED, MAX_IGNORED_CHARS = 20, 100
"""How many names of ignored fields are kept, and how many characters of each."""


class Ignored:
    """Names of the fields of a request that have no effect. As pydantic's context, it makes wire types accept them."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names, without repetitions."""
        return tuple(self._names)

    def add(self, name: str) -> None:
        """Note a name, unless there are too many."""
        if len(self._names) < MAX_IGNORED:
            self._names[name[:MAX_IGNORED_CHARS]] = None


class Wire(BaseModel):
    """Base of what clients send. Types are not coerced, NaN is refused, and docstrings are the API documentation.

    A field that is null is the same as one that is absent. A field that is not known is dropped and noted if the
    context is an `Ignored`, as with the bodies of requests; options that a Python program passes must exist.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    REFUSED: ClassVar[Mapping[str, str]] = {}
    """Parameter that would change the answer but is not supported → the reason, for the error message."""
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Values of these parameters that ask for nothing."""
    OPEN: ClassVar[bool] = True
    """Whether unknown fields may be dropped. If not, they are always an error."""
    EMPTY_IS_ABSENT: ClassVar[bool] = False
    """Whether an optional field with an empty list or object asks for nothing."""

    _ignored: tuple[str, ...] = PrivateAttr(default=())

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the fields that were dropped, here and in everything inside. Set by whoever parses a body."""
        return self._ignored

    def set_ignored(self, names: tuple[str, ...]) -> None:
        """Set `ignored`."""
        self._ignored = names

    @classmethod
    def is_ignored(cls, name: str) -> bool:
        """Return whether an unknown field may be dropped."""
        return cls.OPEN and name not in cls.REFUSED

    @model_validator(mode="before")
    @classmethod
    def _keep_what_asks_for_something(cls, data: Any, info: ValidationInfo) -> Any:
        """Drop fields that ask for nothing, and unknown ones. Of unknown ones that are errors, keep the first, since
        pydantic would collect an error for each.
        """
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        kept: dict[str, Any] = {}
        has_unknown = False
        for name, value in data.items():
            if value is None or (name in cls.NEUTRAL and value in cls.NEUTRAL[name]):
                continue
            known_field = fields.get(name)
            if cls.EMPTY_IS_ABSENT and value in ([], {}) and not (known_field and known_field.is_required()):
                continue
            if known_field is None:
                if isinstance(info.context, Ignored) and cls.is_ignored(name):
                    info.context.add(name)
                    continue
                if has_unknown:
                    continue
                has_unknown = True
            kept[name] = value
        return kept

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe what is accepted: null for every field that is not required, and unknown fields if `OPEN`."""
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        if cls.OPEN:
            own.pop("additionalProperties", None)
        for name, each in own.get("properties", {}).items():
            if name not in own.get("required", ()):
                _allow_null(each)
        return schema


def _allow_null(schema: JsonSchemaValue) -> None:
    """Change the JSON schema of a field so that it allows null."""
    notes = {"default", "description", "title"}
    kind = {name: schema.pop(name) for name in list(schema) if name not in notes}
    choices = kind["anyOf"] if list(kind) == ["anyOf"] else [kind] if kind else []
    if choices and {"type": "null"} not in choices:
        choices = [*choices, {"type": "null"}]
    if choices:
        schema["anyOf"] = choices


class Answer(BaseModel):
    """Base of what clients receive."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def known(names: Sequence[str], value: str | None) -> str | None:
    """Return `value` if it is None or one of `names`. For use in `AfterValidator`."""
    if value is not None and value not in names:
        raise PydanticCustomError("name", "must be one of {names}", {"names": ", ".join(names)})
    return value


MODE_NAMES = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.modes))
ModeName = Annotated[
    str, AfterValidator(partial(known, MODE_NAMES)), Field(json_schema_extra={"enum": list(MODE_NAMES)})
]
"""A named resolution mode of any family. The plan checks whether the served model has it."""

LEAST_SECONDS, MOST_SECONDS = 3600, 30 * 86_400
"""Shortest and longest lifetime of a file."""

UNION_TAGS = frozenset({"<string>", "<list>", "<object>", "<text>", "<image>", "<file>", "<other>", "<message>"})
"""Names that pydantic reports for the members of unions in wire types. They are not part of a parameter's name."""


def string_or_list(value: Any) -> str:
    """Return the tag of the member of a union that `value` belongs to. For use in `Discriminator`."""
    return "<list>" if isinstance(value, list) else "<string>"


def string_or_object(value: Any) -> str:
    """Return the tag of the member of a union that `value` belongs to. For use in `Discriminator`."""
    return "<string>" if isinstance(value, str) else "<object>"


# Lists and mappings are limited, and validation ends at their first error: pydantic would collect one for each item.
PageNumbers = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[int], Field(max_length=MAX_SELECTION, fail_fast=True), Tag("<list>")],
    Discriminator(string_or_list),
]


class ReadingOptions(Wire):
    """Options on how pages are rendered and read. A misspelt one is an error."""

    OPEN: ClassVar = False

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
