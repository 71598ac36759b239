"""API keys: how they are written, and the key ring that looks up the key of a request.

A key is written in plain text, or as `sha256:` followed by its hash in 64 hexadecimal digits. A label can precede it::

    sk-1234
    alice: sk-5678
    bob: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

Options can follow it, separated by white space::

    carol: sk-9012 expires=2027-01-01 pages_per_day=1000 megabytes_per_day=500
    dave: sk-3456 owner=accounting

The label is the name of the client in the log. The owner is who files and batches belong to: by default it is derived
from the key, so that a label can be changed. Only hashes of keys are kept in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ocr_server.transport.quotas import Quota, Usage

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""Minimum number of seconds between two checks whether the key file has changed."""
MISSING_SECONDS = 60.0
"""Seconds after which the keys of a key file that has been deleted are no longer valid."""
MEGA = 1_000_000
_LABEL = r"(?P<label>(?!(?i:sha256):)[A-Za-z0-9._-]{1,64}):[ \t]*"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENTRY = re.compile(rf"(?:{_LABEL})?(?:(?i:sha256):(?P<hash>[0-9A-Fa-f]{{64}})|(?P<key>[!-+\--9;-~]+))")
"""A plain-text key consists of visible ASCII characters except comma and colon. Other keys can be given as a hash."""


@dataclass(frozen=True)
class Key:
    """A valid API key."""

    digest: bytes = field(repr=False)
    """SHA-256 of the key."""
    label: str
    """Name of the client in the log. By default, the first 8 digits of the hash."""
    owner: str
    """Who files and batches belong to. By default, `key_` and the first 16 digits of the hash."""
    expires: float | None = None
    """Unix time from which on the key is not valid any more."""
    pages_per_day: int | None = None
    bytes_per_day: int | None = None


def parse_key(text: str) -> Key:
    """Parse a key, with or without a label.

    Raises:
        ValueError: The text is not a key. The message does not contain the text.
    """
    words = text.strip().split()
    start = 2 if words and words[0].endswith(":") else 1  # the label may stand alone
    entry = _ENTRY.fullmatch(" ".join(words[:start]))
    if entry is None or not all("=" in word for word in words[start:]):
        raise ValueError("a key must be visible ASCII without comma or colon, or sha256: and 64 hexadecimal digits")
    given = entry["hash"]
    digest = bytes.fromhex(given) if given else hashlib.sha256(entry["key"].encode()).digest()
    options = dict(_option(word) for word in words[start:])
    return Key(digest, entry["label"] or digest.hex()[:8], **{"owner": f"key_{digest.hex()[:16]}"} | options)


def _option(word: str) -> tuple[str, Any]:
    """Return the name and the value of a field of `Key`. Raises ValueError."""
    name, _, value = word.partition("=")
    if name == "owner":
        if not _NAME.fullmatch(value):
            raise ValueError("owner must have 1 to 64 letters, digits, dots, underscores or hyphens")
        return name, value
    if name == "expires":
        try:
            time_ = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("expires must be a date such as 2027-01-31, or a time such as 2027-01-31T12:00Z") from None
        return name, (time_ if time_.tzinfo else time_.replace(tzinfo=UTC)).timestamp()
    if name in ("pages_per_day", "megabytes_per_day"):
        if not re.fullmatch(r"[1-9][0-9]{0,11}", value):
            raise ValueError(f"{name} must be a positive integer")
        return (name, int(value)) if name == "pages_per_day" else ("bytes_per_day", int(value) * MEGA)
    raise ValueError("the options of a key are expires, owner, pages_per_day and megabytes_per_day")


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
            file is read again when it has changed. While it cannot be read, its previous keys stay valid, but if it
            has been deleted, only for a minute: editors may replace it. If it is empty, it has no keys.
        clock: Returns a time in seconds that never jumps.
        """
        self._given = keys
        self._file = file
        self._clock = clock
        self._in_file: list[Key] = []
        self._stamp: tuple[int, ...] | None = None
        self._usage: dict[str, Usage] = {}
        self._next_check = 0.0
        self._missing_since: float | None = None
        self._trouble = ""
        self._look(clock())

    @property
    def open(self) -> bool:
        """Whether no key is required: neither keys nor a file are configured."""
        return not self._given and self._file is None

    def find(self, key: bytes) -> Key | None:
        """Return the entry of `key`, or None if there is none. Takes the same time for every key."""
        now = self._clock()
        if now >= self._next_check:
            self._look(now)
        digest = hashlib.sha256(key).digest()
        found: Key | None = None
        for each in self._keys():
            if hmac.compare_digest(each.digest, digest):
                found = each
        return found

    def quota(self, key: Key) -> Quota:
        """Return the quota of a key. Keys of one owner count together."""
        return Quota(self._usage.setdefault(key.owner, Usage()), key.pages_per_day, key.bytes_per_day)

    def quota_of(self, owner: str) -> Quota | None:
        """Return the quota of an owner, or None if there is no such key any more."""
        key = next((key for key in self._keys() if key.owner == owner), None)
        return None if key is None else self.quota(key)

    def name_of(self, owner: str) -> str:
        """Return the label of an owner for the log, or the owner itself if there is no such key any more."""
        return next((key.label for key in self._keys() if key.owner == owner), owner)

    def owners_of_labels(self) -> dict[str, str]:
        """Return the owner of each label. Of several keys with the same label, the first one counts."""
        owners = {key.digest.hex()[:8]: key.owner for key in self._keys()}
        for key in reversed(self._keys()):
            owners[key.label] = key.owner
        return owners

    def _keys(self) -> list[Key]:
        return [*self._given, *self._in_file]

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
            self._trouble, self._missing_since = "", None
        except FileNotFoundError:
            self._stamp = None
            if self._missing_since is None:
                self._missing_since = now
                logger.error("the API key file is missing; its keys are revoked in %g s", MISSING_SECONDS)
            elif self._in_file and now - self._missing_since >= MISSING_SECONDS:
                self._in_file = []
                logger.error("the API key file is still missing; its keys have been revoked")
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
