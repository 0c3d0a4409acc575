"""Exact liveness of a schedule in which an op may run several times.

Every planner's answer goes through :func:`evaluate`; a plan that it does not confirm is not used.
The model, for entry t of forward + backward:

- A value *instance* lives from the op that makes it to its last reader before the next instance of
  the same value; what the step returns lives to its end.
- While an op runs, its inputs, outputs and workspace are live together, except that an op that can
  write in place takes over an input of the same size that dies with it (buffer reuse).
- Under Inductor an instance made element by element takes no memory where every reader computes
  element by element or reduces, and either runs in the same stretch between two ops that do not
  fuse (one kernel), or evaluates it anew from what it was made of: a single reader, or few enough
  sources (``realize_reads_threshold``). What it was made of then lives as long as its readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule

# torch._inductor.config.realize_reads_threshold: more distinct reads than this, and a value with
# several readers becomes a buffer.
MAX_SOURCES = 4
# Ops that Inductor evaluates anew for several readers (realize_opcount_threshold is 30 inner calls,
# of which an FX op takes two to three).
MAX_WEIGHT = 12


@dataclass(frozen=True)
class Instance:
    """One making of a value: made at moment ``start``, last needed at moment ``end``.

    What the step returns has the number of moments as its ``end``: nothing may overwrite it.
    ``bytes`` is 0 for what runs inside its readers.
    """

    value: int
    start: int
    end: int
    bytes: int


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
        return tuple(i for i in self.instances if i.start <= moment <= i.end and i.bytes)


class _Trace:
    """Instances of a schedule and who reads them."""

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.problem = problem
        self.order = schedule.forward + schedule.backward
        self.split = len(schedule.forward)
        self.value: list[int] = []
        self.start: list[int] = []
        self.readers: list[list[int]] = []
        self.reads: list[list[int]] = []  # instances that each moment reads
        current: dict[int, int] = {}
        forward_end: dict[int, int] = {}
        for t, i in enumerate(self.order):
            if t == self.split:
                forward_end = dict(current)
            op = problem.ops[i]
            reads = [current[v] for v in op.inputs if v in current]
            self.reads.append(reads)
            for k in reads:
                self.readers[k].append(t)
            for v in op.outputs:
                current[v] = len(self.value)
                self.value.append(v)
                self.start.append(t)
                self.readers.append([])
        if self.split >= len(self.order):
            forward_end = current
        self.returned = {forward_end[v] for v in problem.forward_outputs if v in forward_end}
        self.returned |= {current[v] for v in problem.backward_outputs if v in current}

    def epochs(self) -> list[int]:
        """For each moment the number of ops before it that do not fuse."""
        fuses = self.problem.fuses
        return list(accumulate((not fuses[i] for i in self.order), initial=0))


def _inlined(trace: _Trace) -> tuple[list[bool], list[int]]:
    """Return for each instance whether it runs inside its readers, and when it is last needed."""
    problem = trace.problem
    n = len(trace.order)
    fuses, pointwise, heavy = problem.fuses, problem.is_pointwise, problem.is_heavy
    epoch = trace.epochs()
    inlined = [False] * len(trace.value)
    sources: list[frozenset[int]] = []
    weight: list[int] = []
    for k, t in enumerate(trace.start):
        i = trace.order[t]
        readers = trace.readers[k]
        sources.append(frozenset((k,)))
        weight.append(1)
        if not pointwise[i] or not readers or k in trace.returned:
            continue
        if t < trace.split <= readers[-1] or not all(fuses[trace.order[r]] for r in readers):
            continue
        found: set[int] = set()
        total = 1
        for r in trace.reads[t]:
            found |= sources[r]
            if inlined[r]:
                total += weight[r]
        far = epoch[readers[-1]] != epoch[t]
        if far and len(readers) > 1:
            if len(found) > MAX_SOURCES or heavy[i] or total > MAX_WEIGHT:
                continue
        inlined[k] = True
        sources[k] = frozenset(found)
        weight[k] = total
    ends = [n if k in trace.returned else t for k, t in enumerate(trace.start)]
    for k, readers in enumerate(trace.readers):
        if readers and ends[k] < n:
            ends[k] = max(ends[k], readers[-1])
    for k in range(len(inlined)):
        if inlined[k]:
            for s in sources[k]:
                if ends[s] < ends[k]:
                    ends[s] = ends[k]
    return inlined, ends


def evaluate(problem: Problem, schedule: Schedule) -> Timeline:
    """Return the timeline of a schedule that :meth:`Schedule.check` accepts."""
    trace = _Trace(problem, schedule)
    n = len(trace.order)
    inlined, ends = _inlined(trace) if problem.compiler == "inductor" else _plain(trace)
    sizes = [0 if x else problem.values[v].bytes for v, x in zip(trace.value, inlined, strict=True)]
    delta = [0] * (n + 2)
    for s, e, size in zip(trace.start, ends, sizes, strict=True):
        delta[s] += size
        delta[e + 1] -= size
    live = list(accumulate(delta[:n]))
    _subtract_inplace(trace, ends, sizes, live)
    for t, i in enumerate(trace.order):
        live[t] += problem.ops[i].workspace
    instances = tuple(map(Instance, trace.value, trace.start, ends, sizes))
    return Timeline(tuple(live), instances, trace.split)


def _plain(trace: _Trace) -> tuple[list[bool], list[int]]:
    """Return that nothing is inlined, and when each instance is last needed."""
    n = len(trace.order)
    ends = [
        n if k in trace.returned else max(readers[-1] if readers else t, t)
        for k, (t, readers) in enumerate(zip(trace.start, trace.readers, strict=True))
    ]
    return [False] * len(ends), ends


def _subtract_inplace(trace: _Trace, ends: Sequence[int], sizes: Sequence[int], live: list[int]) -> None:
    """Take from ``live`` what ops write over an input that dies with them."""
    dying: dict[int, list[int]] = {}
    made: dict[int, list[int]] = {}
    for s, e, size in zip(trace.start, ends, sizes, strict=True):
        if size:
            made.setdefault(s, []).append(size)
            if s < e:
                dying.setdefault(e, []).append(size)
    for t, free in dying.items():
        if t >= len(trace.order) or not trace.problem.ops[trace.order[t]].inplace:
            continue
        for size in made.get(t, ()):
            if size in free:
                free.remove(size)
                live[t] -= size
