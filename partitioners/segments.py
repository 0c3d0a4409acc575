"""Where a forward can be cut: the few positions that little memory crosses.

Between two ops of the forward stands a *crossing*: the values made before it that a forward op
behind it reads. Saving the crossings at some positions splits the forward into segments that the
backward can recompute one at a time, as per-block checkpointing does, without being told where the
blocks are. Segment sizes follow Chen et al., "Training Deep Nets with Sublinear Memory Cost"
(arXiv 1604.06174): a walk along the forward that closes a segment whenever it holds more than a
given number of bytes, here at the cheapest crossing since the last one.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from recut.partitioners.problem import Problem


class Forward:
    """The forward of a problem as a line of ops.

    Attributes:
        made_bytes: bytes that each op makes.
        crossing_bytes: bytes that cross the position behind each op.
    """

    def __init__(self, problem: Problem) -> None:
        tables = problem.tables
        order = np.array(sorted(problem.forward_required), dtype=np.int64)
        self._order = order
        self._values, self._made = tables.outputs.take(order)
        last = np.zeros(len(problem.values), dtype=np.int64)
        last[self._values] = self._made
        read, at = tables.inputs.take(order)
        np.maximum.at(last, read, at)
        self._last = last[self._values]
        size = tables.bytes[self._values]
        self.made_bytes = np.zeros(len(order), dtype=np.int64)
        np.add.at(self.made_bytes, self._made, size)
        change = self.made_bytes.copy()
        np.subtract.at(change, self._last, size)
        self.crossing_bytes = np.cumsum(change)

    def crossing(self, position: int) -> list[int]:
        """Return the values that cross the position behind an op of the forward."""
        crosses = (self._made <= position) & (position < self._last)
        values: list[int] = self._values[crosses].tolist()
        return values

    def crossings(self, positions: Collection[int]) -> frozenset[int]:
        """Return the values that cross any of some positions."""
        return frozenset(v for k in positions for v in self.crossing(k))

    def ops(self, positions: Collection[int]) -> tuple[int, ...]:
        """Return the ops at some positions."""
        return tuple(self._order[list(positions)].tolist())

    def cut(self, size: int) -> tuple[int, ...]:
        """Return positions that divide the forward into segments of about ``size`` bytes each."""
        positions: list[int] = []
        held = np.cumsum(self.made_bytes)
        base, k = 0, -1
        while (k := max(k + 1, int(held.searchsorted(base + size, side="right")))) < len(held):
            # Only the second half of what the segment holds: a crossing near its start would leave
            # the next segment as large as this one.
            low = int(held.searchsorted(base + size / 2))
            window = self.crossing_bytes[low : k + 1]
            best = low + len(window) - 1 - int(np.argmin(window[::-1]))
            positions.append(best)
            base = int(held[best])
        return tuple(positions)
