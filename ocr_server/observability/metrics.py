"""Prometheus metrics in addition to those of vLLM: requests, pages, tokens, failures and durations.

The metrics are created when this module is imported, in the registry that vLLM uses. They belong to the process:
several applications in one process increment the same counters. Gauges and the restarts of the engine are read from the
applications that run at the moment, which register themselves by `watching`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from deepseek_ocr.families import mode_name
from ocr_server.memory import MemoryBudget, Use

if TYPE_CHECKING:  # most packages of the server import this module: at run time it would be circular
    from ocr_server.reading.page import PageReading

_REPETITION = "repetition"
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
FETCH_FAILURES = frozenset({"invalid_image_url", "image_url_not_allowed", "image_fetch_failed", "too_large"})
"""Error codes of failed downloads that are counted under their own names. All others count as `other`."""

REQUESTS = Counter("ocr_requests", "Number of requests answered.", ["route", "status"])
PAGES = Counter("ocr_pages", "Number of pages that were read or that failed.", ["mode", "outcome"])
TOKENS = Counter(
    "ocr_tokens",
    "Number of tokens of prompts and answers. For a page that was read again, those of the last attempt.",
    ["kind"],
)
FETCH_FAILURES_TOTAL = Counter("ocr_fetch_failures", "Number of URLs that could not be downloaded.", ["cause"])
BATCHES = Counter("ocr_batches", "Number of batches that have ended.", ["status"])
BATCH_REQUESTS = Counter("ocr_batch_requests", "Number of requests of batches that were answered.", ["outcome"])
BATCH_RETRIES = Counter("ocr_batch_retries", "Number of retries of requests of batches.")
FILE_UPLOADS = Counter(
    "ocr_file_uploads", "Number of files that were uploaded, or refused for want of space.", ["outcome"]
)
FILE_READS = Counter("ocr_file_reads", "Number of stored files that were read as pictures or documents.", ["by"])
STORED_FILES = Gauge("ocr_stored_files", "Number of stored files.", ["purpose"], multiprocess_mode="max")
STORED_BYTES = Gauge(
    "ocr_stored_bytes", "Bytes of stored files and of the answers of unfinished batches.", multiprocess_mode="max"
)
STORED_BYTES_LIMIT = Gauge("ocr_stored_bytes_limit", "Limit of the stored bytes.", multiprocess_mode="max")
LOOPS = Counter("ocr_loops", "Number of pages on which the model repeated itself.", ["outcome"])
CONNECTIONS_REFUSED = Counter(
    "ocr_connections_refused", "Number of connections that were refused because there were too many.", ["cause"]
)
REQUEST_SECONDS = Histogram(
    "ocr_request_seconds",
    "Seconds from the first byte of a request to the last byte of its response.",
    ["route"],
    buckets=_SECONDS,
)
QUEUE_SECONDS = Histogram("ocr_queue_seconds", "Seconds that a page waited for its turn.", buckets=_SECONDS)
INTAKE_SECONDS = Histogram("ocr_intake_seconds", "Seconds for loading, decoding and resizing a page.", buckets=_SECONDS)
ENGINE_SECONDS = Histogram(
    "ocr_engine_seconds", "Seconds that a page spent in the engine, for each attempt.", buckets=_SECONDS
)
EVENT_LOOP_STALL_SECONDS = Histogram(
    "ocr_event_loop_stall_seconds",
    "Seconds by which the event loop ran a task too late, measured 20 times a second.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
EVENT_LOOP_LONGEST_STALL = Gauge(
    "ocr_event_loop_longest_stall_seconds",
    "Longest stall of the event loop in the last minute, seconds.",
    multiprocess_mode="max",
)

for _kind in ("prompt", "completion"):
    TOKENS.labels(kind=_kind)  # exists from the start, so that the first increment is visible as an increase
for _cause in ("total", "address", "descriptors"):
    CONNECTIONS_REFUSED.labels(cause=_cause)
for _outcome in ("recovered", "kept"):
    LOOPS.labels(outcome=_outcome)
for _outcome in ("stored", "refused"):
    FILE_UPLOADS.labels(outcome=_outcome)
for _by in ("id", "signed_url"):
    FILE_READS.labels(by=_by)
for _outcome in ("completed", "failed"):
    BATCH_REQUESTS.labels(outcome=_outcome)
for _status in ("completed", "failed", "expired", "cancelled"):
    BATCHES.labels(status=_status)


def registry() -> CollectorRegistry:
    """Return the registry with the metrics of this server and of vLLM.

    If vLLM runs several processes, as indicated by PROMETHEUS_MULTIPROC_DIR, the metrics of all of them are collected.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    gathered = CollectorRegistry()
    MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
    return gathered


