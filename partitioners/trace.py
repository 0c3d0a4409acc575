"""Which instances a schedule makes, and at which moments it reads each of them."""

from __future__ import annotations

import numpy as np

from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule
from recut.partitioners.tables import Ints


class Trace:
    """Instances of a schedule and who reads them.

    Attributes:
        order: the ops of forward + backward.
        value, start: of each instance, in the order of their making.
        first: for each moment, how many instances were made before it (one entry more at the end).
        read, at: one entry per read, in the order of moments: the instance and the moment.
        last: for each instance the moment of its last read, -1 where there is none.
        returned: which instances the step returns.
    """

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.tables = tables = problem.tables
        self.order = order = np.array(schedule.forward + schedule.backward, dtype=np.int64)
        self.split = len(schedule.forward)
        self.n = n = len(order)
        copies = tables.copies
        made, start = tables.outputs.take(order)
        self.value = np.concatenate([copies, made])
        self.start = np.concatenate([np.full(len(copies), -1), start])
        self.first = len(copies) + np.searchsorted(start, np.arange(n + 1))
        self._count = count = len(self.value)
        # Instances of one value lie together, in the order of their making.
        self._by_value = np.argsort(self.value, kind="stable")
        self._keys = self.value[self._by_value] * (count + 1) + self._by_value
        value, self.at = tables.reads.take(order)
        self.read = self._latest(value, self.first[self.at])
        self.last = np.full(count, -1)
        self.last[self.read] = self.at  # moments ascend, and the last assignment stays
        self.returned = np.zeros(count, dtype=np.bool_)
        for outputs, moment in (
            (problem.forward_outputs, min(self.split, n)),
            (problem.backward_outputs, n),
        ):
            values = np.array(outputs, dtype=np.int64)
            values = values[(tables.producer[values] >= 0) | (tables.bytes[values] > 0)]
            self.returned[self._latest(values, np.full(len(values), self.first[moment]))] = True

    def _latest(self, value: Ints, before: Ints) -> Ints:
        """Return the last instance of each value among the first ``before`` instances."""
        keys = value * (self._count + 1) + before
        return self._by_value[np.searchsorted(self._keys, keys) - 1]

    @property
    def ends(self) -> Ints:
        """For each instance its last moment, run op by op."""
        return np.where(self.returned, self.n, np.maximum(self.last, self.start))


def asked_at(problem: Problem, trace: Trace, read: Ints, at: Ints) -> Ints:
    """Return when each of some instances has to be there that the backward's own ops read.

    At the moment of its reading, but for ops that are put off: where they would have run.
    """
    pace = problem.pace
    if not pace.put_off:
        return at
    order = trace.order.tolist()
    place = {i: k for k, i in enumerate(order) if k >= trace.split}
    when = at.copy()
    for k in np.flatnonzero(np.isin(trace.order[at], list(pace.put_off))).tolist():
        i = order[at[k]]
        if trace.value[read[k]] in pace.held[i]:
            when[k] = place[pace.put_off[i]]
    return when
