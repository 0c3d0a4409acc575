"""A Problem as arrays, so that liveness and programs are counted without loops over ops.

Ragged lists (what each op reads) are stored flat: the stretch ``flat[starts[i] : starts[i + 1]]``
belongs to row i.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from recut.partitioners.problem import Phase, Problem, Rule

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


def ints(items: Iterable[int]) -> Ints:
    """Return whole numbers as an array."""
    return np.fromiter(items, dtype=np.int64)


def flags(items: Iterable[bool]) -> Flags:
    """Return truth values as an array."""
    return np.fromiter(items, dtype=np.bool_)


def held_bytes(start: Ints, end: Ints, size: Ints, count: int) -> Ints:
    """Return the bytes at each of ``count`` moments of what is there from one to another.

    Args:
        start: the first moment of each, before the first of all where negative.
        end: the last one, at most ``count``.
        size: its bytes.
        count: how many moments there are.
    """
    change = np.zeros(count + 2, dtype=np.int64)
    np.add.at(change, np.maximum(start, 0), size)
    np.subtract.at(change, end + 1, size)
    return np.cumsum(change[:count])


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one behind the other.

    Attributes:
        starts: where each row starts in ``flat``; one entry more than there are rows.
        flat: the rows' entries.
    """

    starts: Ints
    flat: Ints

    @staticmethod
    def of(rows: Sequence[Collection[int]]) -> Ragged:
        """Return rows as one."""
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(ints(map(len, rows)), out=starts[1:])
        return Ragged(starts, ints(chain.from_iterable(rows)))

    def take(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the entries of some rows in their order, and for each its place in ``rows``."""
        low = self.starts[rows]
        count = self.starts[rows + 1] - low
        owner = np.repeat(np.arange(len(rows)), count)
        before = np.cumsum(count) - count
        return self.flat[np.arange(len(owner)) + (low - before)[owner]], owner


class Tables:
    """What is asked about each op and value of a problem, as arrays."""

    def __init__(self, problem: Problem) -> None:
        ops, values = problem.ops, problem.values
        self.bytes = ints(v.bytes for v in values)
        self.producer = ints(v.producer for v in values)
        self.store = np.fromiter((v.store for v in values), dtype=np.float64)
        self.load = np.fromiter((v.load for v in values), dtype=np.float64)
        self.save = np.array(problem.save_seconds)
        self.workspace = ints(o.workspace for o in ops)
        self.seconds = np.fromiter((o.seconds for o in ops), dtype=np.float64)
        self.again = np.array(problem.again_seconds)
        self.arithmetic = np.fromiter((o.arithmetic for o in ops), dtype=np.float64)
        self.fuses = flags(problem.fuses)
        pointwise = flags(problem.is_pointwise)
        self.evaluated = flags(problem.is_evaluated)
        self.backward = flags(problem.is_backward)
        # By value: made by an op outside the backward.
        made = self.producer >= 0
        self.of_forward = made & ~self.backward[self.producer] if len(ops) else made
        self.forward = flags(o.phase is Phase.FORWARD for o in ops)
        self.never_saved = flags(  # by value
            v.producer >= 0 and ops[v.producer].rule is Rule.MUST_RECOMPUTE for v in values
        )
        self.heavy = flags(o.heavy for o in ops)
        self.flat = flags(o.flat for o in ops)
        self.inplace = flags(o.inplace for o in ops)
        self.reduces = self.fuses & ~pointwise
        self.makes = flags(bool(o.outputs) for o in ops)
        self.inputs = Ragged.of([o.inputs for o in ops])
        self.outputs = Ragged.of([o.outputs for o in ops])
        counted = self.bytes.astype(bool) | (self.producer >= 0)
        # Inputs of the graph that the compiler does not copy take nothing and are never made.
        self.reads = Ragged.of([[v for v in o.inputs if counted[v]] for o in ops])
        self.copies = np.flatnonzero((self.producer < 0) & (self.bytes > 0))

    def stages(self, backward: Ints) -> Ints:
        """Return for each entry of a backward how many of its own ops run before it."""
        own = self.backward[backward]
        before: Ints = np.cumsum(own) - own
        return before
