"""What Prometheus is told, beside what vLLM tells it: requests, pages, tokens, failures, and where the time goes.

The metrics are made once, when this module is loaded, on the registry that vLLM uses: Prometheus knows processes, not
apps, and so do the counters. Several apps in a process add to the same ones. Only what an app has at the moment (pages
in flight, restarts of its engine) is read from the apps that run, which `watching` tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from deepseek_ocr.families import mode_name

if TYPE_CHECKING:  # it is called from every room: at run time it needs none of them
    from ocr_server.reading.page import PageReading

_REPETITION = "repetition"
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
FETCH_FAILURES = frozenset({"invalid_image_url", "image_url_not_allowed", "image_fetch_failed", "too_large"})
"""Error codes by which a URL that can't be had is told; any other counts as `other`."""

REQUESTS = Counter("ocr_requests", "Requests answered.", ["route", "status"])
PAGES = Counter("ocr_pages", "Pages read, or given up.", ["mode", "outcome"])
TOKENS = Counter("ocr_tokens", "Tokens of the pages' prompts and answers; of a page read again, the last.", ["kind"])
FETCH_FAILURES_TOTAL = Counter("ocr_fetch_failures", "URLs named by clients that could not be had.", ["cause"])
BATCHES = Counter("ocr_batches", "Batches that have ended.", ["status"])
BATCH_REQUESTS = Counter("ocr_batch_requests", "Requests of batches answered.", ["outcome"])
BATCH_RETRIES = Counter("ocr_batch_retries", "Times a request of a batch was tried again.")
LOOPS = Counter("ocr_loops", "Pages on which the model repeated itself.", ["outcome"])
REQUEST_SECONDS = Histogram(
    "ocr_request_seconds", "From a request's first byte to its answer's last.", ["route"], buckets=_SECONDS
)
QUEUE_SECONDS = Histogram("ocr_queue_seconds", "A page's wait for its turn.", buckets=_SECONDS)
INTAKE_SECONDS = Histogram("ocr_intake_seconds", "A page's loading, decoding and resizing.", buckets=_SECONDS)
ENGINE_SECONDS = Histogram(
    "ocr_engine_seconds", "A page's time in the engine, each attempt by itself.", buckets=_SECONDS
)

for _kind in ("prompt", "completion"):
    TOKENS.labels(kind=_kind)  # there from the start, so that the first ones are an increase
for _outcome in ("recovered", "kept"):
    LOOPS.labels(outcome=_outcome)
for _outcome in ("completed", "failed"):
    BATCH_REQUESTS.labels(outcome=_outcome)
for _status in ("completed", "failed", "expired", "cancelled"):
    BATCHES.labels(status=_status)


def registry() -> CollectorRegistry:
    """What Prometheus gets: ours and vLLM's metrics. vLLM's come from several processes where it says so."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    gathered = CollectorRegistry()
    MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
    return gathered


class Queue(Protocol):
    """What is known of the pages under way; the app's admission is one."""

    pages_in_flight: int
    pages_waiting: int
    background_in_flight: int


def request_done(route: str, status: int, seconds: float) -> None:
    REQUESTS.labels(route=route, status=str(status)).inc()
    REQUEST_SECONDS.labels(route=route).observe(seconds)


def page_done(reading: PageReading) -> None:
    """Count a page that has been read or given up, once."""
    outcome = reading.finish_reason() or "error"
    # Requests can make up modes of their own: those are one name here.
    mode = (mode_name(reading.attempts[-1].mode) or "custom") if reading.attempts else "none"
    PAGES.labels(mode=mode, outcome=outcome).inc()
    TOKENS.labels(kind="prompt").inc(reading.prompt_tokens)
    TOKENS.labels(kind="completion").inc(reading.completion_tokens)
    if any(attempt.finish_reason == _REPETITION for attempt in reading.attempts) and outcome != "error":
        LOOPS.labels(outcome="kept" if outcome == _REPETITION else "recovered").inc()


def fetch_failed(code: str | None) -> None:
    """Count a URL that could not be had, by the code of its error."""
    FETCH_FAILURES_TOTAL.labels(cause=code if code in FETCH_FAILURES else "other").inc()


@contextmanager
def watching(engine: object, queue: Queue | None) -> Iterator[None]:
    """While this is open, `engine` and `queue` are asked whenever Prometheus asks."""
    watched = (engine, queue)
    _MOMENTARY.watched.append(watched)
    try:
        yield
    finally:
        _MOMENTARY.watched.remove(watched)


class _Momentary(Collector):
    """What is read when it is asked for, summed over the apps of this process."""

    def __init__(self) -> None:
        self.watched: list[tuple[object, Queue | None]] = []

    def collect(self) -> Iterator[Metric]:
        queues = [queue for _, queue in self.watched if queue is not None]
        yield GaugeMetricFamily(
            "ocr_pages_in_flight",
            "Pages being loaded, prepared or read.",
            value=sum(queue.pages_in_flight for queue in queues),
        )
        yield GaugeMetricFamily(
            "ocr_pages_waiting",
            "Pages of accepted requests that have not had their turn, without those of batches.",
            value=sum(queue.pages_waiting for queue in queues),
        )
        yield GaugeMetricFamily(
            "ocr_batch_pages_in_flight",
            "Of the pages in flight, those of batches.",
            value=sum(queue.background_in_flight for queue in queues),
        )
        restarts = sum(int(getattr(engine, "restarts", 0)) for engine, _ in self.watched)
        yield CounterMetricFamily("ocr_engine_restarts", "Times the engine was started again.", value=restarts)


_MOMENTARY = _Momentary()
REGISTRY.register(_MOMENTARY)
