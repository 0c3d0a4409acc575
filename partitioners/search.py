"""What the programs have to offer for one budget.

The most promising programs are rounded (``rounding.py``), and the best schedule becomes the base of
a program that improves on it. Others come of the programs' bases, from which recomputations are
dropped as long as their results fit (``room.py``).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cache, partial

from recut.partitioners.effort import NORMAL, Effort
from recut.partitioners.evaluator import measure
from recut.partitioners.frontier import Candidate, Frontier
from recut.partitioners.machine import Machine
from recut.partitioners.program import Program, Solution
from recut.partitioners.programs import Explore, Key, Programs
from recut.partitioners.room import Base, filled
from recut.partitioners.rounding import bare, fill
from recut.partitioners.timing import step_seconds

# A program whose leanest schedule is this much over a budget has nothing cheap to offer under it.
SHRINKS = 1.25
# Programs that are rounded at least, until one has an answer.
_IN_VAIN = 6
# How often a schedule becomes the base of a program that improves on it.
_IMPROVEMENTS = 3


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
    key: Key
    cut_short: bool = False
    failed: bool = False
    planner: str = ""

    @property
    def seconds(self) -> float:
        """What it takes to recompute and to save."""
        return self.candidate.seconds

    @property
    def name(self) -> str:
        """The planner's name for a plan; it says whether it had the time and the solver."""
        segments = "segments" if self.key[0] == self.key[1] else "nested segments"
        planner = self.planner or segments
        reasons = ["cut short by solver_seconds"] * self.cut_short
        reasons += ["the solver failed"] * self.failed
        return f"{planner} ({', '.join(reasons)})" if reasons else planner


