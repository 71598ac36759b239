"""Time two implementations alternately, so that other load on the machine affects both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Timed = Callable[[], object]


@dataclass(frozen=True)
class Series:
    """The measurements of one implementation, in the order in which they were made."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the interquartile range, divided by the median."""
        if len(self.values) < 2 or not self.median:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / 2 / self.median


@dataclass(frozen=True)
class Row:
    """One row of the results."""

    part: str
    """What is measured."""
    unit: str
    ours: Series
    theirs: Series
    compared_with: str
    """What `theirs` are the measurements of."""
    target: str
    """The target for the ratio ours / theirs, or for ours if nothing is compared."""
    met: bool | None = None
    """Whether the target is met; None if there is no target."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours.median / self.theirs.median if self.theirs.values and self.theirs.median else None

    @property
    def gain(self) -> float | None:
        """How many times better ours is, in speed or in resources."""
        if not self.ratio:
            return None
        return self.ratio if self.unit.endswith("/s") else 1 / self.ratio


def in_turn(ours: Timed, theirs: Timed, *, rounds: int, calls: int = 1) -> tuple[Series, Series]:
    """Call both functions alternately and return the seconds per call of each, one measurement for each round.

    Args:
        ours: the first function.
        theirs: the second function.
        rounds: number of rounds. One more is run first and discarded.
        calls: number of calls of each function in a round.
    """
    measurements: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for function, seconds in zip((ours, theirs), measurements, strict=True):
            started = time.perf_counter()
            for _ in range(calls):
                function()
            if number:
                seconds.append((time.perf_counter() - started) / calls)
    return Series(measurements[0]), Series(measurements[1])


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
    """Return a row. The target for its ratio is `at_most` (for times and bytes) or `at_least` (for rates), or none."""
    ours, theirs = series
    ratio = ours.median / theirs.median
    if at_most is not None:
        return Row(part, unit, ours, theirs, compared_with, f"≤ {at_most:g}", ratio <= at_most, note)
    if at_least is not None:
        return Row(part, unit, ours, theirs, compared_with, f"≥ {at_least:g}", ratio >= at_least, note)
    return Row(part, unit, ours, theirs, compared_with, "", None, note)


def scaled(series: tuple[Series, Series], factor: float) -> tuple[Series, Series]:
    """Return both series with their values multiplied by `factor`."""
    ours, theirs = series
    return Series([value * factor for value in ours.values]), Series([value * factor for value in theirs.values])


def rates(series: tuple[Series, Series], amount: float = 1) -> tuple[Series, Series]:
    """Convert seconds to rates per second, where `amount` is what was done in these seconds."""
    ours, theirs = series
    return Series([amount / value for value in ours.values]), Series([amount / value for value in theirs.values])
