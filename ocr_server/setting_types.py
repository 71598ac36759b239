"""Types of settings that are written as text: how each is checked, and parsed."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from deepseek_ocr.families import FAMILIES
from ocr_server.transport.keys import parse_keys

DETAILS = ("auto", "low", "high", "original")
"""OpenAI's names for how closely to look at a picture."""
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:.]+")
_ORIGIN = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+")


def split_list(text: str) -> list[str]:
    """Return the parts of a comma-separated list that are not empty."""
    return [part.strip() for part in text.split(",") if part.strip()]


def detail_modes(text: str) -> dict[str, str]:
    """Parse a list such as `low=base,high=gundam`.

    Raises:
        ValueError: A detail or a mode does not exist.
    """
    pairs = {}
    for part in split_list(text):
        detail, _, mode = (each.strip() for each in part.partition("="))
        if detail not in DETAILS:
            raise ValueError(f"{detail!r} is not one of {', '.join(DETAILS)}; write pairs such as low=base")
        if all(mode not in family.modes for family in FAMILIES.values()):
            raise ValueError(f"{mode!r} is not a resolution mode; write pairs such as low=base")
        pairs[detail] = mode
    return pairs


def _check_keys(value: SecretStr) -> SecretStr:
    parse_keys(value.get_secret_value())
    return value


def _check_database_url(value: SecretStr) -> SecretStr:
    if "://" not in (value.get_secret_value() or "sqlite://"):
        raise ValueError("not a valid URL, such as sqlite:////var/lib/ocr/batches.db")
    return value


def _check_hosts(value: str) -> str:
    for host in split_list(value):
        if not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not a valid host, such as images.example.com or *.example.com")
    return value


def _check_hosts_or_all(value: str) -> str:
    _check_hosts(",".join(host for host in split_list(value) if host != "*"))
    return value


def _check_origins(value: str) -> str:
    for origin in split_list(value):
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not a valid origin, such as https://example.org or http://localhost:3000")
    return value


def _check_detail_modes(value: str) -> str:
    detail_modes(value)
    return value


Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Keys = Annotated[SecretStr, AfterValidator(_check_keys)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_check_database_url)]
Hosts = Annotated[str, AfterValidator(_check_hosts)]
HostsOrAll = Annotated[str, AfterValidator(_check_hosts_or_all)]
Origins = Annotated[str, AfterValidator(_check_origins)]
DetailModes = Annotated[str, AfterValidator(_check_detail_modes)]
