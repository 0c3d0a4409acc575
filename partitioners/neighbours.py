"""Small problems: better schedules among the neighbours of one that is known.

A program knows a few moments of one base schedule, and where the whole graph is a few dozen ops
each of them counts. So a plan for a small problem is improved step by step, and the evaluator says
of each step what it is worth.

Every schedule that recomputes on demand is described by one bit for each of the backward's own ops
and each value that the forward has to make for it: whether the value is recomputed in front of that
op, or carried on to it from before. Any choice of bits is a schedule (:meth:`Program.carrying`,
with the base that recomputes everything everywhere). A neighbour differs in one recomputation that
is dropped, in one value that is recomputed and was carried over the worst moment, or in both.

The work is counted in schedules that are measured, never timed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recut.partitioners.evaluator import Liveness, measure
from recut.partitioners.frontier import Candidate
from recut.partitioners.machine import Machine
from recut.partitioners.problem import Problem
from recut.partitioners.program import Program
from recut.partitioners.schedule import Schedule, recomputing_schedule
from recut.partitioners.tables import Flags, Ints
from recut.partitioners.timing import trace_seconds

# How many values that are carried over the worst moment are tried beside one dropped recomputation.
_BESIDE = 3
# How many neighbours are tried to lower a peak, of each kind.
_LOWER = 12
# How many schedules a search for a lower peak goes on from, and how often in vain.
_BEAM = 3
_PATIENCE = 2
# The share of a peak by which it is to be lowered at first, and the least that is asked for.
_STEP = 1 / 16
_LEAST = 1 / 256


@dataclass(frozen=True)
class _Tried:
    """A schedule that was measured, what it carries, and what it costs in seconds."""

    carried: Flags
    candidate: Candidate
    lives: Liveness
    cost: float

    def over(self, budget: int) -> int:
        """Return by how many bytes the moments are over a budget, summed up."""
        return int(np.maximum(self.lives.live - budget, 0).sum())


class Neighbours:
    """The schedules of a small problem that recompute on demand.

    Args:
        problem: the problem.
        machine: what starting a kernel costs.
    """

    def __init__(self, problem: Problem, machine: Machine) -> None:
        self.problem = problem
        self.machine = machine
        self._program = Program(problem, recomputing_schedule(problem))
        self._known: dict[bytes, _Tried] = {}
        # What the present search has measured or found known, and how much it may.
        self._tries = 0
        self._seen: set[bytes] = set()

    def improved(self, starts: Iterable[Schedule], budget: int, tries: int) -> Candidate | None:
        """Return the cheapest schedule found under a budget, None where there is none.

        Args:
            starts: the schedules to begin with; one over the budget is brought under it first.
            budget: bytes.
            tries: how many schedules may be measured from each.
        """
        best: _Tried | None = None
        for schedule in starts:
            one = self._under(self._begin(schedule, tries), budget)
            while one is not None:
                if best is None or one.cost < best.cost:
                    best = one
                one = next(self._cheaper(one, budget), None)
        return None if best is None else best.candidate

    def lowered(self, schedule: Schedule, tries: int) -> Candidate:
        """Return the schedule with the lowest peak found.

        Args:
            schedule: the schedule to begin with.
            tries: how many schedules may be measured.
        """
        best = self._begin(schedule, tries)
        step = _STEP
        while step >= _LEAST and not self._spent:
            lower = self._under(best, int(best.candidate.peak * (1 - step)))
            best, step = (lower, step) if lower is not None else (best, step / 2)
        return best.candidate

    def _cheaper(self, now: _Tried, budget: int) -> Iterator[_Tried]:
        """Yield neighbours that fit and cost less, as they are found."""
        for dropped in self._dropping(now):
            one = self._try(dropped)
            if one is None:
                return
            if one.cost >= now.cost:
                continue
            if one.candidate.peak <= budget:
                yield one
                continue
            for k in self._carried_over(one, budget)[:_BESIDE]:
                other = self._try(_with(one.carried, k, False))
                if other is None:
                    return
                if other.candidate.peak <= budget and other.cost < now.cost:
                    yield other

    def _under(self, now: _Tried, budget: int) -> _Tried | None:
        """Return a schedule under a budget that is near one over it, None where none was found.

        Where no neighbour is nearer to the budget, the nearest ones' neighbours are tried.
        """
        seen = {now.carried.tobytes()}
        beam, least, idle = [now], now.over(budget), 0
        while least and idle < _PATIENCE:
            found = [one for one in self._nearer(beam, budget) if one.carried.tobytes() not in seen]
            beam = sorted(found, key=lambda one: (one.over(budget), one.cost))[:_BEAM]
            if not beam:
                return None
            seen.update(one.carried.tobytes() for one in beam)
            now = beam[0]
            idle = 0 if now.over(budget) < least else idle + 1
            least = min(least, now.over(budget))
        return None if least else now

    def _nearer(self, beam: list[_Tried], budget: int) -> list[_Tried]:
        """Return the neighbours that change what is in memory at the worst moment."""
        found: dict[bytes, _Tried] = {}
        for one in beam:
            again = (_with(one.carried, k, False) for k in self._carried_over(one, budget)[:_LOWER])
            there = int(one.lives.live.argmax())
            for carried in (*again, *self._dropping(one, there)):
                if (tried := self._try(carried)) is not None:
                    found[carried.tobytes()] = tried
        return list(found.values())

    def _dropping(self, now: _Tried, moment: int | None = None) -> list[Flags]:
        """Return what is carried where one recomputation is dropped, the dearest first.

        Args:
            now: the schedule.
            moment: only what runs in front of the same op of the backward; anything where None.
        """
        trace = now.lives.trace
        stages = self._stages(trace.order, trace.split)
        again = [
            (k, i)
            for k, i in enumerate(trace.order[trace.split :].tolist())
            if not self.problem.is_backward[i]
        ]
        if moment is not None:
            stage = stages[max(moment - trace.split, 0)]
            again = [(k, i) for k, i in again if stages[k] == stage and moment >= trace.split]
            again = again[:_LOWER]
        price = self.problem.again_seconds
        again.sort(key=lambda entry: (-price[entry[1]], entry))
        out = []
        for k, i in again:
            bits = [
                bit
                for v in self.problem.ops[i].outputs
                if (bit := self._bits.get((v, int(stages[k])))) is not None
            ]
            if bits and not now.carried[bits].all():
                out.append(_with(now.carried, bits, True))
        return out

    def _carried_over(self, now: _Tried, budget: int) -> list[list[int]]:
        """Return the bits of what is carried over the worst moment, the best to recompute first.

        With a buffer behind what kernels evaluate anew, that is recomputed too.
        """
        lives, tables = now.lives, self.problem.tables
        trace, worst = lives.trace, int(lives.live.argmax())
        stages = self._stages(trace.order, trace.split)
        here = int(stages[worst - trace.split]) if worst >= trace.split else -1
        over = (lives.start < worst) & (worst < lives.end) & (lives.bytes > 0)
        over &= tables.of_forward[lives.value]
        # The first reading behind the moment; reads stand in the order of their moments.
        first = np.full(len(lives.value), -1)
        at, read = (
            (trace.at, trace.read) if lives.kernels is None else lives.kernels.inlined.reads(trace)
        )
        later = at > worst
        first[read[later][::-1]] = at[later][::-1]
        excess = max(int(lives.live[worst]) - budget, 1)
        found = []
        for instance in np.flatnonzero(over & (first >= trace.split)).tolist():
            stage = int(stages[first[instance] - trace.split])
            behind = (
                [instance] if lives.kernels is None else lives.kernels.inlined.made_of(instance)
            )
            bits = {
                self._bits[v, places[k]]
                for v in lives.value[behind].tolist()
                if (places := self._places.get(v)) is not None
                if (k := bisect_right(places, stage) - 1) >= 0 and places[k] > here
            }
            if bits:
                price = self.problem.again_seconds[int(tables.producer[lives.value[instance]])]
                gain = min(int(lives.bytes[instance]), excess)
                found.append((price / gain, sorted(bits)))
        return [bits for _, bits in sorted(found)]

    def _stages(self, order: Ints, split: int) -> Ints:
        """Return for each entry of a backward how many of its own ops run before it."""
        return self.problem.tables.stages(order[split:])

    @cached_property
    def _bits(self) -> dict[tuple[int, int], int]:
        """By value and the number of own ops before, the bit of that recomputation."""
        columns = self._program.columns
        again = columns.again
        stages = self._stages(again.order, again.split)[
            again.entry[columns.instances] - again.split
        ]
        values = columns.value[columns.instances]
        return {key: k for k, key in enumerate(zip(values.tolist(), stages.tolist(), strict=True))}

    @cached_property
    def _places(self) -> dict[int, list[int]]:
        """By value the numbers of own ops before its recomputations, in their order."""
        places: dict[int, list[int]] = {}
        for v, stage in sorted(self._bits):
            places.setdefault(v, []).append(stage)
        return places

    def _carried_by(self, schedule: Schedule) -> Flags:
        """Return what a schedule carries: all that it does not recompute."""
        order = np.array(schedule.backward, dtype=np.int64)
        carried = np.ones(len(self._bits), dtype=np.bool_)
        for i, stage in zip(schedule.backward, self._stages(order, 0).tolist(), strict=True):
            bits = (self._bits.get((v, stage)) for v in self.problem.ops[i].outputs)
            carried[[bit for bit in bits if bit is not None]] = False
        return carried

    def _try(self, carried: Flags) -> _Tried | None:
        """Return a schedule, measured; None where enough were.

        What an earlier search has measured counts too: no answer depends on what was asked before.
        """
        key = carried.tobytes()
        if key not in self._seen:
            if self._spent:
                return None
            self._seen.add(key)
        return self._measured(carried)

    def _begin(self, schedule: Schedule, tries: int) -> _Tried:
        """Return the schedule that a search begins with, measured."""
        self._tries, self._seen = tries, set()
        return self._measured(self._carried_by(schedule))

    @property
    def _spent(self) -> bool:
        """Whether the present search may measure no more."""
        return len(self._seen) >= self._tries

    def _measured(self, carried: Flags) -> _Tried:
        key = carried.tobytes()
        if key not in self._known:
            schedule = self._program.carrying(carried)
            lives = measure(self.problem, schedule)
            seconds = cost = schedule.seconds(self.problem)
            if lives.kernels is not None:
                cost = trace_seconds(lives.trace, lives.kernels, self.machine)
            candidate = Candidate(lives.peak, seconds, schedule)
            self._known[key] = _Tried(carried, candidate, lives, cost)
        return self._known[key]


def _with(carried: Flags, bits: list[int], value: bool) -> Flags:
    """Return what is carried with some bits changed."""
    changed = carried.copy()
    changed[bits] = value
    return changed
