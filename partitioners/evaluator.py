"""Exact liveness of a schedule in which an op may run several times.

Every planner's answer goes through :func:`evaluate`; a plan that it does not confirm is not used.
The model, for entry t of forward + backward:

- A value *instance* lives from the op that makes it to its last reader before the next instance of
  the same value; what the step returns lives to its end.
- The copy that the compiler makes of an input lives from the start to the input's last reader.
- While an op runs, its inputs, outputs and workspace are live together, except that an op that can
  write in place takes over an input of the same size that dies with it (buffer reuse).
- Under Inductor an instance made element by element, read only by ops that compute element by
  element or reduce, is evaluated anew by each reader (it takes no memory, and what it is made of
  lives as long as its readers) where it has one reader, or where it is light: few sources
  (``realize_reads_threshold``), few ops, none of them heavy.
- Under Inductor an instance that is made and last needed between the same two ops that do not fuse
  stays inside one kernel and takes no memory. Ops between the same two that exchange such
  instances, or evaluated ones, are one kernel: it runs at the place of its last op, its inputs live
  until then and its outputs from then. A kernel that reduces writes nothing in place, and nothing
  is written over an input that several ops of that stretch read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from recut.partitioners.problem import Kind, Problem
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

    The copy of an input starts before the first moment, at -1. What the step returns has the number
    of moments as its ``end``: nothing may overwrite it.
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
        for v, value in enumerate(problem.values):
            if value.producer < 0 and value.bytes:
                current[v] = len(self.value)
                self.value.append(v)
                self.start.append(-1)
                self.readers.append([])
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


@dataclass(frozen=True)
class _Lives:
    """For each instance its first and last moment and whether it takes memory."""

    starts: list[int]
    ends: list[int]
    nothing: list[bool]
    reduces: frozenset[int]  # moments at which a kernel with a reduction runs
    shared: frozenset[int]  # instances that several ops of their last stretch read


def _fused(trace: _Trace) -> _Lives:
    """Return the lives of instances as Inductor's kernels make them."""
    inlined, sources = _inlined(trace)
    ends = _last_reads(trace)
    n = len(trace.order)
    _outlive_readers(ends, inlined, sources)
    epoch, fuses = trace.epochs(), trace.problem.fuses
    nothing = list(inlined)
    for k, t in enumerate(trace.start):
        if t < 0 or nothing[k] or ends[k] <= t or ends[k] >= n or not fuses[trace.order[t]]:
            continue
        same_kernel = epoch[ends[k]] == epoch[t] and not t < trace.split <= ends[k]
        if same_kernel and all(fuses[trace.order[r]] for r in trace.readers[k]):
            nothing[k] = True
    place, reduces = _kernels(trace, nothing, epoch)
    starts = [place[t] if t >= 0 else t for t in trace.start]
    ends = [
        e if e >= n else max([place[e] if e >= 0 else e, *(place[r] for r in readers)])
        for e, readers in zip(ends, trace.readers, strict=True)
    ]
    _outlive_readers(ends, inlined, sources)
    ends = [max(s, e) for s, e in zip(starts, ends, strict=True)]
    return _Lives(starts, ends, nothing, reduces, _shared(trace, inlined, sources, epoch))


def _outlive_readers(
    ends: list[int], inlined: Sequence[bool], sources: Sequence[frozenset[int]]
) -> None:
    """Let the buffers behind an instance that its readers evaluate live as long as they need it."""
    for k, inside in enumerate(inlined):
        if inside:
            for s in sources[k]:
                ends[s] = max(ends[s], ends[k])


def _shared(
    trace: _Trace,
    inlined: Sequence[bool],
    sources: Sequence[frozenset[int]],
    epoch: Sequence[int],
) -> frozenset[int]:
    """Return the instances that several ops read in their last stretch, evaluated ones included."""
    written = {t for k, t in enumerate(trace.start) if not inlined[k]}
    last: dict[int, tuple[tuple[bool, int], int]] = {}
    for t, i in enumerate(trace.order):
        if t not in written and trace.problem.ops[i].outputs:
            continue
        side = (t >= trace.split, epoch[t])
        for s in {s for r in trace.reads[t] for s in sources[r]}:
            before, count = last.get(s, (side, 0))
            last[s] = (side, count + 1 if before == side else 1)
    return frozenset(s for s, (_, count) in last.items() if count > 1)


