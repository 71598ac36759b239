"""Simulates how long pages wait on many GPUs, depending on how requests are distributed. See docs/scaling.md.

    python -m deploy.simulate                 # the tables of docs/scaling.md, in two minutes
    python -m deploy.simulate --replicas 8 --load 0.7 --policy requests

A replica is an engine with continuous batching: its pages share its speed, and a single page can use only a part of it.
Requests arrive at random (a Poisson process) and have between one and hundreds of pages, as scans and documents do. All
times are multiples of the time that a single page takes on an idle replica.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Annotated

import typer

BATCH = 32
"""Number of concurrent pages at which an engine reaches its maximum speed."""
SLOTS = 116
"""Maximum number of pages that an engine reads concurrently. Requests take turns for the slots."""
AT_ONCE = 32
"""Maximum number of pages of one request that are read concurrently."""
SINGLE = 0.7
"""Fraction of requests that have a single page."""
PAGES_MEDIAN, PAGES_SIGMA, PAGES_MOST = 12.0, 1.2, 1000
"""The page counts of the other requests have a lognormal distribution with this median, sigma and maximum."""
LENGTH_SIGMA = 0.5
"""Sigma of the work of a page, which has a lognormal distribution with mean 1."""


@dataclass(eq=False)
class Request:
    """A request with one or more pages."""

    came: float
    """Time of arrival."""
    pages: int
    waiting: deque[float]
    """Work of each page that has not been started."""
    reading: int = 0
    """Number of pages that are being read."""
    ended: float = math.nan
    """Time at which the last page was finished."""


@dataclass
class Replica:
    """A queue with processor sharing and a maximum speed: each of n pages is read at the speed min(1, BATCH / n)."""

    now: float = 0.0
    done: float = 0.0
    """Work that a page would have received if it had been read since the start of the simulation."""
    reading: list[tuple[float, int, Request]] = field(default_factory=list)
    """A heap of the pages being read, ordered by the value of `done` at which each of them is finished."""
    turns: deque[Request] = field(default_factory=deque)
    """Requests with a page that may be started, in the order of their turns."""
    requests: int = 0
    """Number of unfinished requests."""
    pages: int = 0
    """Number of unfinished pages."""

    def speed(self) -> float:
        """Return the speed of each page."""
        return min(1.0, BATCH / len(self.reading)) if self.reading else 0.0

    def next_end(self) -> float:
        """Return the time at which the next page is finished, if no request arrives before."""
        return self.now + (self.reading[0][0] - self.done) / self.speed() if self.reading else math.inf

    def advance(self, now: float) -> None:
        """Advance the simulation of this replica to the time `now`."""
        self.done += (now - self.now) * self.speed()
        self.now = now

    def add(self, request: Request, numbers: Iterator[int]) -> None:
        """Add a request. `numbers` makes the entries of the heap distinct."""
        self.requests += 1
        self.pages += request.pages
        self.turns.append(request)
        self._fill(numbers)

    def end_one(self, numbers: Iterator[int]) -> None:
        """Finish the page that ends next, and start others."""
        _, _, request = heapq.heappop(self.reading)
        self.pages -= 1
        request.reading -= 1
        if request.waiting:
            if request.reading == AT_ONCE - 1:
                self.turns.append(request)
        elif not request.reading:
            request.ended = self.now
            self.requests -= 1
        self._fill(numbers)

    def _fill(self, numbers: Iterator[int]) -> None:
        while self.turns and len(self.reading) < SLOTS:
            request = self.turns.popleft()
            request.reading += 1
            heapq.heappush(self.reading, (self.done + request.waiting.popleft(), next(numbers), request))
            if request.waiting and request.reading < AT_ONCE:
                self.turns.append(request)


Policy = Callable[[list[Replica], random.Random], int]


def at_random(replicas: list[Replica], rng: random.Random) -> int:
    """Return the index of a random replica."""
    return rng.randrange(len(replicas))


def fewest_requests_of_two(replicas: list[Replica], rng: random.Random) -> int:
    """Return the index of that one of two random replicas which has fewer requests, as Ray Serve does."""
    a, b = rng.randrange(len(replicas)), rng.randrange(len(replicas))
    return a if replicas[a].requests <= replicas[b].requests else b


def fewest_pages_of_two(replicas: list[Replica], rng: random.Random) -> int:
    """Return the index of that one of two random replicas which has fewer pages."""
    a, b = rng.randrange(len(replicas)), rng.randrange(len(replicas))
    return a if replicas[a].pages <= replicas[b].pages else b


POLICIES: dict[str, Policy] = {
    "random": at_random,
    "requests": fewest_requests_of_two,
    "pages": fewest_pages_of_two,
}


def pages_of(rng: random.Random) -> int:
    """Return a random number of pages for a request."""
    if rng.random() < SINGLE:
        return 1
    return max(2, min(PAGES_MOST, round(rng.lognormvariate(math.log(PAGES_MEDIAN), PAGES_SIGMA))))


def simulate(replicas: int, load: float, policy: Policy, *, pages: int, seed: int = 0) -> list[Request]:
    """Run a simulation, and return its requests without the first tenth, while the queues are still filling.

    Args:
        replicas: number of replicas.
        load: the work that arrives, as a fraction of the maximum speed of all replicas.
        policy: chooses the replica for each request.
        pages: number of pages in total.
        seed: seed of the random numbers.
    """
    rng, numbers = random.Random(seed), count()
    mean_pages = statistics.fmean(pages_of(random.Random(number)) for number in range(20_000))
    between = mean_pages / (replicas * BATCH * load)
    cluster = [Replica() for _ in range(replicas)]
    requests: list[Request] = []
    now, sent = 0.0, 0
    ends: list[tuple[float, int]] = []
    version = [0.0] * replicas  # the valid end for each replica; other entries of the heap are outdated

    def schedule(place: int) -> None:
        """Update the time at which the next page of a replica is finished."""
        version[place] = cluster[place].next_end()
        if version[place] < math.inf:
            heapq.heappush(ends, (version[place], place))

    coming = rng.expovariate(1 / between)
    while sent < pages or ends:
        if ends and (sent >= pages or ends[0][0] <= coming):
            now, place = heapq.heappop(ends)
            if version[place] != now:
                continue
            cluster[place].advance(now)
            cluster[place].end_one(numbers)
            schedule(place)
            continue
        now = coming
        coming += rng.expovariate(1 / between)
        length = pages_of(rng)
        work = deque(rng.lognormvariate(-(LENGTH_SIGMA**2) / 2, LENGTH_SIGMA) for _ in range(length))
        requests.append(request := Request(now, length, work))
        sent += length
        place = policy(cluster, rng)
        cluster[place].advance(now)
        cluster[place].add(request, numbers)
        schedule(place)
    return requests[len(requests) // 10 :]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile of `values` for a `share` between 0 and 1."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(
    replicas: Annotated[int, typer.Option(min=0, help="Number of replicas. 0 runs 1, 8 and 64.")] = 0,
    load: Annotated[float, typer.Option(min=0, max=0.99, help="Load between 0 and 1. 0 runs 0.5, 0.7 and 0.9.")] = 0.0,
    policy: Annotated[str, typer.Option(help="random, requests or pages. By default, all of them.")] = "",
    pages: Annotated[int, typer.Option(help="Number of pages to simulate, for each replica.")] = 4000,
) -> None:
    """Print the response time of requests in multiples of the time that a single page takes on an idle replica."""
    print("| replicas | load | request goes to | single page: p50 | p95 | p99 | document, for each page: p95 |")
    print("|---|---|---|---|---|---|---|")
    for size in [replicas] if replicas else [1, 8, 64]:
        for share in [load] if load else [0.5, 0.7, 0.9]:
            for name in [policy] if policy else POLICIES:
                ended = simulate(size, share, POLICIES[name], pages=pages * size)
                single = [each.ended - each.came for each in ended if each.pages == 1]
                whole = [(each.ended - each.came) / each.pages for each in ended if each.pages > 1]
                print(
                    f"| {size} | {share:.0%} | {name} | {quantile(single, 0.5):.2f} | {quantile(single, 0.95):.2f} "
                    f"| {quantile(single, 0.99):.2f} | {quantile(whole, 0.95):.2f} |"
                )
                if size == 1:
                    break


if __name__ == "__main__":
    typer.run(main)
