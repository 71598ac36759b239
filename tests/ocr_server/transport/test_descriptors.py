"""The limit on descriptors, and the number of connections that follows from it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from ocr_server.transport.descriptors import most_connections, raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
raise_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], most_connections(0), most_connections(1000))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (256, 256, [256, 64, 64]),
        (256, 2000, [2000, 1808, 1000]),
        (1024, 10_000, [10_000, 4096, 1000]),
        (20, 20, [20, 16, 16]),
    ],
)
def test_descriptors(soft: int, hard: int, expected: list[int]) -> None:
    program = PROGRAM.format(soft=soft, hard=hard)
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert list(map(int, result.stdout.split())) == expected
    assert ("Raise `ulimit -n`" in result.stderr) == (expected[1] < 1000)
