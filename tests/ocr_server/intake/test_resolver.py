"""Looking up names: a silent name server delays neither another client nor any other work."""

from __future__ import annotations

import asyncio
import errno
import resource
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from ocr_server.errors import OutOfResources
from ocr_server.intake.errors import SourceError
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.resolver import (
    MAX_LOOKUPS_OF_CLIENT,
    MAX_LOOKUPS_OF_REQUEST,
    Resolver,
    system_look_up,
)
from tests.ocr_server.intake.memory import room


class NameServer:
    """Answers names, except for those that begin with `silent`, until it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()

    def look_up(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host.startswith("silent"):
            self.answers.wait()
        return ["192.0.2.1"]


@pytest.fixture
def server() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.answers.set()


Start = Callable[..., Resolver]


@pytest.fixture
def start(server: NameServer) -> Iterator[Start]:
    started = []

    def start(timeout_s: float = 60.0) -> Resolver:
        started.append(Resolver(server.look_up, timeout_s=timeout_s))
        return started[-1]

    yield start
    for each in started:
        each.close()


async def asked(server: NameServer, number: int) -> None:
    """Wait until the name server has been asked this many names, and give it time to be asked more."""
    async with asyncio.timeout(20):
        while len(server.asked) < number:  # noqa: ASYNC110  # it happens in threads
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


async def test_a_request_with_many_silent_names_delays_no_other(server: NameServer, start: Start) -> None:
    resolver = start()
    resolve = resolver.for_request("hostile")
    silent = [asyncio.ensure_future(resolve(f"silent{number}", 80)) for number in range(128)]
    await asked(server, MAX_LOOKUPS_OF_REQUEST)
    assert len(server.asked) == MAX_LOOKUPS_OF_REQUEST
    assert await resolver.for_request("hostile")("other.test", 80) == ["192.0.2.1"]
    assert await resolver.for_request("other")("other.test", 80) == ["192.0.2.1"]
    server.answers.set()
    assert await asyncio.gather(*silent) == [["192.0.2.1"]] * 128


async def test_a_client_with_many_requests_delays_no_other_client(server: NameServer, start: Start) -> None:
    resolver = start()
    silent = [
        asyncio.ensure_future(resolver.for_request("hostile")(f"silent{number}", 80))
        for number in range(5 * MAX_LOOKUPS_OF_CLIENT)
    ]
    await asked(server, MAX_LOOKUPS_OF_CLIENT)
    assert len(server.asked) == MAX_LOOKUPS_OF_CLIENT
    assert await resolver.for_request("other")("other.test", 80) == ["192.0.2.1"]
    server.answers.set()
    await asyncio.gather(*silent)


async def test_silent_names_keep_no_other_thread_waiting(server: NameServer, start: Start) -> None:
    resolver = start()
    silent = [asyncio.ensure_future(resolver.for_request(str(number))("silent", 80)) for number in range(60)]
    await asked(server, 60)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 20) == "done"
    server.answers.set()
    await asyncio.gather(*silent)


async def test_a_lookup_is_given_up_but_counts_until_it_ends(server: NameServer, start: Start) -> None:
    resolve = start(timeout_s=0.2).for_request("client")
    for number in range(MAX_LOOKUPS_OF_REQUEST):
        with pytest.raises(TimeoutError):
            await resolve(f"silent{number}", 80)
    waiting = asyncio.ensure_future(resolve("other.test", 80))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    server.answers.set()
    assert await waiting == ["192.0.2.1"]


async def test_a_cancelled_wait_for_a_place_takes_none(server: NameServer, start: Start) -> None:
    resolve = start().for_request("client")
    silent = [asyncio.ensure_future(resolve("silent", 80)) for _ in range(MAX_LOOKUPS_OF_REQUEST)]
    await asked(server, MAX_LOOKUPS_OF_REQUEST)
    waiting = asyncio.ensure_future(resolve("other.test", 80))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    server.answers.set()
    await asyncio.gather(*silent)
    for _ in range(2):
        assert await asyncio.gather(*(resolve("other.test", 80) for _ in range(MAX_LOOKUPS_OF_REQUEST)))


def test_a_lack_of_descriptors_is_not_an_unknown_name() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            system_look_up("name.invalid", 80)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


async def test_a_fetch_without_descriptors_is_trouble_of_the_machine(limits: IntakeLimits) -> None:
    fetcher = Fetcher(limits, resolve=_loopback)
    with pytest.raises(SourceError):  # imports what is needed
        await fetcher.fetch("http://name.test:9/", room())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OutOfResources) as caught:
            await fetcher.fetch("http://name.test:9/", room())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.retry_after


async def _loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]
