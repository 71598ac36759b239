"""The server conforms to its OpenAPI schema, whatever requests it gets."""

from __future__ import annotations

import re

import pytest
from live_server import Server

from tests.reliability.conformance import check

pytestmark = pytest.mark.live


@pytest.mark.timeout(900)
def test_responses_conform_to_the_schema(engine_idle: Server) -> None:
    """A short run of schemathesis, with the same cases every time, as far as it gets within the time."""
    done = check(engine_idle.url, cases=3, seconds=120, seed=1)
    assert done.returncode == 0, done.stdout + done.stderr
    operations = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    assert operations is not None, done.stdout
    assert operations[1] == operations[2], done.stdout
    assert "✅ Examples" in done.stdout, done.stdout
    engine_idle.wait_idle()  # the batches that the cases have created end by themselves
