"""API keys: how they are written, and the ring that a request's key is looked up in.

A key is written as itself or as `sha256:` and the hash's 64 hex digits, with a label in front or without::

    sk-1234
    alice: sk-5678
    bob: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The label says in the log whose requests they are. Only hashes are kept in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often the file of keys is looked at, at most."""
_LABEL = r"(?P<label>(?!(?i:sha256):)[A-Za-z0-9._-]{1,64}):[ \t]*"
_ENTRY = re.compile(rf"(?:{_LABEL})?(?:(?i:sha256):(?P<hash>[0-9A-Fa-f]{{64}})|(?P<key>[!-+\--9;-~]+))")
"""A key is visible ASCII without comma and colon: one that has them can be given by its hash."""


@dataclass(frozen=True)
class Key:
    digest: bytes = field(repr=False)
    """SHA-256."""
    label: str


def parse_key(text: str) -> Key:
    """Raises:
    ValueError: it is none; the message does not repeat it.
    """
    entry = _ENTRY.fullmatch(text.strip())
    if entry is None:
        raise ValueError("a key is visible ASCII without comma or colon, or sha256: and 64 hex digits")
    given = entry["hash"]
    digest = bytes.fromhex(given) if given else hashlib.sha256(entry["key"].encode()).digest()
    return Key(digest, entry["label"] or digest.hex()[:8])


def parse_keys(text: str) -> list[Key]:
    """Keys with commas between; none if `text` is empty.

    Raises:
        ValueError: one of them is none, or there are only commas.
    """
    keys = [parse_key(entry) for entry in text.split(",") if entry.strip()]
    if text and not keys:
        raise ValueError("there is no key in it")
    return keys


class KeyRing:
    """The keys that are valid now: the given ones, and those in a file that may change at any time."""

    def __init__(
        self, keys: list[Key], file: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        keys: valid for good.
        file: one key a line; what follows a `#` at the start of a line or after a space is a comment. Read again when
            it has changed. While it can't be read, the keys it last had stay valid; an empty one has none.
        """
        self._given = keys
        self._file = file
        self._clock = clock
        self._in_file: list[Key] = []
        self._stamp: tuple[int, ...] | None = None
        self._next_check = 0.0
        self._trouble = ""
        self._look(clock())

    @property
    def open(self) -> bool:
        """Whether no key is asked for: neither keys nor a file are set."""
        return not self._given and self._file is None

    def owner(self, key: bytes) -> str | None:
        """The label of `key`; None if it is not valid. Takes as long for every key."""
        now = self._clock()
        if now >= self._next_check:
            self._look(now)
        digest = hashlib.sha256(key).digest()
        label: str | None = None
        for each in (*self._given, *self._in_file):
            if hmac.compare_digest(each.digest, digest):
                label = each.label
        return label

    def _look(self, now: float) -> None:
        self._next_check = now + CHECK_SECONDS
        if self._file is None:
            return
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._in_file = list(_keys_in(self._file.read_text(encoding="utf-8")))
                self._stamp = stamp
            self._trouble = ""
        except (OSError, UnicodeDecodeError) as error:
            self._stamp = None
            trouble = (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is no UTF-8"
            if trouble != self._trouble:  # once, not every second
                logger.error("the file of API keys can't be read: %s; its last keys stay valid", trouble)
            self._trouble = trouble


def _keys_in(text: str) -> Iterator[Key]:
    """A wrong line is told by its number and left out: a mistake lets nobody in, and keeps nobody else out."""
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        entry = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not entry:
            continue
        try:
            yield parse_key(entry)
        except ValueError as error:
            logger.error("the file of API keys has none in line %d: %s", number, error)