def _kernels(
    trace: _Trace, nothing: Sequence[bool], epoch: Sequence[int]
) -> tuple[list[int], frozenset[int]]:
    """Return for each moment the place of its kernel, and the places where a kernel reduces."""
    place = list(range(len(trace.order)))

    def root(t: int) -> int:
        while place[t] != t:
            place[t] = place[place[t]]
            t = place[t]
        return t

    for k, t in enumerate(trace.start):
        if t >= 0 and nothing[k]:
            for r in trace.readers[k]:
                if epoch[r] == epoch[t] and (t < trace.split) == (r < trace.split):
                    a, b = root(t), root(r)
                    place[min(a, b)] = max(a, b)
    place = [root(t) for t in range(len(place))]
    ops = trace.problem.ops
    reduces = frozenset(
        place[t] for t, i in enumerate(trace.order) if ops[i].kind is Kind.REDUCTION
    )
    return place, reduces


def _last_reads(trace: _Trace) -> list[int]:
    n = len(trace.order)
    return [
        n if k in trace.returned else max(readers[-1] if readers else t, t)
        for k, (t, readers) in enumerate(zip(trace.start, trace.readers, strict=True))
    ]


def _inlined(trace: _Trace) -> tuple[list[bool], list[frozenset[int]]]:
    """Return which instances are evaluated anew by their readers, and the buffers behind each."""
    problem = trace.problem
    fuses, pointwise, heavy = problem.fuses, problem.is_pointwise, problem.is_heavy
    inlined = [False] * len(trace.value)
    sources: list[frozenset[int]] = []
    weight: list[int] = []
    hot: list[bool] = []
    for k, t in enumerate(trace.start):
        readers = trace.readers[k]
        sources.append(frozenset((k,)))
        weight.append(0)
        hot.append(False)
        i = trace.order[t]
        if t < 0 or not pointwise[i] or not readers or k in trace.returned:
            continue
        if t < trace.split <= readers[-1] or not all(fuses[trace.order[r]] for r in readers):
            continue
        found: set[int] = set()
        total = 1
        for r in trace.reads[t]:
            found |= sources[r]
            total += weight[r]
        shared = len(readers) > 1
        hard = heavy[i] or any(hot[r] for r in trace.reads[t])
        if shared and (len(found) > MAX_SOURCES or hard or total > MAX_WEIGHT):
            continue
        inlined[k] = True
        sources[k] = frozenset(found)
        weight[k] = total
        hot[k] = hard
    return inlined, sources


def evaluate(problem: Problem, schedule: Schedule) -> Timeline:
    """Return the timeline of a schedule that :meth:`Schedule.check` accepts."""
    trace = _Trace(problem, schedule)
    n = len(trace.order)
    if problem.compiler == "inductor":
        lives = _fused(trace)
    else:
        count = len(trace.value)
        lives = _Lives(trace.start, _last_reads(trace), [False] * count, frozenset(), frozenset())
    sizes = [
        0 if x else problem.values[v].bytes for v, x in zip(trace.value, lives.nothing, strict=True)
    ]
    delta = [0] * (n + 2)
    for s, e, size in zip(lives.starts, lives.ends, sizes, strict=True):
        delta[max(s, 0)] += size
        delta[e + 1] -= size
    live = list(accumulate(delta[:n]))
    _subtract_inplace(trace, lives, sizes, live)
    for t, i in enumerate(trace.order):
        live[t] += problem.ops[i].workspace
    instances = tuple(map(Instance, trace.value, lives.starts, lives.ends, sizes))
    return Timeline(tuple(live), instances, trace.split)


def _subtract_inplace(trace: _Trace, lives: _Lives, sizes: Sequence[int], live: list[int]) -> None:
    """Take from ``live`` what ops write over an input that dies with them."""
    dying: dict[int, list[int]] = {}
    made: dict[int, list[int]] = {}
    for k, (s, e, size) in enumerate(zip(lives.starts, lives.ends, sizes, strict=True)):
        if size and s >= 0:
            made.setdefault(s, []).append(size)
            if s < e and k not in lives.shared:
                dying.setdefault(e, []).append(size)
    for t, free in dying.items():
        if t >= len(trace.order) or not trace.problem.ops[trace.order[t]].inplace:
            continue
        if t in lives.reduces:
            continue
        for size in made.get(t, ()):
            if size in free:
                free.remove(size)
                live[t] -= size
