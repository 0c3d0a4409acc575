"""From shares to schedules: a program's fractional solution, rounded.

For a level t, what is recomputed further than t is recomputed, and of the rest what the backward
has further than t is saved; averaged over t, memory and cost are the program's. The evaluator
decides which levels fit. Between the leanest level that does not fit and the next one that does lie
their *mixtures*: one level's choice for the values made up to some op, the other's behind it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recut.partitioners.evaluator import measure
from recut.partitioners.frontier import Candidate, Frontier
from recut.partitioners.program import Program, Solution
from recut.partitioners.tables import Flags

# A level closer than this to another is the same one: the solver's own precision.
_PRECISION = 1e-6
# Where the leanest level is over the budget, the program is solved again for a smaller one.
_ROUNDS = 4
# How often it is solved again for a larger one.
_RAISES = 1
# How many mixtures of two levels are tried.
_TRIES = 6
# A schedule that leaves more than this share of the budget leaves too much.
_ROOM = 0.01


def bare(program: Program) -> Candidate:
    """Return the program's base."""
    return Candidate(program.peak, program.schedule.seconds(program.problem), program.schedule)


def carrying(program: Program, carried: Flags) -> Candidate:
    """Return the base with some of the program's instances carried instead of made again."""
    key = carried.tobytes()
    if key not in program.measured:
        # Solved again for a little more or less, a program often has the same levels.
        schedule = program.carrying(carried)
        peak = measure(program.problem, schedule).peak
        found = Candidate(peak, schedule.seconds(program.problem), schedule)
        program.measured[key] = found
    return program.measured[key]


def levels(solution: Solution) -> list[Flags]:
    """Return which of the program's instances each level carries, the leanest level first."""
    steps = np.unique(np.round(np.concatenate([solution.remade, solution.kept]), 6))
    found: dict[bytes, Flags] = {}
    for step in steps[(steps >= 0) & (steps < 1)]:
        level = step + _PRECISION
        carried = (solution.kept > level) & (solution.remade <= level)
        found.setdefault(carried.tobytes(), carried)
    return list(found.values())


class _Attempts:
    """Schedules of one program, tried against a budget.

    Attributes:
        best: the cheapest that fits.
    """

    def __init__(self, program: Program, budget: int, tried: Frontier | None) -> None:
        self.program = program
        self.budget = budget
        self.tried = tried
        self.best = bare(program) if program.peak <= budget else None

    def excess(self, carried: Flags) -> int:
        """Return by how many bytes the base with some instances carried is over the budget."""
        found = carrying(self.program, carried)
        if self.tried is not None:
            self.tried.add(found)
        if found.peak <= self.budget and (self.best is None or found.seconds < self.best.seconds):
            self.best = found
        return found.peak - self.budget


def fill(
    program: Program, budget: int, solution: Solution | None, tried: Frontier | None = None
) -> Candidate | None:
    """Return the cheapest schedule found that fits ``budget`` bytes; ``solution`` is for it.

    What is tried on the way, whether it fits or not, is added to ``tried``.

    The program knows a few moments, and the lives of what is recomputed for one schedule. So its
    answers are a little over the budget or under it, and it is asked again for less or more.
    """
    attempts = _Attempts(program, budget, tried)
    target = float(budget)
    most = float("inf")  # what gave an answer over the budget
    nearest = None  # the leanest of these answers
    raises = 0
    for _ in range(_ROUNDS):
        found = [] if solution is None else levels(solution)
        if not found:
            break
        over = attempts.excess(found[0])
        if over > 0:
            nearest = found[0]
            most, target = target, target - over * 1.02
        else:
            _climb(attempts, found)
            assert attempts.best is not None  # the first level fits
            room = budget - attempts.best.peak
            if room < budget * _ROOM or raises == _RAISES:
                return attempts.best
            raises += 1
            target = min(target + room, (target + most) / 2)
        solution = program.solve(target, go_on=True)
    if attempts.best is not None and nearest is not None and not raises:
        _mix(attempts, np.zeros_like(nearest), nearest)
    return attempts.best


def _climb(attempts: _Attempts, found: list[Flags]) -> None:
    """Try what stands behind the first, which fits, then mix the two next to the budget."""
    last = _last_fit(len(found), lambda k: attempts.excess(found[k]))
    if last + 1 == len(found):
        return
    _mix(attempts, found[last], found[last + 1])


def _mix(attempts: _Attempts, lean: Flags, rich: Flags) -> None:
    """Take over from ``rich``, which does not fit, what ``lean`` has room for.

    Stretches of the graph are tried whole, and where one does not fit, its halves; the largest
    first.
    """
    now = lean.copy()
    differ = np.flatnonzero(lean != rich)
    stretches = [half for half in np.array_split(differ, 2) if len(half)]
    for _ in range(_TRIES):
        if not stretches:
            break
        stretch = stretches.pop(0)
        tried = now.copy()
        tried[stretch] = rich[stretch]
        if attempts.excess(tried) <= 0:
            now = tried
        elif len(stretch) > 1:
            stretches.extend(np.array_split(stretch, 2))
            stretches.sort(key=len, reverse=True)


def _last_fit(count: int, excess: Callable[[int], int]) -> int:
    """Return the last of ``count`` that fits, if those that fit come first; the first one does."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if excess(middle) <= 0:
            low = middle
        else:
            high = middle
    return low


def shrink(program: Program) -> Candidate:
    """Return the schedule with the lowest peak found for the program's base."""
    best = bare(program)
    for k, carried in enumerate(levels(program.lowest) if program.lowest is not None else ()):
        found = carrying(program, carried)
        # The leanest levels have the lowest peaks.
        if k and found.peak >= best.peak:
            break
        best = min(best, found, key=lambda c: c.peak)
    return best
