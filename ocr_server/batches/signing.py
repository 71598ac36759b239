"""Signed URLs: addresses of files that need no API key and expire.

The signature covers the file and the time of expiry, and neither host nor path prefix: a client may reach the server
under another name than the one in the URL. The key is in the database, so that all servers that share it accept each
other's URLs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from ocr_server.batches.database import Database
from ocr_server.batches.database import secrets as table

MAX_URL_CHARS = 4096
"""Length beyond which a URL is not one of ours. Names of hosts and path prefixes are shorter."""
_NAME = "signed_urls"
_URL = re.compile(
    r"https?://[^/?#\s]+(?:/[^?#\s]*)?/v1/files/(?P<file_id>[\w-]{1,64})/signed"
    r"\?expires=(?P<expires>[0-9]{1,12})&signature=(?P<signature>[0-9a-f]{64})(?:#.*)?",
    re.ASCII | re.IGNORECASE,
)


class Signature(NamedTuple):
    """What the address of a file says about itself."""

    file_id: str
    expires: int
    """Unix time in seconds."""
    signature: str


class Signer:
    """Signs the addresses of files, and checks their signatures."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        """Args:
        database: Keeps the key. It is created when it is first needed.
        clock: Returns the Unix time in seconds.
        """
        self._database = database
        self._clock = clock
        self._key = b""

    async def sign(self, file_id: str, seconds: int) -> Signature:
        """Return a signature that is valid for so many seconds. Raises Unavailable."""
        expires = int(self._clock()) + seconds
        return Signature(file_id, expires, await self._signature(file_id, expires))

    async def is_valid(self, given: Signature) -> bool:
        """Return whether this server, or one that shares its database, has made the signature. Raises Unavailable."""
        made = await self._signature(given.file_id, given.expires)
        return hmac.compare_digest(made.encode(), given.signature.lower().encode())

    def has_expired(self, given: Signature) -> bool:
        """Return whether a valid signature is too old."""
        return given.expires <= self._clock()

    async def _signature(self, file_id: str, expires: int) -> str:
        if not self._key:
            self._key = bytes.fromhex(await self._database.run(_key_of))
        return hmac.new(self._key, f"{file_id}\n{expires}".encode(), hashlib.sha256).hexdigest()


def path_of(signed: Signature) -> str:
    """Return the path and query of a signed URL."""
    return f"/v1/files/{signed.file_id}/signed?expires={signed.expires}&signature={signed.signature}"


def parse_url(url: str) -> Signature | None:
    """Return what a URL says if it has the form of a signed URL, under whatever host and path prefix."""
    match = _URL.fullmatch(url.strip()) if len(url) <= MAX_URL_CHARS else None
    if match is None:
        return None
    return Signature(match["file_id"], int(match["expires"]), match["signature"])


def _key_of(connection: Connection) -> str:
    """Return the key as hexadecimal digits. Create it if there is none."""
    find = select(table.c.value).where(table.c.name == _NAME)
    if (key := connection.execute(find).scalar()) is not None:
        return str(key)
    try:
        with connection.begin_nested():
            connection.execute(insert(table).values(name=_NAME, value=secrets.token_hex(32)))
    except IntegrityError:
        pass  # another server has just created it
    return str(connection.execute(find).scalar_one())
