"""Where a forward can be cut: the few positions that little memory crosses.

Between two ops of the forward stands a *crossing*: the values made before it that a forward op
behind it reads. Saving the crossings at some positions splits the forward into segments that the
backward can recompute one at a time, as per-block checkpointing does, without being told where the
blocks are. Segment sizes follow Chen et al., "Training Deep Nets with Sublinear Memory Cost"
(arXiv 1604.06174): a walk along the forward that closes a segment whenever it holds more than a
given number of bytes, here at the cheapest crossing since the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recut.partitioners.problem import Phase, Problem


@dataclass(frozen=True)
class Segmentation:
    """Boundaries in a forward.

    Attributes:
        boundaries: values that cross them.
        segment: for each op outside the backward, the number of its segment (-1 in the backward).
    """

    boundaries: frozenset[int]
    segment: tuple[int, ...]


class Forward:
    """The forward of a problem as a line of ops with the bytes that cross each position."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.order = sorted(problem.forward_required)
        self.position = {i: k for k, i in enumerate(self.order)}

    @cached_property
    def last_read(self) -> dict[int, int]:
        """For each value made in the forward, the position of its last forward reader."""
        out: dict[int, int] = {}
        for k, i in enumerate(self.order):
            for v in self.problem.ops[i].outputs:
                out[v] = k
            for v in self.problem.ops[i].inputs:
                if v in out:
                    out[v] = k
        return out

    @cached_property
    def crossing_bytes(self) -> np.ndarray:
        """Bytes that cross the position behind each op of the forward."""
        delta = np.zeros(len(self.order) + 1, dtype=np.int64)
        for v, last in self.last_read.items():
            made = self.position[self.problem.values[v].producer]
            if last > made:
                delta[made] += self.problem.values[v].bytes
                delta[last] -= self.problem.values[v].bytes
        return np.cumsum(delta[:-1])

    @cached_property
    def made_bytes(self) -> np.ndarray:
        """Bytes that each op of the forward makes."""
        return np.array(
            [
                sum(self.problem.values[v].bytes for v in self.problem.ops[i].outputs)
                for i in self.order
            ],
            dtype=np.int64,
        )

    def crossing(self, position: int) -> list[int]:
        """Return the values that cross the position behind an op of the forward."""
        return [
            v
            for v, last in self.last_read.items()
            if self.position[self.problem.values[v].producer] <= position < last
        ]

    def cut(self, size: int) -> Segmentation:
        """Close a segment whenever it has made more than ``size`` bytes."""
        positions: list[int] = []
        held = np.cumsum(self.made_bytes)
        base = 0
        for k in range(len(self.order)):
            if held[k] - base <= size:
                continue
            # Only the second half of what the segment holds: a crossing near its start would leave
            # the next segment as large as this one.
            low = int(np.searchsorted(held, base + size / 2))
            window = self.crossing_bytes[low : k + 1]
            best = low + len(window) - 1 - int(np.argmin(window[::-1]))
            positions.append(best)
            base = int(held[best])
        return self.at(positions)

    def at(self, positions: list[int]) -> Segmentation:
        """Return the segmentation with boundaries behind the given positions."""
        boundaries: set[int] = set()
        for p in positions:
            boundaries.update(self.crossing(p))
        bounds = np.asarray(sorted(set(positions)), dtype=np.int64)
        segment = [-1] * len(self.problem.ops)
        for i, op in enumerate(self.problem.ops):
            if i in self.position:
                segment[i] = int(np.searchsorted(bounds, self.position[i], side="left"))
            elif op.phase is Phase.EITHER:
                parents = [self.problem.values[v].producer for v in op.inputs]
                segment[i] = max((segment[p] for p in parents if p >= 0), default=0)
        return Segmentation(frozenset(boundaries), tuple(segment))
