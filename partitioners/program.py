"""What to keep instead of recomputing it: a linear program with one memory row per moment.

A *base* schedule recomputes as much as it may, some of it several times (``segments.py``). It says
when each value is made again and when it is last read. Let r_e = 1 where the recomputation e of the
base takes place, and s_i = 1 where instance i of a value, which e makes in the base, is not made:
the instance before it is *carried* on to i's readers. Carried from the forward, it is saved.

    minimise   sum_e c_e r_e + sum_i p_i s_i
    subject to s_i + r_e >= 1            for i, made by e, that the backward's own ops read
               s_i + r_e >= r_f          for i, made by e, that the recomputation f reads
               s_h + r_d >= s_i          for i carried on from h, made by the recomputation d
               fixed_t + sum_i m_i (s_i [t behind the end of h, before the last read of i]
                     + r_e [e before t, t before the last read of i]) <= budget

for a choice of moments t of the backward, with the prices p_i of saving (``Problem.save_seconds``)
where h was made in the forward. This is a minimum cut plus knapsack rows.

What cannot matter is left out (:class:`_Columns`): an instance i that one recomputation f alone
reads is never saved where what f makes is no larger, no dearer to save than i is beside f, and,
saved, would be freed no later. Saving that instead takes no more memory and spares f as well.
Where nothing else of the recomputation e that makes i is read, r_e = r_f, and e and f share a
column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array, csr_array, hstack, vstack

from recut.partitioners.again import Again
from recut.partitioners.evaluator import Liveness, measure
from recut.partitioners.frontier import Candidate
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule
from recut.partitioners.solver import Answer, LinearProgram
from recut.partitioners.tables import Flags, Floats, Ints

_MOMENTS = 64


@dataclass(frozen=True)
class Solution:
    """A solution of a program: for each instance that may be carried a share between 0 and 1.

    Attributes:
        target: what the program minimised: seconds (``Schedule.seconds``), or the peak in bytes.
        remade: how far it is recomputed.
        kept: how far the backward has it, carried or recomputed.
    """

    target: float
    remade: Floats
    kept: Floats


class Program:
    """The linear program for one base schedule; solved for several budgets.

    Attributes:
        problem: the problem.
        schedule: the base; what it saves is saved in any case.
        failed: what went wrong with the solver, or "".
        measured: schedules of the program that have been measured, by what they carry.
    """

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.problem = problem
        self.schedule = schedule
        self.failed = ""
        self.measured: dict[bytes, Candidate] = {}

    @cached_property
    def lives(self) -> Liveness:
        """The base's liveness."""
        return measure(self.problem, self.schedule)

    @property
    def peak(self) -> int:
        """The base's peak, bytes."""
        return self.lives.peak

    @cached_property
    def _fixed_seconds(self) -> float:
        """What every solution costs: to save what the base saves."""
        return float(self.problem.tables.save[list(self.schedule.saved(self.problem))].sum())

    @cached_property
    def _again(self) -> Again:
        return Again(self.problem, self.lives)

    @cached_property
    def columns(self) -> _Columns:
        """The program's columns."""
        return _Columns(self.problem, self.lives, self._again)

    def carrying(self, carried: Flags) -> Schedule:
        """Return the base with some of ``columns.instances`` carried instead of made.

        What nobody reads then is gone, and the rest runs right before the first of the backward's
        own ops that needs it.
        """
        return self._again.carrying(self.columns.instances[carried])

    @cached_property
    def _rows(self) -> tuple[csr_array, Floats, Floats]:
        """The rows, and what they may be at most: availability, then memory less the budget."""
        matrix, most = _availability(self.columns)
        memory, fixed = _memory(self.columns, self.lives)
        scale = max(self.peak, 1)
        return vstack([matrix, memory / scale], format="csr"), most, fixed / scale

    @cached_property
    def _cost(self) -> Floats:
        """What each column adds, of a total of 1000; an op that only the backward needs is free."""
        cost = self.columns.seconds
        return cost * (1e3 / max(float(cost.sum()), 1e-30)) + 1e-9

    @cached_property
    def _linear(self) -> LinearProgram:
        return LinearProgram(self._cost, self._rows[0])

    def solve(self, budget: float, go_on: bool = False) -> Solution | None:
        """Return the cheapest solution for ``budget`` bytes, or None where nothing fits.

        Args:
            budget: bytes.
            go_on: start from the last solution that was found without, which is near this one.
        """
        if not self.columns.groups:
            return None
        _, most, fixed = self._rows
        room = budget / max(self.peak, 1) - fixed
        if room.min(initial=0.0) < 0:
            return None
        x = self._answered(self._linear.solve(-np.inf, np.concatenate([most, room]), go_on))
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
        linear = LinearProgram(
            np.append(self._cost * 1e-5, 1e4), hstack([matrix, above], format="csr")
        )
        x = self._answered(linear.solve(-np.inf, np.concatenate([most, -fixed])))
        return None if x is None else self._solution(x[:-1], float(x[-1]) * self.peak)

    def _answered(self, answer: Answer) -> Floats | None:
        """Return a solution, and note what went wrong with the solver."""
        self.failed = self.failed or answer.failed
        return answer.x

    def _solution(self, x: Floats, target: float) -> Solution:
        columns = self.columns
        remade = x[columns.group[columns.instances]]
        share = np.zeros(len(columns.instances))
        share[columns.is_column] = x[columns.groups :]
        return Solution(target, remade, remade + share)


