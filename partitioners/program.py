"""What else to save between given boundaries: a linear program with one memory row per moment.

Given boundaries, the lazy schedule that saves nothing else says when each value is recomputed and
when it is last read. With r_o = 1 where op o is recomputed and s_v = 1 where value v is saved:

    minimise   sum_o c_o r_o + sum_v p_v s_v
    subject to s_v + r_o >= 1            for v read by the backward's own ops     (_availability)
               s_u + r_p >= r_o          for every input u (made by p) of o       (_availability)
               fixed_t + sum_v m_v (s_v [v not yet last read at t]
                     + r_o [o recomputed, v not yet last read at t]) <= budget    (_memory)

for a choice of moments t of the backward, with the prices p_v of saving (``Problem.save_seconds``).
This is a minimum cut plus knapsack rows.

What cannot matter is left out (:class:`_Columns`): a value u that one recomputed op o alone reads
is never saved where what o makes is no larger and, saved, would be freed no later. Saving that
instead takes no more memory and spares o as well. Where nothing else of the op p that makes u is
read, r_p = r_o, and p and o share a column.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, hstack, vstack

from recut.partitioners.evaluator import Liveness, measure
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule, lazy_schedule
from recut.partitioners.tables import Flags, Floats, Ints

_MOMENTS = 64


@dataclass(frozen=True)
class Solution:
    """A solution of a program: for each value that may be saved a share between 0 and 1.

    Attributes:
        target: what the program minimised: seconds (``Schedule.seconds``), or the peak in bytes.
        remade: how far the op that makes the value is recomputed.
        kept: how far the backward has the value, saved or recomputed.
    """

    target: float
    remade: Floats
    kept: Floats


class Program:
    """The linear program for one set of boundaries; solved for several budgets.

    Attributes:
        problem: the problem.
        boundaries: values that are saved in any case.
    """

    def __init__(self, problem: Problem, boundaries: Collection[int]) -> None:
        self.problem = problem
        self.boundaries = frozenset(boundaries)

    @cached_property
    def schedule(self) -> Schedule:
        """The lazy schedule that saves nothing but the boundaries."""
        return lazy_schedule(self.problem, self.boundaries)

    @cached_property
    def _lives(self) -> Liveness:
        return measure(self.problem, self.schedule)

    @property
    def peak(self) -> int:
        """Its peak, bytes."""
        return self._lives.peak

    @cached_property
    def _fixed_seconds(self) -> float:
        """What every solution costs: to save the boundaries."""
        return float(self.problem.tables.save[list(self.schedule.saved(self.problem))].sum())

    @cached_property
    def columns(self) -> _Columns:
        """The program's columns."""
        backward = np.array(self.schedule.backward, dtype=np.int64)
        ops = np.sort(backward[~self.problem.tables.backward[backward]])
        return _Columns(self.problem, ops, self._lives)

    @cached_property
    def _rows(self) -> tuple[csr_array, Floats, Floats]:
        """The rows, and what they may be at most: availability, then memory less the budget."""
        matrix, most = _availability(self.columns)
        memory, fixed = _memory(self.columns, self._lives)
        scale = max(self.peak, 1)
        return vstack([matrix, memory / scale], format="csr"), most, fixed / scale

    @cached_property
    def _cost(self) -> Floats:
        """What each column adds, of a total of 1000; an op that only the backward needs is free."""
        cost = self.columns.seconds
        return cost * (1e3 / max(float(cost.sum()), 1e-30)) + 1e-9

    def solve(self, budget: float) -> Solution | None:
        """Return the cheapest solution for ``budget`` bytes, or None where nothing fits."""
        if not self.columns.groups:
            return None
        matrix, most, fixed = self._rows
        room = budget / max(self.peak, 1) - fixed
        if room.min(initial=0.0) < 0:
            return None
        x = _minimise(self._cost, matrix, np.concatenate([most, room]))
        if x is None:
            return None
        return self._solution(x, float(self.columns.seconds @ x) + self._fixed_seconds)

    @cached_property
    def lowest(self) -> Solution | None:
        """The solution with the lowest peak; of several, about the cheapest."""
        if not self.columns.groups:
            return None
        matrix, most, fixed = self._rows
        above = csr_array(np.repeat([[0.0], [-1.0]], [len(most), len(fixed)], axis=0))
        x = _minimise(
            np.append(self._cost * 1e-5, 1e4),
            hstack([matrix, above], format="csr"),
            np.concatenate([most, -fixed]),
        )
        return None if x is None else self._solution(x[:-1], float(x[-1]) * self.peak)

    def _solution(self, x: Floats, target: float) -> Solution:
        columns = self.columns
        remade = x[columns.of_op[columns.problem.tables.producer[columns.values]]]
        share = np.zeros(len(columns.values))
        share[columns.is_column] = x[columns.groups :]
        return Solution(target, remade, remade + share)


