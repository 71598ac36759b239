"""Run schemathesis against a live server: no request leads to a 5xx, and every response conforms to /openapi.json.

    python -m tests.reliability.conformance --cases 1000                      starts its own server
    python -m tests.reliability.conformance --base-url http://localhost:8000

`--cases` is the number of cases for each operation, for valid and for invalid data.
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
    """Run schemathesis against the server at `url`. The return code is 1 if it has found failures.

    Args:
        cases: for each operation, and for valid and invalid data.
        seconds: time limit, after which schemathesis reports what it has found.
        seed: makes the generated cases the same every time.
    """
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{url}/openapi.json",
        f"--checks={','.join(CHECKS)}",
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={cases}",
        f"--request-timeout={REQUEST_SECONDS}",
        "--workers=1",  # with several threads, generating cases may fail in Python 3.11's ast module
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
    parser.add_argument("--seconds", type=int, help="time limit; reports what was found until then")
    parser.add_argument("--base-url", help="URL of a running server; by default, one is started")
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
