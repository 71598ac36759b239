"""Lists in OpenAI's manner: some rows, from the one after the last that was seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, select

from ocr_server.errors import InvalidRequest

_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class Listing(NamedTuple):
    rows: Sequence[RowMapping]
    has_more: bool


def list_rows(
    connection: Connection,
    *,
    table: Table,
    known: Sequence[ColumnElement[bool]],
    shown: Sequence[ColumnElement[bool]] = (),
    after: str | None,
    limit: int,
    newest_first: bool = True,
) -> Listing:
    """Rows of `table`, in the order in which they were made.

    Args:
        known: what may be named by `after`.
        shown: what of it is listed.
        after: the id of a row; those behind it are given.

    Raises:
        InvalidRequest: there is no such row.
    """
    order = table.c.seq.desc() if newest_first else table.c.seq.asc()
    rows = select(table).where(*known, *shown).order_by(order).limit(limit + 1)
    if after is not None:
        place = is_id(after) and connection.execute(select(table.c.seq).where(*known, table.c.id == after)).scalar()
        if not place:
            raise InvalidRequest(f"There is nothing with the id {after!r}.", param="after")
        rows = rows.where(table.c.seq < place if newest_first else table.c.seq > place)
    found = connection.execute(rows).mappings().all()
    return Listing(found[:limit], len(found) > limit)


def is_id(text: str) -> bool:
    """Whether it could be one; not every database takes every text."""
    return _ID.fullmatch(text) is not None