def _minimise(cost: Floats, matrix: csr_array, most: Floats) -> Floats | None:
    """Return the x in [0, 1] with matrix @ x <= most that costs least, or None."""
    result = milp(
        cost,
        constraints=LinearConstraint(matrix, -np.inf, most),
        bounds=Bounds(0.0, 1.0),
        # Presolve finds nothing in these programs, and takes as long as the simplex method.
        options={"presolve": False},
    )
    return result.x if result.status == 0 else None


class _Columns:
    """Which column stands for what: first groups of recomputed ops, then saved values.

    Attributes:
        ops: recomputed ops, sorted.
        groups: number of columns that stand for groups of them.
        of_op: for each op of the problem its group's column, -1 where it is not recomputed.
        values: what the recomputed ops make and may be saved, sorted.
        is_column: which of ``values`` have a column.
        edges: (value, op) where a recomputed op reads what a recomputed op makes.
        needed: which values of the problem the backward's own ops read.
        seconds: what each column adds.
    """

    def __init__(self, problem: Problem, ops: Ints, lives: Liveness) -> None:
        self.problem = problem
        self.ops = ops
        tables = problem.tables
        count = len(problem.values)
        made, _ = tables.outputs.take(ops)
        read, at = tables.inputs.take(ops)
        is_made = np.zeros(count, dtype=np.bool_)
        is_made[made] = True
        inside = is_made[read]
        self.edges = read[inside], ops[at[inside]]
        self.needed = np.zeros(count, dtype=np.bool_)
        self.needed[list(problem.backward_reads)] = True
        readers = np.bincount(self.edges[0], minlength=count)
        used = is_made & (self.needed | (readers > 0))
        never = tables.never_saved.copy()
        never[self.edges[0]] |= self._dominated(used, readers, lives)
        self.of_op, self.groups = self._grouped(used, readers, never)
        self.values = made[~tables.never_saved[made]]
        self.is_column = (used & ~never)[self.values]
        seconds = np.where(tables.forward[ops], tables.seconds[ops], 0.0)
        self.seconds = np.zeros(self.groups + int(self.is_column.sum()))
        np.add.at(self.seconds, self.of_op[ops], seconds)
        self.seconds[self.groups :] = tables.save[self.values[self.is_column]]

    def _dominated(self, used: Flags, readers: Ints, lives: Liveness) -> Flags:
        """Return for each edge whether saving what its op makes is as good as saving its value."""
        tables = self.problem.tables
        makes = np.zeros(len(self.problem.ops), dtype=np.int64)
        values = np.flatnonzero(used)
        np.add.at(makes, tables.producer[values], tables.bytes[values])
        fixed = np.zeros(len(self.problem.ops), dtype=np.bool_)
        fixed[tables.producer[values[tables.never_saved[values]]]] = True
        # What runs inside its readers takes memory where it is saved, up to its own last reader.
        again = lives.start >= lives.split
        last = np.zeros(len(tables.bytes), dtype=np.int64)
        last[lives.value[again]] = lives.end[again]
        inside = lives.value[again & (lives.bytes == 0)]
        until = np.zeros(len(self.problem.ops), dtype=np.int64)
        np.maximum.at(until, tables.producer[inside], last[inside])
        value, op = self.edges
        alone = ~self.needed[value] & (readers[value] == 1)
        dominated: Flags = alone & ~fixed[op] & (makes[op] <= tables.bytes[value])
        dominated &= until[op] <= last[value]
        return dominated

    def _grouped(self, used: Flags, readers: Ints, never: Flags) -> tuple[Ints, int]:
        """Return each op's group: an op that only one op's recomputation asks for joins it."""
        tables = self.problem.tables
        count = np.bincount(tables.producer[used], minlength=len(self.problem.ops))
        value, op = self.edges
        producer = tables.producer[value]
        joins = used[value] & never[value] & ~self.needed[value]
        joins &= (readers[value] == 1) & (count[producer] == 1)
        leader = np.arange(len(self.problem.ops))
        leader[producer[joins]] = op[joins]
        while not np.array_equal(leader, further := leader[leader]):
            leader = further
        groups, column = np.unique(leader[self.ops], return_inverse=True)
        of_op = np.full(len(self.problem.ops), -1)
        of_op[self.ops] = column
        return of_op, len(groups)

    @cached_property
    def of_value(self) -> Ints:
        """For each value of the problem its column, -1 where it has none."""
        out = np.full(len(self.problem.values), -1)
        out[self.values[self.is_column]] = self.groups + np.arange(int(self.is_column.sum()))
        return out


