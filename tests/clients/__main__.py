"""Read the examples with real clients of the OpenAI and Mistral APIs.

    python -m tests.clients               all clients
    python -m tests.clients openai llm    some of them
    python -m tests.clients --base-url http://localhost:8000/v1

Each client is installed on its first use, in a folder of its own in .cache/clients. Without --base-url, a server with
the embedded checkpoint is started for the time of the run. The command prints a table in markdown with the version of
each client, and exits with 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.clients.harness import CannotInstall, Client, clients, complaint, read


def report(client: Client, base_url: str) -> tuple[str, bool]:
    """Run a client. Return its row of the table, and whether something is wrong."""
    versions = ", ".join(client.packages)
    try:
        readings = read(client, base_url)
    except CannotInstall as reason:
        return f"| {client.name} | {versions} | not run: {str(reason).splitlines()[0]} |", False
    except AssertionError as error:
        print(error, file=sys.stderr)
        return f"| {client.name} | {versions} | **failed** |", True
    outcomes: dict[str, list[str]] = {}
    wrong = False
    for reading in readings:
        if problem := complaint(reading):
            wrong = True
            print(f"{client.name}: {reading.document}, {reading.how}: {problem}", file=sys.stderr)
        outcomes.setdefault(reading.document, []).append(f"**wrong**: {reading.how}" if problem else reading.how)
    what = "; ".join(f"{document}: {', '.join(ways)}" for document, ways in outcomes.items())
    return f"| {client.name} | {versions} | {what or '**nothing**'} |", wrong or not readings


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """Start a server with the embedded checkpoint, and return its base URL."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "live"))
    from live_server import running

    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "log") as server:
        server.wait_ready()
        yield f"{server.url}/v1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a client; all if none is named")
    parser.add_argument("--base-url", help="a running server, with /v1")
    options = parser.parse_args()
    known = {client.name: client for client in clients()}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no client is called {unknown[0]}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names] or list(known.values())
    print(f"On {datetime.date.today().isoformat()}:\n\n| client | version | what was read |\n|---|---|---|")
    failed = False
    with contextlib.nullcontext(options.base_url) if options.base_url else _server() as base_url:
        for client in chosen:
            row, wrong = report(client, base_url)
            failed |= wrong
            print(row, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
