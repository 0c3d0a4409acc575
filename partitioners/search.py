"""How the planner walks over segmentations: what it asks of each, what it keeps of an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from recut.partitioners.frontier import Candidate
from recut.partitioners.program import Program, Solution

# A program whose leanest schedule is this much over a budget has nothing cheap to offer under it.
SHRINKS = 1.25

# What a program is worth: less is better.
Worth = Callable[[int, int], tuple[float, int]]


@dataclass(frozen=True)
class Found:
    """A schedule that a search has found.

    Attributes:
        candidate: the schedule.
        step: what a step of it takes, in seconds.
        key: the segmentations of the program that gave it.
        cut_short: whether time ran out.
        failed: whether the solver failed at a program.
        planner: the name of the planner that found it, where that was no program.
    """

    candidate: Candidate
    step: float
    key: tuple[int, int]
    cut_short: bool = False
    failed: bool = False
    planner: str = ""

    @property
    def seconds(self) -> float:
        """What it takes to recompute and to save."""
        return self.candidate.seconds

    @property
    def name(self) -> str:
        """The planner's name for a plan."""
        if self.planner:
            return self.planner
        planner = "segments" if self.key[0] == self.key[1] else "nested segments"
        return named(planner, self.cut_short, self.failed)


def named(planner: str, cut_short: bool, failed: bool) -> str:
    """Return the name of a planner that may not have had the time or the solver that it wanted."""
    reasons = ["cut short by solver_seconds"] * cut_short + ["the solver failed"] * failed
    return f"{planner} ({', '.join(reasons)})" if reasons else planner


def ask(keys: Collection[tuple[int, int]], worth: Worth) -> None:
    """Ask what some segmentations are worth."""
    for key in sorted(keys):
        worth(*key)


def solve(program: Program, budget: int) -> Solution | None:
    """Return the solution of a program for a budget, or None where it is not worth asking for."""
    if program.peak > budget * SHRINKS:
        return None
    known = program.__dict__.get("lowest")
    if known is not None and known.target > budget * (1 + 1e-6):
        return None
    return program.solve(budget)


def climb(
    among: range, start: int, value: Callable[[int], tuple[float, int]], patience: int
) -> int:
    """Ask for the values around the least of some numbers, and return where it is.

    The walk leaves a side where ``patience`` in a row are no better.
    """
    best, where = value(start), start
    for side in (range(start - 1, among.start - 1, -1), range(start + 1, among.stop)):
        idle = 0
        for k in side:
            found = value(k)
            idle = 0 if found < best else idle + 1
            best, where = min((best, where), (found, k))
            if idle == patience:
                break
    return where


__all__ = ["SHRINKS", "Found", "Worth", "ask", "climb", "named", "solve"]
