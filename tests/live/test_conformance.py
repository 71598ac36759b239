"""The server conforms to its OpenAPI schema, whatever requests it gets."""

from __future__ import annotations

import re

import pytest
from live_server import Server

from tests.reliability.conformance import check

pytestmark = pytest.mark.live


def test_responses_conform_to_the_schema(engine_idle: Server) -> None:
    """A short run of schemathesis, with the same cases every time, for every operation."""
    done = check(engine_idle.url, cases=6, seed=1)
    assert done.returncode == 0, done.stdout + done.stderr
    operations = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    assert operations is not None, done.stdout
    assert len(set(operations.groups())) == 1, done.stdout
    for phase in ("Examples", "Coverage", "Fuzzing"):
        assert f"✅ {phase}" in done.stdout, done.stdout
    engine_idle.wait_idle()  # the batches that the cases have created end by themselves
