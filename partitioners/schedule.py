"""A schedule: in which order the ops of a step run, some of them several times.

What is saved and what is recomputed follows from it. An op reads the latest instance of the value;
a value read in the backward whose latest instance was made by the forward is *saved*, and a forward
op that stands in the backward is a *recomputation*.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from recut.partitioners.errors import InvalidSchedule
from recut.partitioners.problem import Phase, Problem, Rule


@dataclass(frozen=True)
class Schedule:
    """Two sequences of op indices: the forward and the backward."""

    forward: tuple[int, ...]
    backward: tuple[int, ...]

    def saved(self, problem: Problem) -> tuple[int, ...]:
        """Return the values that the backward reads from the forward, sorted."""
        tables = problem.tables
        order = np.array(self.backward, dtype=np.int64)
        never = len(order)
        first = np.full(len(problem.ops) + 1, never)  # the last entry: producers of inputs
        first[order[::-1]] = np.arange(never - 1, -1, -1)
        read, at = tables.inputs.take(order)
        returned = np.array(problem.backward_outputs, dtype=np.int64)
        read = np.concatenate([read, returned])
        at = np.concatenate([at, np.full(len(returned), never)])
        made = tables.of_forward[read] & (first[tables.producer[read]] >= at)
        saved: list[int] = np.unique(read[made]).tolist()
        return tuple(saved)

    def recomputed(self, problem: Problem) -> dict[int, int]:
        """Return how many times the backward runs each op that the forward has run."""
        forward = set(self.forward)
        count: dict[int, int] = {}
        for i in self.backward:
            if i in forward:
                count[i] = count.get(i, 0) + 1
        return count

    def seconds(self, problem: Problem) -> float:
        """Return the time spent on running ops more than once and on saving, in seconds.

        Prices of ops and values are added up; ``timing.step_seconds`` knows kernels.
        """
        tables = problem.tables
        order = np.array(self.forward + self.backward, dtype=np.int64)
        again = np.maximum(np.bincount(order, minlength=len(problem.ops)) - 1, 0)
        saving = tables.save[list(self.saved(problem))].sum()
        return float((again * tables.again).sum() + saving)

    def check(self, problem: Problem) -> None:
        """Raise InvalidSchedule where the schedule breaks dataflow or a rule of the Problem."""
        count = len(problem.ops)
        unknown = [i for i in self.forward + self.backward if not 0 <= i < count]
        if unknown:
            raise InvalidSchedule(f"entry {unknown[0]} is none of the problem's {count} ops")
        made: set[int] = set()
        ran: set[int] = set()
        for phase, order in ((Phase.FORWARD, self.forward), (Phase.BACKWARD, self.backward)):
            for i in order:
                _check_op(problem, i, phase, ran, made)
                ran.add(i)
                made.update(problem.ops[i].outputs)
        missing = [
            op.name
            for i, op in enumerate(problem.ops)
            if op.phase is not Phase.EITHER and i not in ran
        ]
        if missing:
            raise InvalidSchedule(f"never run: {', '.join(missing[:5])}")
        for v in (*problem.forward_outputs, *problem.backward_outputs):
            if problem.values[v].producer >= 0 and v not in made:
                raise InvalidSchedule(f"{problem.values[v].name} is returned, but never made")
        for v in self.saved(problem):
            op = problem.ops[problem.values[v].producer]
            if op.rule is Rule.MUST_RECOMPUTE:
                raise InvalidSchedule(f"{op.name} is saved, but is {op.reason}")


def _check_op(problem: Problem, i: int, phase: Phase, ran: set[int], made: set[int]) -> None:
    op = problem.ops[i]
    if phase is Phase.FORWARD and op.phase is Phase.BACKWARD:
        raise InvalidSchedule(f"{op.name} belongs to the backward but stands in the forward")
    if i in ran and (phase is Phase.FORWARD or op.phase is Phase.BACKWARD):
        raise InvalidSchedule(f"{op.name} runs twice in the {phase}")
    if i in ran and op.rule is Rule.MUST_SAVE:
        raise InvalidSchedule(f"{op.name} is recomputed, but is {op.reason}")
    if i not in ran and phase is Phase.BACKWARD and op.phase is Phase.FORWARD:
        raise InvalidSchedule(f"{op.name} belongs to the forward but first runs in the backward")
    for v in op.inputs:
        if problem.values[v].producer >= 0 and v not in made:
            raise InvalidSchedule(f"{op.name} reads {problem.values[v].name} before it is made")


def forward_order(problem: Problem, saved: Collection[int]) -> tuple[int, ...]:
    """Return the forward's order: what it must run, and what the ``saved`` values need.

    An op that only the backward needs stands right behind the last of its inputs, so that they can
    be freed as early as the forward's own reads allow.
    """
    need, always = problem.forward_required, problem.forward_order
    producers = {problem.values[v].producer for v in saved} - need - {-1}
    if not producers:
        return always
    position: dict[int, tuple[int, int]] = {}
    for i in sorted(problem.ancestors(producers) - need):
        parents = {problem.values[v].producer for v in problem.ops[i].inputs} - {-1}
        last = max((position.get(p, (p, 0)) for p in parents), default=(i, 0))
        position[i] = (last[0], last[1] + 1)
    position.update((i, (i, 0)) for i in always)
    return tuple(sorted(position, key=lambda i: (*position[i], i)))


class Stretches:
    """The forward divided at some ops.

    Args:
        problem: the problem.
        last: the last op of each stretch but the last one.
    """

    def __init__(self, problem: Problem, last: Collection[int]) -> None:
        self._problem = problem
        ends = sorted(last)
        self._stretch = [bisect_left(ends, p) for p in problem.forward_places]
        self._crosses = {
            v
            for i in problem.forward_required
            for v in problem.forward_inputs[i]
            if self._stretch[problem.values[v].producer] < self._stretch[i]
        }

    def passed(self, ops: Collection[int], wanted: Collection[int]) -> set[int]:
        """Return what ``ops`` make on the way to ``wanted`` and nothing near there needs."""
        made = {v for i in ops for v in self._problem.ops[i].outputs}
        producers = (self._problem.values[v].producer for v in made.intersection(wanted))
        goal = max(self._stretch[p] for p in producers)
        there = {v for i in ops if self._stretch[i] == goal for v in self._problem.ops[i].outputs}
        return made - there - self._crosses - set(wanted)


def lazy_schedule(
    problem: Problem,
    saved: Collection[int],
    order: Iterable[int] | None = None,
    stretches: Stretches | None = None,
) -> Schedule:
    """Return the schedule that saves ``saved`` and recomputes everything else on demand.

    Once, unless it passes through ``stretches``: what a recomputation leaves in the stretches
    before the one that it is for is forgotten, but for what crosses into later ones.

    Args:
        problem: the problem.
        saved: values to save; what is neither among them nor may be recomputed is saved too.
        order: order of the backward's own ops; joint-graph order where not given.
        stretches: how the forward is divided; one stretch where not given.
    """
    keep = set(saved)
    have: set[int] = set()
    backward: list[int] = []

    def demand(wanted: Collection[int]) -> None:
        ops = _demand(problem, wanted, keep, have)
        backward.extend(ops)
        if stretches is not None and ops:
            have.difference_update(stretches.passed(ops, wanted))

    for i in problem.backward_order if order is None else order:
        wanted = problem.forward_wanted[i]
        if not have.issuperset(wanted):
            demand(wanted)
        backward.append(i)
    demand(problem.forward_made(problem.backward_outputs))
    partial = Schedule((), tuple(backward))
    return Schedule(forward_order(problem, partial.saved(problem)), partial.backward)


def recomputing_schedule(problem: Problem) -> Schedule:
    """Return the schedule that saves nothing it may not, and keeps nothing that it recomputes.

    In front of each of the backward's own ops runs all that this op needs.
    """
    backward: list[int] = []
    for i in problem.backward_order:
        backward += _demand(problem, problem.forward_wanted[i], set(), set())
        backward.append(i)
    returned = problem.forward_made(problem.backward_outputs)
    backward += _demand(problem, returned, set(), set())
    saved = Schedule((), tuple(backward)).saved(problem)
    return Schedule(forward_order(problem, saved), tuple(backward))


def _demand(problem: Problem, wanted: Iterable[int], keep: set[int], have: set[int]) -> list[int]:
    """Return the ops that the ``wanted`` values need, and add to ``have`` what they make."""
    todo = [v for v in wanted if v not in have]
    ops: set[int] = set()
    while todo:
        v = todo.pop()
        p = problem.values[v].producer
        if v in have or p in ops:
            continue
        rule = problem.ops[p].rule
        if rule is Rule.MUST_SAVE or (v in keep and rule is not Rule.MUST_RECOMPUTE):
            keep.add(v)
            have.add(v)
            continue
        ops.add(p)
        todo.extend(problem.forward_inputs[p])
    for i in ops:
        have.update(problem.ops[i].outputs)
    return sorted(ops)
