"""The metrics, and that the dashboard and the alerts use only metrics that exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from config import ROOT, Settings
from deepseek_ocr.modes import MODES, ResolutionMode
from ocr_server.app import create_app
from ocr_server.errors import InvalidRequest
from ocr_server.observability import metrics
from ocr_server.reading.page import Attempt, PageReading
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, client_of, delta

MONITORING = ROOT / "deploy" / "monitoring"


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Increase:
    """How much a metric has increased since this object was created."""

    def __init__(self, name: str, **labels: str) -> None:
        self._name, self._labels = name, labels
        self._before = value(name, **labels)

    @property
    def by(self) -> float:
        return value(self._name, **self._labels) - self._before


def reading(*finishes: str, mode: ResolutionMode = MODES["tiny"], failed: bool = False) -> PageReading:
    """A page with an attempt for each of `finishes`."""
    return PageReading(
        0,
        0,
        0,
        deltas=[delta("a", tokens=2), delta("b", tokens=3, finish=finishes[-1])] if finishes else [],
        attempts=[Attempt(mode, 30, 90, finish) for finish in finishes],
        error=InvalidRequest("no") if failed else None,
    )


class TestPages:
    @pytest.mark.parametrize(
        ("page", "mode", "outcome"),
        [
            (reading("stop"), "tiny", "stop"),
            (reading("length"), "tiny", "length"),
            (reading("repetition", mode=MODES["base"]), "base", "repetition"),
            (reading("stop", mode=ResolutionMode(768, 640, True, 2, 5)), "custom", "stop"),
            (reading(failed=True), "none", "error"),
            (reading("stop", failed=True), "tiny", "error"),
        ],
    )
    def test_outcomes(self, page: PageReading, mode: str, outcome: str) -> None:
        pages = Increase("ocr_pages_total", mode=mode, outcome=outcome)
        metrics.page_done(page)
        assert pages.by == 1

    def test_tokens(self) -> None:
        prompt, completion = (Increase("ocr_tokens_total", kind=kind) for kind in ("prompt", "completion"))
        metrics.page_done(reading("stop"))
        metrics.page_done(reading(failed=True))
        assert (prompt.by, completion.by) == (10, 5)

    @pytest.mark.parametrize(
        ("page", "recovered", "kept"),
        [
            (reading("stop"), 0, 0),
            (reading("repetition", "stop"), 1, 0),
            (reading("repetition", "repetition", "length"), 1, 0),
            (reading("repetition", "repetition"), 0, 1),
            (reading("repetition", failed=True), 0, 0),
        ],
    )
    def test_loops(self, page: PageReading, recovered: int, kept: int) -> None:
        counted = [Increase("ocr_loops_total", outcome=outcome) for outcome in ("recovered", "kept")]
        metrics.page_done(page)
        assert [each.by for each in counted] == [recovered, kept]

    @pytest.mark.parametrize(
        ("code", "cause"), [("image_fetch_failed", "image_fetch_failed"), (None, "other"), ("x", "other")]
    )
    def test_fetching(self, code: str | None, cause: str) -> None:
        failures = Increase("ocr_fetch_failures_total", cause=cause)
        metrics.fetch_failed(code)
        assert failures.by == 1


class TestRequests:
    @pytest.mark.parametrize(
        ("method", "path", "route", "status"),
        [
            ("GET", "/v1/models", "/v1/models", "200"),
            ("GET", "/v1/models/deepseek-ocr", "/v1/models/{model_id}", "200"),
            ("GET", "/v1/models/a-secret?key=secret", "/v1/models/{model_id}", "404"),
            ("GET", "/a-secret", "none", "404"),
            ("GET", CHAT, CHAT, "405"),
            ("POST", CHAT, CHAT, "400"),
            ("GET", "/static-offline-docs/swagger-ui.css", "/static-offline-docs/*", "200"),
        ],
    )
    async def test_by_route(self, client: httpx.AsyncClient, method: str, path: str, route: str, status: str) -> None:
        requests = Increase("ocr_requests_total", route=route, status=status)
        seconds = Increase("ocr_request_seconds_count", route=route)
        await client.request(method, path)
        assert (requests.by, seconds.by) == (1, 1)
        assert "secret" not in (await client.get("/metrics")).text

    async def test_streams_and_failures(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        well, badly = (Increase("ocr_requests_total", route=CHAT, status=status) for status in ("200", "500"))
        await client.post(CHAT, json=chat(stream=True))
        assert (well.by, badly.by) == (1, 0)

        async def breaks(*_: Any) -> Any:
            raise RuntimeError
            yield

        engine.script = breaks
        await client.post(CHAT, json=chat())
        assert (well.by, badly.by) == (1, 1)


class TestWatching:
    def test_gauges_are_read_on_every_scrape(self) -> None:
        queue = SimpleNamespace(pages_in_flight=3, pages_waiting=40, background_in_flight=0)
        with metrics.watching(SimpleNamespace(restarts=2), queue), metrics.watching(FakeEngine(), None):
            assert value("ocr_pages_in_flight") == 3
            queue.pages_waiting = 41
            assert value("ocr_pages_waiting") == 41
            assert value("ocr_engine_restarts_total") == 2
        assert value("ocr_pages_in_flight") == value("ocr_engine_restarts_total") == 0

    async def test_an_application_is_read_while_it_runs(self, app: FastAPI, settings: Settings) -> None:
        app.state.runtime.admission.pages_in_flight = 5
        async with app.router.lifespan_context(app):
            assert value("ocr_pages_in_flight") == 5
            async with client_of(create_app(Runtime.build(settings, FakeEngine()))) as other:
                assert "\nocr_pages_in_flight 5.0\n" in (await other.get("/metrics")).text
        assert value("ocr_pages_in_flight") == 0


def our_names() -> set[str]:
    """The names of all of our series, including those without samples."""
    names = set()
    for family in REGISTRY.collect():
        if family.name.startswith("ocr_"):
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            names |= {family.name + suffix for suffix in suffixes}
    return names


def our_labels() -> dict[str, set[str]]:
    """The names of the labels of each of our counters that has samples."""
    return {
        sample.name: set(sample.labels)
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("ocr_") and sample.name.endswith("_total")
    }


def names_in(expression: str) -> set[str]:
    """The names of the metrics that an expression uses."""
    return set(re.findall(r"\b(?:ocr_|vllm:)\w+|\bup\b", expression))


def vllm_names() -> set[str]:
    """The names of all series of the installed version of vLLM, from the calls in its source code."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "v1" / "metrics" / "loggers.py"
    suffixes = {"_gauge_cls": [""], "_counter_cls": ["_total"], "_histogram_cls": ["_bucket", "_sum", "_count"]}
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in suffixes:
            for keyword in node.keywords:
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    names |= {f"{keyword.value.value}{suffix}" for suffix in suffixes[node.func.attr]}
    return names


def expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    return found + [item["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]


class TestRegistry:
    def test_of_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        assert metrics.registry() is REGISTRY

    def test_of_several_processes(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """As vLLM sets it up: each process writes its values to a file, and a scrape adds them up."""
        for process in (1, 2):
            values = MmapedDict(str(tmp_path / f"counter_{process}.db"))
            values.write_value(mmap_key("vllm:pages_total", "vllm:pages_total", [], [], "Pages."), 20.0 + process, 0.0)
            values.close()
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        gathered = metrics.registry()
        assert gathered is not REGISTRY
        assert isinstance(gathered, CollectorRegistry)
        assert gathered.get_sample_value("vllm:pages_total") == 43


class TestMonitoring:
    def test_every_expression_uses_a_metric(self) -> None:
        for expression in expressions():
            assert names_in(expression), expression

    def test_our_metrics_exist(self) -> None:
        known = our_names()
        assert {"ocr_pages_total", "ocr_queue_seconds_bucket"} <= known
        used = {name for name in names_in(" ".join(expressions())) if name.startswith("ocr_")}
        assert used <= known

    @pytest.mark.engine
    def test_metrics_of_vllm_exist(self) -> None:
        known = vllm_names()
        assert "vllm:num_requests_running" in known
        used = {name for name in names_in(" ".join(expressions())) if name.startswith("vllm:")}
        assert used
        assert used <= known

    def test_every_metric_of_ours_is_shown(self) -> None:
        shown = " ".join(expressions())
        for name in our_names():
            assert re.sub(r"_(bucket|sum|count)$", "", name) in shown

    def test_the_labels_that_are_selected_exist(self) -> None:
        metrics.request_done("/v1/models", 200, 0.0)
        metrics.page_done(reading("stop"))
        metrics.fetch_failed(None)
        known = our_labels()
        selected: dict[str, set[str]] = {}
        for expression in expressions():
            for name, selectors in re.findall(r"\b(ocr_\w+_total)\{([^}]*)\}", expression):
                selected.setdefault(name, set()).update(re.findall(r"(\w+)=", selectors))
            if by := re.match(r"sum by \((\w+)\) \((?:rate|increase)\((ocr_\w+_total)", expression):
                selected.setdefault(by[2], set()).add(by[1])
        assert {name for name, labels in selected.items() if labels - {"instance"}} == {
            name for name, labels in known.items() if labels
        }, "every counter with labels is shown by label"
        for name, labels in selected.items():
            assert labels <= known[name] | {"instance"}, name

    def test_every_alert_has_a_severity_and_a_summary(self) -> None:
        alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
        for rule in alerts["groups"][0]["rules"]:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"].endswith(".")