class Queue(Protocol):
    """Numbers of the pages that are waiting or being read. `Admission` provides them."""

    pages_in_flight: int
    pages_waiting: int
    background_in_flight: int


def request_done(route: str, status: int, seconds: float) -> None:
    """Count a request that has ended.

    Args:
        route: Template of the route.
        status: HTTP status.
        seconds: Duration of the request.
    """
    REQUESTS.labels(route=route, status=str(status)).inc()
    REQUEST_SECONDS.labels(route=route).observe(seconds)


def stored(files: Mapping[str, int], size_bytes: int) -> None:
    """Set what is stored at the moment.

    Args:
        files: Purpose → number of files.
        size_bytes: Size of everything that counts towards the quota.
    """
    STORED_FILES.clear()
    for purpose, number in files.items():
        STORED_FILES.labels(purpose=purpose).set(number)
    STORED_BYTES.set(size_bytes)


def page_done(reading: PageReading) -> None:
    """Count a page that has been read or that has failed. Call this once for each page."""
    outcome = reading.finish_reason() or "error"
    # Requests can define modes of their own. They share one label.
    mode = (mode_name(reading.attempts[-1].mode) or "custom") if reading.attempts else "none"
    PAGES.labels(mode=mode, outcome=outcome).inc()
    TOKENS.labels(kind="prompt").inc(reading.prompt_tokens)
    TOKENS.labels(kind="completion").inc(reading.completion_tokens)
    if any(attempt.finish_reason == _REPETITION for attempt in reading.attempts) and outcome != "error":
        LOOPS.labels(outcome="kept" if outcome == _REPETITION else "recovered").inc()


def fetch_failed(code: str | None) -> None:
    """Count a URL that could not be downloaded, by its error code."""
    FETCH_FAILURES_TOTAL.labels(cause=code if code in FETCH_FAILURES else "other").inc()


@contextmanager
def watching(engine: object, queue: Queue | None, memory: MemoryBudget | None = None) -> Iterator[None]:
    """Read the metrics of `engine`, `queue` and `memory` on every scrape, for as long as this context is open."""
    watched = (engine, queue, memory)
    _MOMENTARY.watched.append(watched)
    try:
        yield
    finally:
        _MOMENTARY.watched.remove(watched)


class _Momentary(Collector):
    """Metrics that are read on every scrape, as sums over the applications of this process."""

    def __init__(self) -> None:
        self.watched: list[tuple[object, Queue | None, MemoryBudget | None]] = []

    def collect(self) -> Iterator[Metric]:
        queues = [queue for _, queue, _ in self.watched if queue is not None]
        yield GaugeMetricFamily(
            "ocr_pages_in_flight",
            "Number of pages that are being loaded, prepared or read.",
            value=sum(queue.pages_in_flight for queue in queues),
        )
        yield GaugeMetricFamily(
            "ocr_pages_waiting",
            "Number of pages of accepted requests that wait for their turn, without those of batches.",
            value=sum(queue.pages_waiting for queue in queues),
        )
        yield GaugeMetricFamily(
            "ocr_batch_pages_in_flight",
            "Number of pages in flight that belong to batches.",
            value=sum(queue.background_in_flight for queue in queues),
        )
        restarts = sum(int(getattr(engine, "restarts", 0)) for engine, _, _ in self.watched)
        yield CounterMetricFamily("ocr_engine_restarts", "Number of restarts of the engine.", value=restarts)
        yield from _memory_metrics([memory for *_, memory in self.watched if memory is not None])


def _memory_metrics(budgets: Sequence[MemoryBudget]) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "ocr_memory_budget_bytes",
        "Size of the memory budget.",
        value=sum(budget.capacity for budget in budgets),
    )
    used = GaugeMetricFamily("ocr_memory_reserved_bytes", "Bytes reserved of the memory budget.", labels=["use"])
    refused = CounterMetricFamily(
        "ocr_memory_refusals", "Number of times that the memory budget had no room for a request.", labels=["use"]
    )
    for use in Use:
        used.add_metric([use], sum(budget.used[use] for budget in budgets))
        refused.add_metric([use], sum(budget.refused[use] for budget in budgets))
    yield used
    yield refused


_MOMENTARY = _Momentary()
REGISTRY.register(_MOMENTARY)
