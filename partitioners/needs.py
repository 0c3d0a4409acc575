"""What any plan holds at once: the proof that a budget cannot be met.

While an op runs, all that it reads and makes is in memory, and so is what was made before, is
needed later and cannot be made again: what the step returns, gradients that later ops read, what
has to be saved, copies of inputs. This holds for every plan that runs the step's own ops in the
planners' order, whatever else it saves or recomputes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recut.partitioners.problem import Phase, Problem, Rule
from recut.partitioners.tables import Flags, Ints, flags, held_bytes, ints


@dataclass(frozen=True)
class Need:
    """What is in memory while one op runs, under any plan.

    Attributes:
        op: the op.
        values: what is in memory: what the op reads and makes, and what has to stay.
        bytes: all of it, and the op's workspace.
    """

    op: int
    values: tuple[int, ...]
    bytes: int


class Needs:
    """What any plan for a problem holds while each of the step's own ops runs.

    Attributes:
        order: the ops that every plan runs, in the order in which it runs them.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tables = problem.tables
        self.order = ints((*problem.forward_order, *problem.backward_order))
        self._place = np.full(len(problem.ops), -1)
        self._place[self.order] = np.arange(len(self.order))
        # What compiled code of one plan was seen to hold, others may do without.
        self._workspace = ints(op.workspace - op.observed for op in problem.ops)

    @cached_property
    def moments(self) -> Flags:
        """For each entry of ``order`` whether all that the op reads and makes is in memory then.

        Under Inductor what fuses may stay inside a kernel; what writes in place takes over a
        buffer.
        """
        tables = self._tables
        result: Flags = ~tables.inplace[self.order]
        if self._problem.compiler == "inductor":
            result &= ~tables.fuses[self.order]
        return result

    @cached_property
    def _stays(self) -> tuple[Ints, Ints, Ints]:
        """What has to stay: values, and from which place of ``order`` to which."""
        problem, tables = self._problem, self._tables
        n = len(self.order)
        read, at = tables.inputs.take(self.order)
        whole = np.full(len(problem.values), -1)  # the last place at which each value is read
        np.maximum.at(whole, read, at)
        last = whole.copy()
        made = tables.producer >= 0

        def by(which: Flags) -> Flags:
            """Return for each value whether one of some ops makes it."""
            result = made.copy()
            result[made] = which[tables.producer[made]]
            return result

        if problem.compiler == "inductor":
            # What a kernel makes for other kernels alone may be evaluated anew in them.
            by_kernel = tables.fuses[self.order[at]]
            whole_read = np.full(len(last), -1)
            np.maximum.at(whole_read, read[~by_kernel], at[~by_kernel])
            last = np.where(by(tables.fuses), whole_read, whole)
        start = np.where(made, self._place[tables.producer], 0)
        must = by(tables.backward)
        must[tables.copies] = whole[tables.copies] >= 0
        ruled = flags(o.rule is Rule.MUST_SAVE and o.phase is Phase.FORWARD for o in problem.ops)
        # What must be saved is saved where the backward reads it, however it does.
        saved = by(ruled) & (whole >= len(problem.forward_order))
        must |= saved
        last[saved] = whole[saved]
        returned = [v for v in problem.backward_outputs if must[v]]
        returned += problem.forward_outputs
        must[returned] = True
        last[returned] = n
        values = np.flatnonzero(must & (tables.bytes > 0) & (start >= 0))
        # What nothing reads is there while it is made.
        return values, start[values], np.maximum(last, start)[values]

    @cached_property
    def bytes(self) -> Ints:
        """Bytes in memory while each entry of ``order`` runs; 0 where it is no moment."""
        tables = self._tables
        n = len(self.order)
        values, start, end = self._stays
        total = held_bytes(start, end, tables.bytes[values], n) + self._workspace[self.order]
        since = np.full(len(tables.bytes), n + 1)
        until = np.full(len(tables.bytes), -1)
        since[values], until[values] = start, end
        for touched in (tables.inputs, tables.outputs):
            v, at = touched.take(self.order)
            new = (at < since[v]) | (at > until[v])
            np.add.at(total, at[new], tables.bytes[v[new]])
        return np.where(self.moments, total, 0)

    def at(self, place: int) -> Need:
        """Return what is in memory while an entry of ``order`` runs that is a moment."""
        values, start, end = self._stays
        op = self._problem.ops[self.order[place]]
        stays = values[(start <= place) & (place <= end)].tolist()
        alive = {*stays, *op.inputs, *op.outputs}
        touched = tuple(sorted(v for v in alive if self._tables.bytes[v]))
        return Need(int(self.order[place]), touched, int(self.bytes[place]))

    @property
    def most(self) -> Need | None:
        """The most that any plan holds at once, None where no op is a moment."""
        return self.at(int(np.argmax(self.bytes))) if self.moments.any() else None
