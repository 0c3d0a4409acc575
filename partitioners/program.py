"""What else to save between given boundaries: a linear program with one memory row per moment.

Given boundaries, the lazy schedule that saves nothing else says when each value is recomputed and
when it is last read. With r_o = 1 where op o is recomputed and s_v = 1 where value v is saved:

    minimise   sum_o c_o r_o
    subject to s_v + r_o >= 1            for v read by the backward's own ops     (_availability)
               s_u + r_p >= r_o          for every input u (made by p) of o       (_availability)
               fixed_t + sum_v m_v (s_v [v not yet last read at t]
                     + r_o [o recomputed, v not yet last read at t]) <= budget    (_memory)

for a choice of moments t of the backward. This is a minimum cut plus knapsack rows. Its solution is
rounded at every level: for a threshold t, {r > t} is recomputed and of the rest what {s + r > t}
needs is saved; averaged over t the rounded memory and cost equal the program's, and the evaluator
decides which level fits. Moments at which the rounded schedule is over the budget become rows of
their own in the next round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack

from recut.partitioners.evaluator import evaluate
from recut.partitioners.problem import Phase, Problem, Rule
from recut.partitioners.schedule import Schedule, lazy_schedule

_MOMENTS = 64


@dataclass(frozen=True)
class _Base:
    """The lazy schedule of given boundaries, seen from the backward's own ops.

    Attributes:
        schedule: the schedule.
        made: for each recomputed op, the moment of its recomputation.
        last: for each value that it makes, the moment of its last read.
        again: for each value that it makes, the bytes that it takes (0 inside its readers).
        fixed: bytes live at each moment that are not recomputed values.
        rows: moments that get a memory row at first.
        read: values that the backward's own ops read.
    """

    schedule: Schedule
    made: dict[int, int]
    last: dict[int, int]
    again: dict[int, int]
    fixed: np.ndarray
    rows: list[int]
    read: frozenset[int]


def _base(problem: Problem, boundaries: Collection[int]) -> _Base:
    schedule = lazy_schedule(problem, boundaries)
    line = evaluate(problem, schedule)
    live = np.asarray(line.live, dtype=float)
    made = {
        i: line.split + k for k, i in enumerate(schedule.backward) if not problem.is_backward[i]
    }
    last: dict[int, int] = {}
    again: dict[int, int] = {}
    fixed = live.copy()
    for inst in line.instances:
        if inst.start >= line.split and problem.values[inst.value].producer in made:
            last[inst.value] = inst.end
            again[inst.value] = inst.bytes
            fixed[inst.start : inst.end + 1] -= inst.bytes
    read = {v for i in problem.backward_order for v in problem.ops[i].inputs}
    read.update(problem.backward_outputs)
    return _Base(schedule, made, last, again, fixed, _peaks(live, line.split), frozenset(read))


def _peaks(live: np.ndarray, split: int) -> list[int]:
    """Return the worst moment of each of about ``_MOMENTS`` stretches of the backward."""
    edges = np.unique(np.linspace(split, len(live), _MOMENTS + 1).astype(int))
    return [int(a + np.argmax(live[a:b])) for a, b in pairwise(edges) if b > a]


class Program:
    """The linear program for one set of boundaries; solved for several budgets."""

    def __init__(self, problem: Problem, boundaries: Collection[int]) -> None:
        self.problem = problem
        self.boundaries = frozenset(boundaries)
        self.base = _base(problem, boundaries)
        self.ops = sorted(self.base.made)
        self.column = {o: k for k, o in enumerate(self.ops)}
        values = [v for o in self.ops for v in problem.ops[o].outputs]
        self.values = [
            v
            for v in values
            if problem.ops[problem.values[v].producer].rule is not Rule.MUST_RECOMPUTE
        ]
        self.value_column = {v: len(self.ops) + k for k, v in enumerate(self.values)}
        self._availability()

    def _availability(self) -> None:
        rows: list[int] = []
        cols: list[int] = []
        data: list[float] = []
        right: list[float] = []

        def row(value: int, reader: int | None) -> None:
            k = len(right)
            producer = self.column[self.problem.values[value].producer]
            entries = [(producer, -1.0)]
            if value in self.value_column:
                entries.append((self.value_column[value], -1.0))
            if reader is not None:
                entries.append((reader, 1.0))
            for c, x in entries:
                rows.append(k)
                cols.append(c)
                data.append(x)
            right.append(-1.0 if reader is None else 0.0)

        for o in self.ops:
            for v in self.problem.ops[o].outputs:
                if v in self.base.read:
                    row(v, None)
            for u in self.problem.ops[o].inputs:
                if self.problem.values[u].producer in self.column:
                    row(u, self.column[o])
        self.right = right
        size = (len(right), len(self.ops) + len(self.values))
        self.matrix = csr_array((data, (rows, cols)), shape=size)

    def _memory(self, moments: list[int]) -> tuple[csr_array, np.ndarray]:
        """Return the memory rows of some moments and the bytes that are fixed there."""
        size = np.array([self.problem.values[v].bytes for v in self.values], dtype=float)
        bytes_again = np.array([self.base.again[v] for v in self.values], dtype=float)
        last = np.array([self.base.last[v] for v in self.values])
        producer = [self.problem.values[v].producer for v in self.values]
        made = np.array([self.base.made[p] for p in producer])
        column = np.array([self.column[p] for p in producer])
        rows, cols, data = [], [], []
        for k, t in enumerate(moments):
            saved = np.flatnonzero((last >= t) & (size > 0))
            again = saved[(made[saved] <= t) & (bytes_again[saved] > 0)]
            rows += [k] * (len(saved) + len(again))
            cols += [len(self.ops) + saved, column[again]]
            data += [size[saved], bytes_again[again]]
        shape = (len(moments), self.matrix.shape[1])
        flat = (np.concatenate(data), (np.asarray(rows), np.concatenate(cols)))
        return csr_array(flat, shape=shape), self.base.fixed[moments]

    @cached_property
    def cost(self) -> np.ndarray:
        """Milliseconds that each column adds; an op that only the backward needs adds nothing."""
        cost = np.full(self.matrix.shape[1], 1e-9)
        for o, c in self.column.items():
            if self.problem.ops[o].phase is Phase.FORWARD:
                cost[c] = max(self.problem.ops[o].seconds * 1e3, 1e-6)
        return cost

    @cached_property
    def memory(self) -> tuple[csr_array, np.ndarray]:
        """The memory rows and what is fixed in them, in MiB to keep the solver's scale."""
        rows, fixed = self._memory(self.base.rows)
        return rows / 2.0**20, fixed / 2.0**20

    def solve(self, budget: float) -> tuple[np.ndarray, float] | None:
        """Return (r, s) of the program and its added seconds, or None where nothing fits."""
        rows, fixed = self.memory
        result = linprog(
            self.cost,
            A_ub=vstack([self.matrix, rows], format="csr"),
            b_ub=np.concatenate([self.right, budget / 2.0**20 - fixed]),
            bounds=(0.0, 1.0),
            method="highs",
        )
        return (result.x, result.fun * 1e-3) if result.status == 0 else None

    def lowest(self) -> np.ndarray | None:
        """Return the (r, s) that has the lowest peak, whatever it costs."""
        rows, fixed = self.memory
        n = self.matrix.shape[1]
        above = csr_array(
            np.vstack([np.zeros((self.matrix.shape[0], 1)), np.full((rows.shape[0], 1), -1.0)])
        )
        result = linprog(
            np.append(self.cost * (1e-4 / max(self.cost.sum(), 1e-9)), 1.0),
            A_ub=hstack([vstack([self.matrix, rows]), above], format="csr"),
            b_ub=np.concatenate([self.right, -fixed]),
            bounds=[(0.0, 1.0)] * n + [(0.0, None)],
            method="highs",
        )
        return result.x[:n] if result.status == 0 else None

    def levels(self, x: np.ndarray) -> Iterator[frozenset[int]]:
        """Yield the saved sets of the solution's rounding levels, cheapest memory last."""
        r = x[: len(self.ops)]
        have = {
            v: x[c] + r[self.column[self.problem.values[v].producer]]
            for v, c in self.value_column.items()
        }
        steps = np.unique(np.round(np.concatenate([r, np.fromiter(have.values(), float)]), 6))
        steps = steps[(steps >= 0) & (steps < 1)]
        if len(steps) > 12:
            steps = steps[np.linspace(0, len(steps) - 1, 12).astype(int)]
        for t in steps:
            level = float(t) + 1e-7
            yield self.boundaries | {
                v
                for v, h in have.items()
                if h > level and r[self.column[self.problem.values[v].producer]] <= level
            }


