"""API keys: how they are written, and the key ring that looks up the key of a request.

A key is written in plain text, or as `sha256:` followed by its hash in 64 hexadecimal digits. A label can precede it::

    sk-1234
    alice: sk-5678
    bob: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The label identifies the client in the log. Only hashes are kept in memory.
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
"""Minimum number of seconds between two checks whether the key file has changed."""
_LABEL = r"(?P<label>(?!(?i:sha256):)[A-Za-z0-9._-]{1,64}):[ \t]*"
_ENTRY = re.compile(rf"(?:{_LABEL})?(?:(?i:sha256):(?P<hash>[0-9A-Fa-f]{{64}})|(?P<key>[!-+\--9;-~]+))")
"""A plain-text key consists of visible ASCII characters except comma and colon. Other keys can be given as a hash."""


@dataclass(frozen=True)
class Key:
    """A valid API key."""

    digest: bytes = field(repr=False)
    """SHA-256 of the key."""
    label: str
    """Name of the client. By default, the first 8 digits of the hash."""


def parse_key(text: str) -> Key:
    """Parse a key, with or without a label.

    Raises:
        ValueError: The text is not a key. The message does not contain the text.
    """
    entry = _ENTRY.fullmatch(text.strip())
    if entry is None:
        raise ValueError("a key must be visible ASCII without comma or colon, or sha256: and 64 hexadecimal digits")
    given = entry["hash"]
    digest = bytes.fromhex(given) if given else hashlib.sha256(entry["key"].encode()).digest()
    return Key(digest, entry["label"] or digest.hex()[:8])


def parse_keys(text: str) -> list[Key]:
    """Parse a list of keys separated by commas. An empty text has no keys.

    Raises:
        ValueError: An entry is not a key, or the text has only commas.
    """
    keys = [parse_key(entry) for entry in text.split(",") if entry.strip()]
    if text and not keys:
        raise ValueError("the list contains no key")
    return keys


class KeyRing:
    """The valid keys: fixed ones, and those in a file that may change at any time."""

    def __init__(
        self, keys: list[Key], file: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        keys: Keys that stay valid.
        file: A file with one key on each line. `#` at the start of a line or after white space begins a comment. The
            file is read again when it has changed. While it cannot be read, its previous keys stay valid. If it is
            empty, it has no keys.
        clock: Returns the time in seconds.
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
        """Whether no key is required: neither keys nor a file are configured."""
        return not self._given and self._file is None

    def owner(self, key: bytes) -> str | None:
        """Return the label of `key`, or None if it is not valid. Takes the same time for every key."""
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
            trouble = (error.strerror or type(error).__name__) if isinstance(error, OSError) else "not valid UTF-8"
            if trouble != self._trouble:  # log it once, not every second
                logger.error("the API key file cannot be read: %s; its previous keys stay valid", trouble)
            self._trouble = trouble


def _keys_in(text: str) -> Iterator[Key]:
    """Yield the keys of a file. An invalid line is logged with its number and skipped; the other lines stay valid."""
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        entry = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not entry:
            continue
        try:
            yield parse_key(entry)
        except ValueError as error:
            logger.error("invalid key in line %d of the API key file: %s", number, error)