class Search:
    """The search for the cheapest schedule under one budget.

    Args:
        programs: the problem's programs.
        machine: what starting a kernel costs.
        budget: bytes.
        seconds: how long the search may take.
        tried: what is told of all that is tried, whether it fits or not.
        effort: how far it is searched.
    """

    def __init__(
        self,
        programs: Programs,
        machine: Machine,
        budget: int,
        seconds: float = math.inf,
        tried: Frontier | None = None,
        effort: Effort = NORMAL,
    ) -> None:
        self.problem = programs.problem
        self.programs = programs
        self.machine = machine
        self.budget = budget
        self.tried = tried
        self.effort = effort
        self._end = time.monotonic() + seconds
        self._solved: dict[Key, Solution] = {}

    @property
    def left(self) -> float:
        """How much time is left, in seconds."""
        return self._end - time.monotonic()

    @property
    def late(self) -> bool:
        """Whether the time has run out."""
        return self.left < 0

    def found(self, candidate: Candidate, key: Key = (0, 0), planner: str = "") -> Found:
        """Return a schedule as one that was found, and tell of it."""
        if self.tried is not None:
            self.tried.add(candidate)
        step = step_seconds(self.problem, candidate.schedule, self.machine)
        return Found(candidate, step, key, planner=planner)

    def plain(self) -> Found | None:
        """Return the cheapest schedule of segmentations in one level."""
        return self.rounded(partial(self.programs.plain, patience=self.effort.patience))

    def nested(self) -> Found | None:
        """Return the cheapest schedule of segmentations in two levels."""
        return self.rounded(partial(self.programs.nested, patience=self.effort.patience))

    def rounded(self, explore: Explore) -> Found | None:
        """Return the cheapest schedule that some programs give."""
        best: Found | None = None
        solved: dict[Key, Solution] = {}

        @cache
        def worth(k: int, finer: int) -> tuple[float, int]:
            program = self.programs.program(k, finer)
            solution = solve(program, self.budget)
            if solution is None:
                return (math.inf, program.peak)
            solved[k, finer] = solution
            return (solution.target, program.peak)

        explore(worth)
        self._solved |= solved
        rounded = self.effort.rounded
        for rank, key in enumerate(_ranked(solved)):
            # A program errs on the side of caution: the least of all is not always the best's.
            if rank >= (max(_IN_VAIN, rounded) if best is None else rounded):
                break
            if best is not None and solved[key].target >= best.seconds:
                break
            if self.late:
                best = best or self._bare()
                return None if best is None else replace(best, cut_short=True)
            candidate = fill(self._program(key), self.budget, solved[key], self.tried)
            if candidate is not None:
                best = better(best, self.found(candidate, key))
        failed = self.programs.failed
        best = best or (self._bare() if failed else None)
        return None if best is None else replace(self._improved(best), failed=failed)

    def _program(self, key: Key) -> Program:
        return self.programs.program(*key)

    def _bare(self) -> Found | None:
        """Return the cheapest of the programs' bases that fit: schedules without a solution."""
        bases = ((bare(program), key) for key, program in self.programs.known.items())
        fit = [(base.seconds, key, base) for base, key in bases if base.peak <= self.budget]
        if not fit:
            return None
        _, key, base = min(fit, key=lambda found: found[:2])
        return self.found(base, key)

    def _improved(self, best: Found) -> Found:
        """Return the best of a schedule and what a program with that base makes of it.

        The program knows the lives of what this very schedule recomputes.
        """
        for _ in range(_IMPROVEMENTS):
            program = Program(self.problem, best.candidate.schedule)
            solution = program.solve(self.budget)
            candidate = None
            if solution is not None:
                candidate = fill(program, self.budget, solution, self.tried)
            if candidate is None or candidate.seconds >= best.seconds:
                break
            step = self.found(candidate).step
            if step >= best.step:
                break
            best = replace(best, candidate=candidate, step=step)
        return best

    def dropped(self, best: Found | None) -> Found | None:
        """Return the best of a schedule and of bases without some of what they recompute.

        The bases are those of the programs that were solved, as far as they fit.
        """
        fit = [key for key in _ranked(self._solved) if self._program(key).peak <= self.budget]
        fit = fit[: self.effort.bases]
        choices = {key: self.programs.base(*key).choice(self.budget) for key in fit}
        other = best
        promising = sorted(choices, key=lambda key: (choices[key].seconds, key))
        for key in promising[: self.effort.dropped]:
            if self.late:
                break
            base = self.programs.base(*key).without(choices[key], self.budget)
            if base is not None:
                other = better(other, self.found(filled(base, self.budget).candidate, key))
        if other is None or other is best:
            return best
        return replace(self.filled(self._improved(other)), failed=self.programs.failed)

    def filled(self, best: Found) -> Found:
        """Return a schedule without what it recomputes and has room for."""
        schedule = best.candidate.schedule
        base = Base(self.problem, schedule, measure(self.problem, schedule))
        other = filled(base, self.budget)
        return best if other is base else self.instead(best, other.candidate)

    def instead(self, best: Found, candidate: Candidate, planner: str = "") -> Found:
        """Return what was found, or the same with another schedule where that takes less.

        Args:
            best: what was found.
            candidate: the other schedule.
            planner: who found that, where it did not start from the first.
        """
        step = self.found(candidate).step
        if step >= best.step:
            return best
        return replace(best, candidate=candidate, step=step, planner=planner or best.planner)


def _ranked(solved: dict[Key, Solution]) -> list[Key]:
    """Return the programs that were solved, the most promising first."""
    return sorted(solved, key=lambda key: (solved[key].target, key))


def better(best: Found | None, other: Found) -> Found:
    """Return the one of which a step takes less."""
    return other if best is None or other.step < best.step else best


def solve(program: Program, budget: int) -> Solution | None:
    """Return the solution of a program for a budget, or None where it is not worth asking for."""
    if program.peak > budget * SHRINKS:
        return None
    known = program.__dict__.get("lowest")
    if known is not None and known.target > budget * (1 + 1e-6):
        return None
    return program.solve(budget)


__all__ = ["SHRINKS", "Found", "Search", "better", "solve"]
