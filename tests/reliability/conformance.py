"""schemathesis against a live server: whatever is sent, no 5xx, and answers are what /openapi.json says.

    python -m tests.reliability.conformance --cases 1000                      starts a server of its own
    python -m tests.reliability.conformance --base-url http://localhost:8000

`--cases` is for each operation and kind of data, right and wrong.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.live.live_server import ROOT, running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
REQUEST_SECONDS = 60


def check(
    url: str, *, cases: int, seconds: int | None = None, seed: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run schemathesis against the server at `url`; its return code is 1 if it found something.

    Args:
        seconds: after which it ends, with what it has found so far.
    """
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{url}/openapi.json",
        f"--checks={','.join(CHECKS)}",
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={cases}",
        f"--request-timeout={REQUEST_SECONDS}",
        "--workers=1",  # with several threads, Python 3.11's ast may break the making of cases off
        "--suppress-health-check=all",
        "--continue-on-failure",
        "--no-color",
        "--warnings=off",
    ]
    command += [f"--max-time={seconds}"] if seconds else []
    command += [f"--seed={seed}"] if seed is not None else []
    hooks = {"SCHEMATHESIS_HOOKS": "tests.reliability.conformance_hooks", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(command, cwd=folder, env=os.environ | hooks, capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seconds", type=int, help="end after so long, with what was found so far")
    parser.add_argument("--base-url", help="of a running server; otherwise one is started")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        url = arguments.base_url
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(running(Path(folder) / "log"))
            server.wait_ready()
            url = server.url
        done = check(url, cases=arguments.cases, seconds=arguments.seconds, seed=arguments.seed)
        print(done.stdout, done.stderr, sep="\n")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
