"""Exact liveness of a schedule in which an op may run several times.

Every planner's answer goes through :func:`evaluate`; a plan that it does not confirm is not used.
The model, for entry t of forward + backward:

- A value *instance* lives from the op that makes it to its last reader before the next instance of
  the same value; what the step returns lives to its end.
- The copy that the compiler makes of an input lives from the start to the input's last reader.
- While an op runs, its inputs, outputs and workspace are live together, except that an op that can
  write in place takes over an input of the same size that dies with it, where it is the last to
  read it (buffer reuse): an intermediate, or what the forward saved.
- Under Inductor an instance made element by element, read only by ops that compute element by
  element or reduce, is evaluated anew by each reader (it takes no memory, and what it is made of
  lives as long as its readers) where it has one reader and not too many sources
  (``realize_cpu_acc_reads_threshold``), or where it is light: few sources
  (``realize_reads_threshold``), few ops, none of them heavy. What is *realized* never is.
- Under Inductor an instance that is made and last needed between the same two ops that do not fuse
  stays inside one kernel and takes no memory. Ops between the same two that exchange such
  instances, or evaluated ones, are one kernel: it runs at the place of its last op, its inputs live
  until then and its outputs from then. Kernels read in the order of their places, and the ops of
  one in the schedule's; where several of a stretch that do not reduce read an input, none is the
  last to. What is *flat* stays inside no kernel where a reduction reads it, or several ops do and
  something is reduced between the same two ops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recut.partitioners.kernels import Kernels, Lives, fused, kernels
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule
from recut.partitioners.tables import Ints, held_bytes
from recut.partitioners.trace import Trace


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


@dataclass(frozen=True)
class Liveness:
    """A :class:`Timeline` as arrays: ``live`` by moment, the rest by instance of the ``trace``.

    ``taken`` lists the instances whose bytes are an input's that dies where they are made, and
    ``kernels`` are those that Inductor makes of the trace, None without Inductor.
    """

    trace: Trace
    live: Ints
    start: Ints
    end: Ints
    bytes: Ints
    taken: Ints
    kernels: Kernels | None

    @property
    def value(self) -> Ints:
        """The value of each instance."""
        return self.trace.value

    @property
    def split(self) -> int:
        """Index of the first moment of the backward."""
        return self.trace.split

    @property
    def peak(self) -> int:
        """The most bytes that are live at any moment."""
        return int(self.live.max(initial=0))


def measure(problem: Problem, schedule: Schedule) -> Liveness:
    """Return the liveness of a schedule that :meth:`Schedule.check` accepts."""
    trace = Trace(problem, schedule)
    n, count = trace.n, len(trace.start)
    made = kernels(trace) if problem.compiler == "inductor" else None
    if made is not None:
        lives = fused(trace, made)
    else:
        no = np.zeros(count, dtype=np.bool_)
        lives = Lives(trace.start, trace.ends, no, trace.last)
    size = np.where(lives.nothing, 0, trace.tables.bytes[trace.value])
    live = held_bytes(lives.start, lives.end, size, n) + trace.tables.workspace[trace.order]
    taken = _taken_over(trace, lives, size)
    np.subtract.at(live, lives.start[taken], size[taken])
    return Liveness(trace, live, lives.start, lives.end, size, taken, made)


def evaluate(problem: Problem, schedule: Schedule) -> Timeline:
    """Return the timeline of a schedule that :meth:`Schedule.check` accepts."""
    found = measure(problem, schedule)
    fields = (found.value, found.start, found.end, found.bytes)
    instances = tuple(map(Instance, *(f.tolist() for f in fields)))
    return Timeline(tuple(found.live.tolist()), instances, found.split)


def _taken_over(trace: Trace, lives: Lives, size: Ints) -> Ints:
    """Return the instances that ops write over an input of the same size that dies with them."""
    n = trace.n
    may = np.zeros(n + 1, dtype=np.bool_)
    may[:n] = trace.tables.inplace[trace.order]
    whole = (size > 0) & (lives.start >= 0)
    dies = whole & (lives.start < lives.end) & (lives.end < n) & may[lives.reader]
    made = np.flatnonzero(whole & may[trace.start])
    dying: dict[tuple[int, int], int] = {}
    for place in zip(lives.reader[dies].tolist(), size[dies].tolist(), strict=True):
        dying[place] = dying.get(place, 0) + 1
    taken = []
    places = zip(trace.start[made].tolist(), size[made].tolist(), strict=True)
    for instance, place in zip(made.tolist(), places, strict=True):
        if dying.get(place, 0):
            dying[place] -= 1
            taken.append(instance)
    return np.array(taken, dtype=np.int64)
