"""Memory that a freed buffer leaves to the next one of its size, where a plan has room for it.

A buffer that waits for its next use stays allocated meanwhile. Inductor lets buffers wait up to its
own estimate of the peak. For planned graphs that decision is made again, by what the kernels were
counted to hold: whatever waits, no moment holds more than the most that they hold in any case. What
is gained is memory that needs no new pages from the system, whose zeroing takes longer than many a
kernel on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
        over: buffers that were written over, whose memory lives on by another name.
    """

    def __init__(
        self,
        found: Mapping[str, Life],
        groups: Groups,
        held: Sequence[int],
        limit: int,
        over: Collection[str] = (),
    ) -> None:
        self._found = found
        self._groups = groups
        self._held = np.array(held, dtype=np.int64)
        self._limit = limit
        self._over = frozenset(over)

    def lend(self, freed: str, wanted: str) -> bool:
        """Return whether a buffer's memory may wait to become another buffer's, and count it if so.

        Args:
            freed: the buffer that is not read any more.
            wanted: the one that is allocated later, of the same size.
        """
        before, after = self._found.get(freed), self._found.get(wanted)
        if before is None or after is None or freed in self._over:
            return False
        if not before.freed or before.end >= len(self._held):
            return False  # it has no memory of its own, or is returned
        waiting = slice(self._groups.span(before.end)[1] + 1, self._groups.span(after.start)[0])
        if waiting.start > waiting.stop:
            return False  # by the count it is still in use
        meanwhile = self._held[waiting]
        if len(meanwhile) and meanwhile.max() + before.freed > self._limit:
            return False
        meanwhile += before.freed
        return True


def open_pool(found: Mapping[str, Life], groups: Groups, held: Sequence[int], limit: int) -> None:
    """Let a :class:`Pool` decide for the graph whose kernels Inductor has generated."""
    wrapper: Any = _torch.V.graph.wrapper_code
    setattr(wrapper, _POOL, Pool(found, groups, held, limit, wrapper.reuses.values()))


def lend(_: Callable[..., bool], line: Any, free: Any, __: int) -> bool:
    """Return whether an allocation takes memory that waits, for Inductor's ``AllocateLine``.

    A graph without a pool (a subgraph of a condition or a loop) lets nothing wait.
    """
    pool: Pool | None = getattr(line.wrapper, _POOL, None)
    return (
        pool is not None
        and free.scheduler_node_index < line.scheduler_node_index
        and pool.lend(free.node.get_name(), line.node.get_name())
    )
