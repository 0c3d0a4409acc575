"""Exact liveness of a schedule in which an op may run several times.

Every planner's answer goes through :func:`evaluate`; a plan that it does not confirm is not used.
A value instance lives from the op that makes it to its last reader before the next instance of the
same value; what the step returns lives to its end. While an op runs, its inputs, outputs and
workspace are live together, except that an op that can write in place takes over an input of the
same size that dies with it (Inductor's buffer reuse).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule


@dataclass(frozen=True)
class Instance:
    """One making of a value: made at moment ``start``, last needed at moment ``end``.

    What the step returns has the number of moments as its ``end``: nothing may overwrite it.
    """

    value: int
    start: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """What a schedule keeps in memory.

    Attributes:
        live: bytes live while each entry of forward + backward runs.
        instances: every making of a value.
        split: index of the first moment of the backward.
    """

    live: tuple[int, ...]
    instances: tuple[Instance, ...]
    split: int

    @property
    def peak(self) -> int:
        """The most bytes that are live at any moment."""
        return max(self.live, default=0)

    @property
    def worst(self) -> int:
        """The first moment at which the peak is reached."""
        return self.live.index(self.peak) if self.live else 0

    def at(self, moment: int) -> tuple[Instance, ...]:
        """Return the instances live at ``moment``."""
        return tuple(i for i in self.instances if i.start <= moment <= i.end)


def evaluate(problem: Problem, schedule: Schedule) -> Timeline:
    """Return the timeline of a schedule that :meth:`Schedule.check` accepts."""
    order = schedule.forward + schedule.backward
    split = len(schedule.forward)
    n = len(order)
    current: dict[int, int] = {}
    values: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    ops = problem.ops
    forward_instance: dict[int, int] = {}
    for t, i in enumerate(order):
        if t == split:
            forward_instance = dict(current)
        op = ops[i]
        for v in op.inputs:
            k = current.get(v)
            if k is not None:
                ends[k] = t
        for v in op.outputs:
            current[v] = len(values)
            values.append(v)
            starts.append(t)
            ends.append(t)
    if split == n:
        forward_instance = current
    for v in problem.forward_outputs:
        if v in forward_instance:
            ends[forward_instance[v]] = n
    for v in problem.backward_outputs:
        if v in current:
            ends[current[v]] = n
    delta = [0] * (n + 2)
    for v, s, e in zip(values, starts, ends, strict=True):
        size = problem.values[v].bytes
        delta[s] += size
        delta[e + 1] -= size
    live = list(accumulate(delta[:n]))
    _subtract_inplace(problem, order, values, starts, ends, live)
    for t, i in enumerate(order):
        live[t] += ops[i].workspace
    instances = tuple(map(Instance, values, starts, ends))
    return Timeline(tuple(live), instances, split)


def _subtract_inplace(
    problem: Problem,
    order: tuple[int, ...],
    values: list[int],
    starts: list[int],
    ends: list[int],
    live: list[int],
) -> None:
    """Take from ``live`` what ops write over an input that dies with them."""
    dying: dict[int, list[int]] = {}
    for v, s, e in zip(values, starts, ends, strict=True):
        if s < e:
            dying.setdefault(e, []).append(problem.values[v].bytes)
    for t, i in enumerate(order):
        op = problem.ops[i]
        if not op.inplace or t not in dying:
            continue
        free = list(dying[t])
        for v in op.outputs:
            size = problem.values[v].bytes
            if size in free:
                free.remove(size)
                live[t] -= size
