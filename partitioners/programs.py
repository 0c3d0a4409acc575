"""The programs of a problem: one for each segmentation that was asked for, in one or two levels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property

from recut.partitioners.effort import NORMAL
from recut.partitioners.problem import Problem
from recut.partitioners.program import Program
from recut.partitioners.room import Base
from recut.partitioners.schedule import Stretches, lazy_schedule
from recut.partitioners.segments import Forward

_SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
# Problems of at most as many ops are searched without giving up, and their plans' neighbours too.
SMALL = 400

# A segmentation, and the one that divides its segments again: itself where there is one level.
Key = tuple[int, int]
# What a program is worth: less is better.
Worth = Callable[[int, int], tuple[float, int]]
# Asks what some programs are worth.
Explore = Callable[[Worth], None]


class Programs:
    """The programs of a problem, the coarsest segmentation first.

    Attributes:
        problem: the problem.
        known: the programs that were asked for.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.known: dict[Key, Program] = {}
        self._bases: dict[Key, Base] = {}

    @cached_property
    def _forward(self) -> Forward:
        return Forward(self.problem)

    @cached_property
    def _cuts(self) -> tuple[tuple[frozenset[int], tuple[int, ...]], ...]:
        """Ways to divide the forward: what crosses the positions, and these."""
        total = int(self._forward.made_bytes.sum())
        cuts = dict.fromkeys(self._forward.cut(int(total / k)) for k in _SEGMENTS)
        # Different positions may be crossed by the same values.
        return tuple({self._forward.crossings(cut): cut for cut in cuts}.items())

    @property
    def count(self) -> int:
        """How many segmentations there are."""
        return len(self._cuts)

    @property
    def failed(self) -> bool:
        """Whether the solver failed at a program."""
        return any(program.failed for program in self.known.values())

    def program(self, k: int, finer: int) -> Program:
        """Return the program of a segmentation, with segments divided where another one divides."""
        if (k, finer) not in self.known:
            crossings, cut = self._cuts[k]
            stretches = None
            if finer != k:
                last = self._forward.ops((*cut, *self._cuts[finer][1]))
                stretches = Stretches(self.problem, last)
            schedule = lazy_schedule(self.problem, crossings, stretches=stretches)
            self.known[k, finer] = Program(self.problem, schedule)
        return self.known[k, finer]

    def base(self, k: int, finer: int) -> Base:
        """Return the base of a program, with what may be dropped of it."""
        if (k, finer) not in self._bases:
            program = self.program(k, finer)
            self._bases[k, finer] = Base(self.problem, program.schedule, program.lives)
        return self._bases[k, finer]

    def plain(self, worth: Worth, patience: int = NORMAL.patience) -> None:
        """Ask what segmentations are worth: of a small problem all, of others while it pays."""
        patience = patience if len(self.problem.ops) > SMALL else len(_SEGMENTS)
        climb(range(self.count), self.count // 2, lambda k: worth(k, k), patience)

    def nested(self, worth: Worth, patience: int = NORMAL.patience) -> None:
        """Ask what segmentations within segmentations are worth."""
        count = self.count
        if count < 2:
            return
        far = min(2, count - 1)
        k = climb(range(count - far), (count - far) // 2, lambda k: worth(k, k + far), patience)
        q = climb(range(k + 1, count), k + far, lambda q: worth(k, q), patience)
        climb(range(q), k, lambda k: worth(k, q), patience)


def ask(keys: Collection[Key], worth: Worth) -> None:
    """Ask what some segmentations are worth."""
    for key in sorted(keys):
        worth(*key)


def climb(
    among: range, start: int, value: Callable[[int], tuple[float, int]], patience: int
) -> int:
    """Ask for the values around the least of some numbers, and return where it is.

    The walk leaves a side where ``patience`` in a row are no better.
    """
    best, where = value(start), start
    for side in (range(start - 1, among.start - 1, -1), range(start + 1, among.stop)):
        idle = 0
        for k in side:
            found = value(k)
            idle = 0 if found < best else idle + 1
            best, where = min((best, where), (found, k))
            if idle == patience:
                break
    return where


__all__ = ["SMALL", "Explore", "Key", "Programs", "Worth", "ask", "climb"]
