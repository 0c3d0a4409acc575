"""The exact tier: the program of a problem's stages in whole numbers (``stages.py``).

Rows for all moments at once would be too many. The program starts with those of the own ops, and
of what a known schedule holds too much of. Where the answer is over the budget in passing, or in
the forward, rows are added for the worst such moments, and it is solved again. Where a row says
less than the evaluator (an op may write over an input), it is tightened by what was too much.

The work is counted in nodes of the solver's search tree.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from recut.partitioners.evaluator import Liveness, measure
from recut.partitioners.frontier import Candidate
from recut.partitioners.schedule import Schedule
from recut.partitioners.solver import LinearProgram
from recut.partitioners.stages import Bytes, Entry, Rows, StageProgram
from recut.partitioners.tables import Floats, Ints

# How often rows are added.
_ROUNDS = 12


@dataclass(frozen=True)
class Answered:
    """What a program came to.

    Attributes:
        candidate: the cheapest schedule that was found, None without one.
        bound: what no plan in this order of the backward costs less than, in seconds; 0 where
            nothing is known, infinite where none fits.
        cut_short: whether time ran out.
        failed: what went wrong with the solver, or "".
    """

    candidate: Candidate | None
    bound: float
    cut_short: bool = False
    failed: str = ""


def solve(program: StageProgram, budget: int, nodes: int, seconds: float = math.inf) -> Answered:
    """Return the cheapest schedule found for a budget, and what none costs less than.

    Args:
        program: the program.
        budget: bytes.
        nodes: how many nodes of each search tree may be looked at.
        seconds: time for all of it.
    """
    end = time.monotonic() + seconds
    moments = _Moments(program, budget)
    bound = 0.0
    for _ in range(_ROUNDS):
        rows, columns = moments.rows()
        if rows is None:
            return Answered(None, math.inf if moments.exact else bound)
        cost, high = np.zeros(columns), np.ones(columns)
        cost[: program.columns], high[: program.columns] = program.cost, program.high
        scale = max(float(cost.sum()), 1e-30) / 1e3
        runs = np.arange(columns) < len(program.candidates)
        linear = LinearProgram(cost / scale, rows.matrix(columns), 0.0, high, runs)
        answer = linear.whole(rows.least, np.inf, nodes, end - time.monotonic())
        if moments.exact:
            bound = max(bound, answer.bound * scale - program.free)
        late = time.monotonic() > end
        if answer.x is None:
            return Answered(None, bound, late, answer.failed)
        chosen = np.flatnonzero(answer.x[: len(program.candidates)] > 1 / 2).tolist()
        schedule = program.stages.running(program.candidates[k] for k in chosen)
        lives = measure(program.problem, schedule)
        if lives.peak <= budget:
            found = Candidate(lives.peak, schedule.seconds(program.problem), schedule)
            return Answered(found, bound, late)
        if late:
            return Answered(None, bound, late)
        moments.add(schedule, lives, answer.x)
    return Answered(None, bound)


class _Moments:
    """The moments that have a row.

    Args:
        program: the program.
        budget: bytes.

    Attributes:
        exact: whether the rows are of the problem, none of them tightened.
    """

    def __init__(self, program: StageProgram, budget: int) -> None:
        self._program = program
        self._budget = budget
        self._passing: set[Entry] = set()
        self._forward: dict[int, tuple[Bytes, int]] = {}
        # By candidate, or (-1, stage) for an own op: the columns of its row, and their room.
        self._rows: dict[Entry, tuple[Bytes, int]] = {}
        self._tightened: dict[Entry, int] = {}
        stages = program.stages
        worst = self._worst(stages.schedule, stages.lives)
        self._passing.update(entry for entry in worst if entry[0] >= 0)
        self._own = set(range(len(stages.wanted))).difference(t for _, t in self._passing)
        self.exact = program.whole

    def add(self, schedule: Schedule, lives: Liveness, x: Floats) -> None:
        """Add rows for the moments at which an answer is over the budget, or tighten them.

        Args:
            schedule: the answer.
            lives: its liveness.
            x: its columns.
        """
        for entry, over in self._worst(schedule, lives).items():
            op, stage = entry
            if op >= 0 and entry not in self._passing:
                self._passing.add(entry)
            elif op < 0 and stage not in self._own:
                self._own.add(stage)
            else:
                self.exact = False
                held = sum(size for column, size in self._rows[entry][0] if x[column] > 1 / 2)
                self._tightened[entry] = held - over
        self._add_forward(schedule, lives.live[: lives.split])

    def _add_forward(self, schedule: Schedule, live: Ints) -> None:
        """Add a row for the worst moment of a forward, or tighten it."""
        over = int(live.max(initial=0)) - self._budget
        if over <= 0:
            return
        program, place = self._program, int(live.argmax())
        op = schedule.forward[place]
        self.exact = self.exact and op not in self._forward
        may = program.in_forward(schedule, place)
        saved = {program.held.get(v) for v in schedule.saved(program.problem)}
        held = sum(size for column, size in may if column in saved)
        self._forward[op] = may, held - over

    def _worst(self, schedule: Schedule, lives: Liveness) -> dict[Entry, int]:
        """Return by how much the worst moment of each stage is over the budget, where it is."""
        problem = self._program.problem
        over = (lives.live[lives.split :] - self._budget).tolist()
        stages = problem.tables.stages(np.array(schedule.backward, dtype=np.int64)).tolist()
        worst: dict[int, tuple[int, Entry]] = {}
        for i, stage, size in zip(schedule.backward, stages, over, strict=True):
            if size > worst.get(stage, (0,))[0]:
                worst[stage] = (size, (-1 if problem.is_backward[i] else i, stage))
        return {entry: over for over, entry in worst.values()}

    def rows(self) -> tuple[Rows | None, int]:
        """Return the rows, None where something does not fit at all, and how many columns."""
        program, rows = self._program, Rows()
        program.dataflow(rows)
        columns = program.columns
        self._rows = {}
        for t, (may, fixed) in enumerate(program.at_own):
            if fixed > self._budget:
                return None, columns
            if t in self._own:
                self._rows[-1, t] = may, self._budget - fixed
        for o, t in sorted(self._passing):
            may, fixed, pairs = program.in_passing(o, t, columns)
            for new, other in pairs:
                rows.add([(new, 1.0), (other, -1.0)], 0.0)
            columns = max([columns, *(new + 1 for new, _ in pairs)])
            self._rows[o, t] = may, self._budget - fixed
        for entry, (may, room) in self._rows.items():
            rows.fits(may, min(room, self._tightened.get(entry, room)))
        for may, room in self._forward.values():
            rows.fits(may, room)
        return rows, columns


__all__ = ["Answered", "solve"]
