"""The benchmarks run, and their results are reported correctly. The figures themselves are not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import profile, report
from bench.compare import Row, Series, compared

ROOT = Path(__file__).parents[2]


def test_parts_without_a_server_run() -> None:
    results = (ROOT / "bench" / "RESULTS.md", ROOT / "bench" / "results.json")
    before = [path.read_bytes() if path.exists() else None for path in results]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "images", "guard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "image → tensors" in done.stdout
    assert "guard, runner V1" in done.stdout
    assert [path.read_bytes() if path.exists() else None for path in results] == before


def test_target_is_met_by_the_ratio() -> None:
    series = Series([2.0, 2.0, 2.0]), Series([4.0, 4.0, 4.0])
    assert compared("a", "ms", series, compared_with="b", at_most=0.5).met is True
    assert compared("a", "ms", series, compared_with="b", at_most=0.4).met is False
    assert compared("a", "1/s", series, compared_with="b", at_least=0.6).met is False


def test_report_is_written(tmp_path: Path) -> None:
    row = Row("reading", "ms", Series([1.0, 2.0, 3.0]), Series([8.0]), "theirs", "≤ 0.5", True)
    kept = {"images": report.entry([row])}
    assert report.from_json(kept["images"]["rows"])[0].ratio == 0.25  # type: ignore[arg-type]
    report.write(kept, {"images": "Images", "guard": "Guard"}, tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "## Images" in page
    assert "| reading | 2 ± 50% ms | 8 ms<br>theirs | 0.25 | ≤ 0.5 | met |" in page
    assert "## Guard" not in page
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_samples_are_counted_by_package() -> None:
    lines = [
        f"run (/usr/lib/python3.11/asyncio/base_events.py:5);send ({ROOT}/ocr_server/stream.py:9) 3",
        "run (/usr/lib/python3.11/asyncio/base_events.py:5) 2",
        "run (/x.py:1);write (/v/lib/python3.11/site-packages/uvicorn/protocols/http.py:7) 4",
        "AsyncLLM.output_handler (/v/lib/python3.11/site-packages/vllm/v1/llm.py:7);put (/x/y.py:1) 5",
    ]
    assert profile.by_package(lines) == {"ocr_server": 3, "Python: asyncio": 2, "uvicorn": 4, profile.SHARED: 5}
