"""The server conforms to its OpenAPI schema, whatever requests it gets."""

from __future__ import annotations

import re

import pytest
from live_server import Server

from tests.reliability.conformance import check

pytestmark = pytest.mark.live

SECONDS = 60
BATCHES_S = 120
"""The batches that it creates end for themselves: what they may take."""


def test_responses_conform_to_the_schema(engine_idle: Server) -> None:
    """A short run of schemathesis, with the same cases every time."""
    done = check(engine_idle.url, cases=15, seconds=SECONDS, seed=1)
    assert done.returncode == 0, done.stdout + done.stderr
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None, done.stdout
    assert int(generated[1]) > 300
    engine_idle.wait_idle(BATCHES_S)