class _Columns:
    """Which column stands for what: first groups of recomputations, then carried instances.

    Attributes:
        again: the instances that recomputations make.
        groups: number of columns that stand for groups of recomputations.
        group: for each instance the column of the recomputation that makes it, -1 without one.
        of_entry: the same for each moment.
        instances: those that may be carried instead of made, by their values.
        is_column: which of them have a column.
        used: which instances are read at all.
        seconds: what each column adds.
    """

    def __init__(self, problem: Problem, lives: Liveness, again: Again) -> None:
        self.again = again
        self.tables = tables = problem.tables
        self.value = value = lives.value
        self.used = again.needed | again.passed_on | (again.readers > 0)
        from_forward = again.before < 0
        never = again.made & from_forward & tables.never_saved[value]
        may = again.made & ~never
        never[again.edges[0]] |= self._dominated(lives)
        self._join(never)
        of = np.flatnonzero(may)
        self.instances = of[np.argsort(value[of], kind="stable")]
        self.is_column = (self.used & ~never)[self.instances]
        entries = np.flatnonzero(self.of_entry >= 0)
        self.seconds = np.zeros(self.groups + int(self.is_column.sum()))
        np.add.at(self.seconds, self.of_entry[entries], again.seconds[entries])
        columns = self.instances[self.is_column]
        self.seconds[self.groups :] = np.where(from_forward, tables.save[value], 0.0)[columns]

    def _dominated(self, lives: Liveness) -> Flags:
        """Return for each edge whether saving what its reader makes is as good as its instance."""
        again, tables, value, used = self.again, self.tables, self.value, self.used
        entries = len(again.order)
        makes = np.zeros(entries, dtype=np.int64)
        np.add.at(makes, again.entry[used], tables.bytes[value[used]])
        # A recomputation whose results may not be saved, or have been made again before.
        fixed = np.zeros(entries, dtype=np.bool_)
        fixed[again.entry[used & (tables.never_saved[value] | (again.before >= 0))]] = True
        # What runs inside its readers takes memory where it is saved, up to its own last reader.
        inside = np.flatnonzero(again.made & (lives.bytes == 0))
        until = np.zeros(entries, dtype=np.int64)
        np.maximum.at(until, again.entry[inside], lives.end[inside])
        instance, reader = again.edges
        alone = (
            ~again.needed[instance] & (again.readers[instance] == 1) & (again.before[instance] < 0)
        )
        alone &= ~again.passed_on[instance]
        dominated: Flags = alone & ~fixed[reader] & (makes[reader] <= tables.bytes[value[instance]])
        dominated &= until[reader] <= lives.end[instance]
        # A dropout's mask is smaller than the numbers that it is drawn from, and dearer to store.
        price = np.zeros(entries)
        np.add.at(price, again.entry[used], tables.save[value[used]])
        seconds = tables.again[again.order[reader]]
        dominated &= price[reader] <= tables.save[value[instance]] + seconds
        return dominated

    def _join(self, never: Flags) -> None:
        """Number the groups: what only one recomputation asks for joins it."""
        again = self.again
        entries = len(again.order)
        count = np.bincount(again.entry[self.used], minlength=entries)
        instance, reader = again.edges
        entry = again.entry[instance]
        joins = never[instance] & ~again.needed[instance] & ~again.passed_on[instance]
        joins &= (again.readers[instance] == 1) & (count[entry] == 1)
        leader = np.arange(entries)
        leader[entry[joins]] = reader[joins]
        while not np.array_equal(leader, further := leader[leader]):
            leader = further
        moments = np.unique(again.entry[again.made])
        groups, column = np.unique(leader[moments], return_inverse=True)
        self.of_entry = np.full(entries, -1)
        self.of_entry[moments] = column
        self.groups = len(groups)
        self.group = np.full(len(never), -1)
        self.group[again.made] = self.of_entry[again.entry[again.made]]

    @cached_property
    def of_instance(self) -> Ints:
        """For each instance its column, -1 where it has none."""
        out = np.full(len(self.value), -1)
        out[self.instances[self.is_column]] = self.groups + np.arange(int(self.is_column.sum()))
        return out


