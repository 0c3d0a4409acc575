"""Memory that a freed buffer leaves to the next one of its size, where a plan has room for it.

A buffer that waits for its next use stays allocated meanwhile. Inductor lets buffers wait up to its
own estimate of the peak. For planned graphs that decision is made again, by what the kernels were
counted to hold: whatever waits, no moment holds more than the most that they hold in any case. What
is gained is memory that needs no new pages from the system, whose zeroing takes longer than many a
kernel on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from recut.passes import _torch
from recut.passes.buffers import Groups, Life

_POOL = "_recut_pool"


class Pool:
    """Which freed buffers may wait for their next use.

    Args:
        found: how long each buffer of the graph is in memory.
        groups: which kernels are called together.
        held: bytes that are in memory while each kernel runs.
        limit: bytes that may be.
    """

    def __init__(
        self, found: Mapping[str, Life], groups: Groups, held: Sequence[int], limit: int
    ) -> None:
        self._found = found
        self._groups = groups
        self._held = np.array(held, dtype=np.int64)
        self._limit = limit

    def lend(self, freed: str, wanted: str) -> bool:
        """Return whether a buffer's memory may wait to become another buffer's, and count it if so.

        Args:
            freed: the buffer that is not read any more.
            wanted: the one that is allocated later, of the same size.
        """
        before, after = self._found.get(freed), self._found.get(wanted)
        if before is None or after is None or not before.freed or before.end >= len(self._held):
            return False
        waiting = slice(self._groups.span(before.end)[1] + 1, self._groups.span(after.start)[0])
        if waiting.start > waiting.stop:
            return False  # by the count it is still in use
        meanwhile = self._held[waiting]
        if len(meanwhile) and meanwhile.max() + before.freed > self._limit:
            return False
        meanwhile += before.freed
        return True


def open_pool(pool: Pool) -> None:
    """Let ``pool`` decide for the graph whose code Inductor is generating."""
    setattr(_torch.V.graph.wrapper_code, _POOL, pool)


def lend(_: Callable[..., bool], line: Any, free: Any, __: int) -> bool:
    """Return whether an allocation takes memory that waits, for Inductor's ``AllocateLine``.

    A graph without a pool (a subgraph of a condition or a loop) lets nothing wait.
    """
    pool: Pool | None = getattr(line.wrapper, _POOL, None)
    freed = free.node.get_name()
    return (
        pool is not None
        and free.scheduler_node_index < line.scheduler_node_index
        # What was written over lives on by another name.
        and freed not in line.wrapper.reuses.values()
        and pool.lend(freed, line.node.get_name())
    )
