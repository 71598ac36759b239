"""Paginated lists as in OpenAI's API: a number of rows that follow the row `after`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, func, select

from ocr_server.errors import InvalidRequest

_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class Listing(NamedTuple):
    """A page of a list."""

    rows: Sequence[RowMapping]
    has_more: bool
    total: int | None = None
    """Number of rows of all pages, if it was asked for."""


def list_rows(
    connection: Connection,
    *,
    table: Table,
    known: Sequence[ColumnElement[bool]],
    shown: Sequence[ColumnElement[bool]] = (),
    after: str | None,
    limit: int,
    newest_first: bool = True,
    offset: int = 0,
    with_total: bool = False,
) -> Listing:
    """Return rows of `table`, in the order of their creation.

    Args:
        connection: Connection to the database.
        table: A table with the columns `seq` and `id`.
        known: Conditions on rows that `after` may refer to.
        shown: Further conditions on rows that are listed.
        after: Id of a row. The rows that follow it are listed.
        limit: Maximum number of rows.
        newest_first: Whether the order is reversed.
        offset: Number of rows that are skipped.
        with_total: Whether all rows are counted.

    Raises:
        InvalidRequest: There is no row `after`.
    """
    order = table.c.seq.desc() if newest_first else table.c.seq.asc()
    rows = select(table).where(*known, *shown).order_by(order).limit(limit + 1).offset(offset)
    if after is not None:
        place = is_id(after) and connection.execute(select(table.c.seq).where(*known, table.c.id == after)).scalar()
        if not place:
            raise InvalidRequest(f"No object with the id {after[:64]!r} exists.", param="after")
        rows = rows.where(table.c.seq < place if newest_first else table.c.seq > place)
    found = connection.execute(rows).mappings().all()
    count = select(func.count()).select_from(table).where(*known, *shown)
    total = int(connection.execute(count).scalar_one()) if with_total else None
    return Listing(found[:limit], len(found) > limit, total)


def is_id(text: str) -> bool:
    """Return whether a text has the form of an id. Databases do not accept every text."""
    return _ID.fullmatch(text) is not None
