"""The frontier of a problem: for each peak the cheapest schedule that is known."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from recut.partitioners.schedule import Schedule


@dataclass(frozen=True)
class Candidate:
    """A schedule that has been measured.

    Attributes:
        peak: bytes.
        seconds: what it takes to recompute and to save.
        schedule: the schedule.
    """

    peak: int
    seconds: float
    schedule: Schedule


class Frontier:
    """Candidates of which none has both a lower peak and a lower cost than another."""

    def __init__(self) -> None:
        self._peaks: list[int] = []
        self.candidates: list[Candidate] = []

    def add(self, candidate: Candidate) -> None:
        """Take a candidate in unless one with no higher peak costs no more."""
        place = bisect_right(self._peaks, candidate.peak)
        if place and self.candidates[place - 1].seconds <= candidate.seconds:
            return
        first = bisect_left(self._peaks, candidate.peak)
        last = first
        while last < len(self._peaks) and self.candidates[last].seconds >= candidate.seconds:
            last += 1
        self._peaks[first:last] = [candidate.peak]
        self.candidates[first:last] = [candidate]

    def under(self, budget: int) -> Candidate | None:
        """Return the cheapest candidate with at most ``budget`` bytes."""
        place = bisect_right(self._peaks, budget)
        return self.candidates[place - 1] if place else None
