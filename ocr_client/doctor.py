"""`deepseek-ocr doctor`: what was found, as a list for people or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ocr_client.checks import CHECKS, Finding, Status, findings
from ocr_client.progress import plain

SIGNS: dict[Status, tuple[str, str]] = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def examine(*, model: str | None, port: int | None, as_json: bool) -> int:
    """Print all findings; 1 if one of them keeps a server from starting, else 0."""
    found: list[tuple[str, Finding]] = []
    console = Console(highlight=False)
    for name, finding in findings(model=model, port=port):
        found.append((name, finding))
        if not as_json:
            _show(console, name, finding)
    wrong = sum(finding.status == "error" for _, finding in found)
    if as_json:
        checks = [{"check": name, **asdict(finding)} for name, finding in found]
        print(json.dumps({"ok": not wrong, "checks": checks}, ensure_ascii=False, indent=1))
    elif wrong:
        console.print(f"\n{wrong} of {len(found)} checks failed: a server would not start, or not work.")
    else:
        console.print("\nA server can run here: deepseek-ocr serve")
    return 1 if wrong else 0


def _show(console: Console, name: str, finding: Finding) -> None:
    sign, colour = SIGNS[finding.status]
    width = max(map(len, CHECKS))
    console.print(Text.assemble((sign, colour), f" {name:{width}}  ", plain(finding.found)), soft_wrap=True)
    if finding.advice:
        console.print(Padding(Text(plain(finding.advice), "dim"), (0, 0, 0, width + 4)))