def fill(program: Program, budget: int, x: np.ndarray, rounds: int = 4) -> Schedule | None:
    """Return the cheapest schedule found that fits ``budget`` bytes; ``x`` solves it at first."""
    problem = program.problem
    best: tuple[float, Schedule] | None = None
    target = float(budget)
    for _ in range(rounds):
        over = []
        for saved in program.levels(x):
            schedule = lazy_schedule(problem, saved)
            peak = evaluate(problem, schedule).peak
            if peak > budget:
                over.append(peak - budget)
                continue
            cost = schedule.added_seconds(problem)
            if best is None or cost < best[0]:
                best = (cost, schedule)
        if best is not None or not over:
            break
        target -= min(over) * 1.02
        again = program.solve(target)
        if again is None:
            break
        x = again[0]
    return None if best is None else best[1]


def shrink(program: Program) -> tuple[int, Schedule]:
    """Return the lowest peak found for the program's boundaries, and its schedule."""
    problem = program.problem
    best = (evaluate(problem, program.base.schedule).peak, program.base.schedule)
    x = program.lowest()
    for saved in program.levels(x) if x is not None else ():
        schedule = lazy_schedule(problem, saved)
        best = min(best, (evaluate(problem, schedule).peak, schedule), key=lambda b: b[0])
    return best