def _availability(columns: _Columns) -> tuple[csr_array, Floats]:
    """Return the rows that let the backward have what it reads, and what they are at most."""
    producer = columns.problem.tables.producer
    value, op = columns.edges
    asked = np.flatnonzero(columns.needed & (columns.of_op[producer] >= 0))
    reader = columns.of_op[op]
    keep = columns.of_op[producer[value]] != reader
    pairs = np.unique(np.stack([value[keep], reader[keep]]), axis=1)
    value = np.concatenate([asked, pairs[0]])
    row = np.arange(len(value))
    saved = columns.of_value[value] >= 0
    entries = (
        (row, columns.of_op[producer[value]], -1.0),
        (row[saved], columns.of_value[value[saved]], -1.0),
        (row[len(asked) :], pairs[1], 1.0),
    )
    rows, cols, data = (
        np.concatenate(parts)
        for parts in zip(*((r, c, np.full(len(r), x)) for r, c, x in entries), strict=True)
    )
    most = np.zeros(len(value))
    most[: len(asked)] = -1.0
    return coo_array((data, (rows, cols)), shape=(len(value), len(columns.seconds))).tocsr(), most


def _memory(columns: _Columns, lives: Liveness) -> tuple[csr_array, Floats]:
    """Return the bytes of each column at some moments, and the bytes that are fixed there."""
    tables = columns.problem.tables
    again = (lives.start >= lives.split) & (columns.of_op[tables.producer[lives.value]] >= 0)
    value, start, end, size = (x[again] for x in (lives.value, lives.start, lives.end, lives.bytes))
    moments = _worst(lives)
    group = columns.of_op[tables.producer[value]]
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(columns.groups))
    alive = (start[:, None] <= moments) & (moments <= end[:, None])
    remade = np.add.reduceat((size[:, None] * alive)[order], first, axis=0)
    last = np.full(len(columns.problem.values), -1)
    last[value] = end
    kept = columns.values[columns.is_column]
    saved = tables.bytes[kept][:, None] * (moments <= last[kept][:, None])
    fixed = lives.live[moments] - (size[:, None] * alive).sum(axis=0)
    return csr_array(np.concatenate([remade, saved]).T.astype(np.float64)), fixed.astype(np.float64)


def _worst(lives: Liveness) -> Ints:
    """Return the worst moment of each of about ``_MOMENTS`` stretches of the backward."""
    edges = np.unique(np.linspace(lives.split, len(lives.live), _MOMENTS + 1).astype(int))
    return np.array([a + np.argmax(lives.live[a:b]) for a, b in pairwise(edges)], dtype=np.int64)
