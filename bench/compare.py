"""Two ways of doing the same, timed in turn, so that what else the machine does falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Timed = Callable[[], object]


@dataclass(frozen=True)
class Series:
    """Figures of one way, in the order they were seen."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.values) < 2 or not self.median:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / 2 / self.median


@dataclass(frozen=True)
class Row:
    """One line of the results."""

    part: str
    unit: str
    ours: Series
    theirs: Series
    compared_with: str
    reach: str
    """What the project wants of the ratio ours / theirs, or of ours where nothing is compared."""
    met: bool | None = None
    """None where there is nothing to meet."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours.median / self.theirs.median if self.theirs.values and self.theirs.median else None

    @property
    def gain(self) -> float | None:
        """How many times better ours is: faster, or with less."""
        if not self.ratio:
            return None
        return self.ratio if self.unit.endswith("/s") else 1 / self.ratio


def in_turn(ours: Timed, theirs: Timed, *, rounds: int, calls: int = 1) -> tuple[Series, Series]:
    """Seconds for a call of each: `rounds` times one after the other, the first round thrown away."""
    figures: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for way, seconds in zip((ours, theirs), figures, strict=True):
            started = time.perf_counter()
            for _ in range(calls):
                way()
            if number:
                seconds.append((time.perf_counter() - started) / calls)
    return Series(figures[0]), Series(figures[1])


def compared(
    part: str,
    unit: str,
    series: tuple[Series, Series],
    *,
    compared_with: str,
    at_most: float | None = None,
    at_least: float | None = None,
    note: str = "",
) -> Row:
    """A row whose ratio has to be `at_most` (times, bytes) or `at_least` (rates)."""
    ours, theirs = series
    ratio = ours.median / theirs.median
    if at_most is not None:
        return Row(part, unit, ours, theirs, compared_with, f"≤ {at_most:g}", ratio <= at_most, note)
    if at_least is not None:
        return Row(part, unit, ours, theirs, compared_with, f"≥ {at_least:g}", ratio >= at_least, note)
    return Row(part, unit, ours, theirs, compared_with, "", None, note)


def scaled(series: tuple[Series, Series], factor: float) -> tuple[Series, Series]:
    ours, theirs = series
    return Series([value * factor for value in ours.values]), Series([value * factor for value in theirs.values])


def rates(series: tuple[Series, Series], amount: float = 1) -> tuple[Series, Series]:
    """Seconds → `amount` a second."""
    ours, theirs = series
    return Series([amount / value for value in ours.values]), Series([amount / value for value in theirs.values])
