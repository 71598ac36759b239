"""Looks up the addresses of host names in threads of its own, so that a silent name server delays nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from weakref import WeakValueDictionary

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port → IP addresses of the host, preferred ones first. Raises OSError if there are none."""
LookUp = Callable[[str, int], Sequence[str]]
"""The same as a function that blocks."""

MAX_LOOKUPS = 64
"""Number of names that are looked up at the same time: threads, which the operating system's resolver blocks."""
MAX_LOOKUPS_OF_CLIENT = 16
MAX_LOOKUPS_OF_REQUEST = 4
"""Fewer than those of a client, since all clients without keys count as one."""
TIMEOUT_S = 10.0
"""Time in seconds after which nobody waits for a lookup any more. Its thread may stay blocked for longer."""


def system_look_up(host: str, port: int) -> list[str]:
    """Return the addresses of `host` according to the resolver of the operating system. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        os.close(os.open(os.devnull, os.O_RDONLY))  # without a free descriptor no name is found, and this says so
        raise
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Resolver:
    """Looks up names, under limits for each client and request. One for each process."""

    def __init__(self, look_up: LookUp = system_look_up, *, timeout_s: float = TIMEOUT_S) -> None:
        self._look_up = look_up
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, "resolver")
        self._clients: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def for_request(self, client: str) -> Resolve:
        """Return a function that resolves the names of one request."""
        of_client = self._clients.setdefault(client, asyncio.Semaphore(MAX_LOOKUPS_OF_CLIENT))
        return partial(self._resolve, asyncio.Semaphore(MAX_LOOKUPS_OF_REQUEST), of_client)

    def close(self) -> None:
        """End the threads without waiting for lookups."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _resolve(
        self, of_request: asyncio.Semaphore, of_client: asyncio.Semaphore, host: str, port: int
    ) -> Sequence[str]:
        await of_request.acquire()
        try:
            await of_client.acquire()
        except BaseException:
            of_request.release()
            raise

        def free(done: asyncio.Future[Sequence[str]]) -> None:
            of_request.release()
            of_client.release()
            if not done.cancelled():
                done.exception()  # nobody may be waiting for it any more

        try:
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)
        except BaseException:  # no thread can be started
            of_request.release()
            of_client.release()
            raise
        lookup.add_done_callback(free)  # not when the wait ends, since the thread is still occupied then
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.shield(lookup)
