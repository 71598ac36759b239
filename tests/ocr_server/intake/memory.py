"""Memory budgets with more room than the tests need."""

from __future__ import annotations

from ocr_server.memory import MemoryBudget, Reservation, Use


def budget() -> MemoryBudget:
    return MemoryBudget(4 * 10**9)


def room() -> Reservation:
    return budget().reserve(Use.SOURCES)
