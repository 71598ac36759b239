"""How long pages wait on many GPUs, by how requests are given to them: what docs/scaling.md claims of queues.

    python -m deploy.simulate                 # the tables of docs/scaling.md, in two minutes
    python -m deploy.simulate --replicas 8 --load 0.7 --policy requests

A replica is an engine with continuous batching: its pages share its speed, of which one alone can use a part only.
Requests come by chance and have from one page to hundreds, as scans and documents do. All times are multiples of the
time that one page takes alone.
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
"""Pages at a time from which on an engine gets no faster."""
SLOTS = 116
"""Pages that an engine reads at a time; of others, each request has its turn."""
AT_ONCE = 32
"""Pages of one request that are read at a time."""
SINGLE = 0.7
"""Share of requests that have one page."""
PAGES_MEDIAN, PAGES_SIGMA, PAGES_MOST = 12.0, 1.2, 1000
"""Of the others: a lognormal distribution."""
LENGTH_SIGMA = 0.5
"""Of the work of a page, whose mean is 1."""


@dataclass(eq=False)
class Request:
    came: float
    pages: int
    waiting: deque[float]
    """The work of its pages that have not been begun."""
    reading: int = 0
    ended: float = math.nan


@dataclass
class Replica:
    """Processor sharing with a cap: with n pages, each goes at speed min(1, BATCH / n)."""

    now: float = 0.0
    done: float = 0.0
    """Work that a page has got which has been read since the beginning."""
    reading: list[tuple[float, int, Request]] = field(default_factory=list)
    """A heap: at which `done` a page ends."""
    turns: deque[Request] = field(default_factory=deque)
    """Those with a page that may be begun."""
    requests: int = 0
    pages: int = 0

    def speed(self) -> float:
        return min(1.0, BATCH / len(self.reading)) if self.reading else 0.0

    def next_end(self) -> float:
        return self.now + (self.reading[0][0] - self.done) / self.speed() if self.reading else math.inf

    def advance(self, now: float) -> None:
        self.done += (now - self.now) * self.speed()
        self.now = now

    def add(self, request: Request, numbers: Iterator[int]) -> None:
        self.requests += 1
        self.pages += request.pages
        self.turns.append(request)
        self._fill(numbers)

    def end_one(self, numbers: Iterator[int]) -> None:
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
    return rng.randrange(len(replicas))


def fewest_requests_of_two(replicas: list[Replica], rng: random.Random) -> int:
    """What Ray Serve does."""
    a, b = rng.randrange(len(replicas)), rng.randrange(len(replicas))
    return a if replicas[a].requests <= replicas[b].requests else b


def fewest_pages_of_two(replicas: list[Replica], rng: random.Random) -> int:
    a, b = rng.randrange(len(replicas)), rng.randrange(len(replicas))
    return a if replicas[a].pages <= replicas[b].pages else b


POLICIES: dict[str, Policy] = {
    "random": at_random,
    "requests": fewest_requests_of_two,
    "pages": fewest_pages_of_two,
}


def pages_of(rng: random.Random) -> int:
    if rng.random() < SINGLE:
        return 1
    return max(2, min(PAGES_MOST, round(rng.lognormvariate(math.log(PAGES_MEDIAN), PAGES_SIGMA))))


def simulate(replicas: int, load: float, policy: Policy, *, pages: int, seed: int = 0) -> list[Request]:
    """Requests that came after the first tenth and have ended, with their times.

    Args:
        load: of what all replicas can do at most.
        pages: read in all.
    """
    rng, numbers = random.Random(seed), count()
    mean_pages = statistics.fmean(pages_of(random.Random(number)) for number in range(20_000))
    between = mean_pages / (replicas * BATCH * load)
    farm = [Replica() for _ in range(replicas)]
    requests: list[Request] = []
    now, sent = 0.0, 0
    ends: list[tuple[float, int]] = []
    version = [0.0] * replicas  # the end that counts; older entries of the heap are void

    def look(place: int) -> None:
        version[place] = farm[place].next_end()
        if version[place] < math.inf:
            heapq.heappush(ends, (version[place], place))

    coming = rng.expovariate(1 / between)
    while sent < pages or ends:
        if ends and (sent >= pages or ends[0][0] <= coming):
            now, place = heapq.heappop(ends)
            if version[place] != now:
                continue
            farm[place].advance(now)
            farm[place].end_one(numbers)
            look(place)
            continue
        now = coming
        coming += rng.expovariate(1 / between)
        length = pages_of(rng)
        work = deque(rng.lognormvariate(-(LENGTH_SIGMA**2) / 2, LENGTH_SIGMA) for _ in range(length))
        requests.append(request := Request(now, length, work))
        sent += length
        place = policy(farm, rng)
        farm[place].advance(now)
        farm[place].add(request, numbers)
        look(place)
    return requests[len(requests) // 10 :]


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(
    replicas: Annotated[int, typer.Option(min=0, help="0 for 1, 8 and 64.")] = 0,
    load: Annotated[float, typer.Option(min=0, max=0.99, help="0 for 50, 70 and 90%.")] = 0.0,
    policy: str = "",
    pages: Annotated[int, typer.Option(help="Read in all, for each replica.")] = 4000,
) -> None:
    """How long single pages wait, in multiples of what one takes alone: median, 95th and 99th percentile."""
    print("| replicas | load | given to | single page: p50 | p95 | p99 | document, for each page: p95 |")
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
