"""`deepseek-ocr doctor`: prints the results of the checks as a list or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ocr_client.checks import CHECKS, Finding, Status, run_checks
from ocr_client.progress import replace_control_characters

SYMBOLS: dict[Status, tuple[str, str]] = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def run(*, model: str | None, port: int | None, as_json: bool) -> int:
    """Run all checks and print their findings.

    Args:
        model: value of the server's `--model` flag; None for the configured model.
        port: value of the server's `--port` flag; None for the configured port.
        as_json: whether to print one JSON object instead of a list.

    Returns:
        The exit code: 1 if a problem prevents the server from starting, else 0.
    """
    found: list[tuple[str, Finding]] = []
    console = Console(highlight=False)
    for name, finding in run_checks(model=model, port=port):
        found.append((name, finding))
        if not as_json:
            _print(console, name, finding)
    errors = sum(finding.status == "error" for _, finding in found)
    if as_json:
        checks = [{"check": name, **asdict(finding)} for name, finding in found]
        print(json.dumps({"ok": not errors, "checks": checks}, ensure_ascii=False, indent=1))
    elif errors:
        console.print(f"\n{errors} of {len(found)} checks failed. The server would not start, or would not work.")
    else:
        console.print("\nThe server can run on this machine. Start it with: deepseek-ocr serve")
    return 1 if errors else 0


def _print(console: Console, name: str, finding: Finding) -> None:
    symbol, colour = SYMBOLS[finding.status]
    width = max(map(len, CHECKS))
    found = replace_control_characters(finding.found)
    console.print(Text.assemble((symbol, colour), f" {name:{width}}  ", found), soft_wrap=True)
    if finding.advice:
        console.print(Padding(Text(replace_control_characters(finding.advice), "dim"), (0, 0, 0, width + 4)))