def _availability(columns: _Columns) -> tuple[csr_array, Floats]:
    """Return the rows that let the backward have what it reads, and what they are at most."""
    again = columns.again
    asked = np.flatnonzero(again.needed)
    instance, reader = again.edges
    reader = columns.of_entry[reader]
    keep = columns.group[instance] != reader
    # Who is carried on from a recomputation asks for it as a reader does.
    after = columns.instances[columns.is_column]
    after = after[again.before[after] >= 0]
    pairs = np.concatenate(
        [
            np.stack([instance[keep], reader[keep]]),
            np.stack([again.before[after], columns.of_instance[after]]),
        ],
        axis=1,
    )
    pairs = np.unique(pairs, axis=1)
    instance = np.concatenate([asked, pairs[0]])
    row = np.arange(len(instance))
    saved = columns.of_instance[instance] >= 0
    entries = (
        (row, columns.group[instance], -1.0),
        (row[saved], columns.of_instance[instance[saved]], -1.0),
        (row[len(asked) :], pairs[1], 1.0),
    )
    rows, cols, data = (
        np.concatenate(parts)
        for parts in zip(*((r, c, np.full(len(r), x)) for r, c, x in entries), strict=True)
    )
    most = np.zeros(len(instance))
    most[: len(asked)] = -1.0
    shape = (len(instance), len(columns.seconds))
    return coo_array((data, (rows, cols)), shape=shape).tocsr(), most


def _memory(columns: _Columns, lives: Liveness) -> tuple[csr_array, Floats]:
    """Return the bytes of each column at some moments, and the bytes that are fixed there."""
    again, tables = columns.again, columns.tables
    made = np.flatnonzero(again.made)
    moments = _worst(lives)
    group = columns.group[made]
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(columns.groups))
    alive = (lives.start[made][:, None] <= moments) & (moments <= lives.end[made][:, None])
    bytes_made = lives.bytes[made][:, None] * alive
    remade = np.add.reduceat(bytes_made[order], first, axis=0)
    kept = columns.instances[columns.is_column]
    before = again.before[kept]
    # An instance that ran inside its readers takes memory from its making on where it is carried.
    since = np.where(lives.bytes[before] > 0, lives.end[before] + 1, lives.start[before])
    since = np.where(before >= 0, since, 0)
    alive = (since[:, None] <= moments) & (moments <= lives.end[kept][:, None])
    carried = tables.bytes[lives.value[kept]][:, None] * alive
    fixed = lives.live[moments] - bytes_made.sum(axis=0)
    return csr_array(np.concatenate([remade, carried]).T.astype(np.float64)), fixed.astype(
        np.float64
    )


def _worst(lives: Liveness) -> Ints:
    """Return the worst moment of each of about ``_MOMENTS`` stretches of the backward."""
    edges = np.unique(np.linspace(lives.split, len(lives.live), _MOMENTS + 1).astype(int))
    return np.array([a + np.argmax(lives.live[a:b]) for a, b in pairwise(edges)], dtype=np.int64)
