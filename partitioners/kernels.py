"""What Inductor's kernels do to the lives of instances: evaluate them anew, join their makers.

The model is described in ``evaluator.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from recut.partitioners.limits import MAX_ALL_SOURCES, MAX_SOURCES, MAX_WEIGHT
from recut.partitioners.tables import Flags, Ints, Ragged
from recut.partitioners.trace import Trace


@dataclass(frozen=True)
class Lives:
    """For each instance its first and last moment, whether it takes memory and who reads it last.

    ``reader`` is the moment of the op that reads it last, in the order of kernels and within one in
    the schedule's; -1 where none does, or several of that stretch do side by side.
    """

    start: Ints
    end: Ints
    nothing: Flags
    reader: Ints


@dataclass(frozen=True)
class Inlined:
    """Instances that their readers evaluate anew, and the buffers behind each.

    ``sources`` has a row for each entry of ``which``; ``is_in`` says for each instance whether it
    is one of them.
    """

    which: Ints
    is_in: Flags
    sources: Ragged

    def outlive(self, end: Ints) -> None:
        """Let the buffers behind an instance live as long as the instance's readers need them."""
        count = np.diff(self.sources.starts)
        np.maximum.at(end, self.sources.flat, np.repeat(end[self.which], count))

    def made_of(self, buffer: int) -> list[int]:
        """Return a buffer, and the instances that readers evaluate anew from it."""
        owner = np.repeat(self.which, np.diff(self.sources.starts))
        return [buffer, *owner[self.sources.flat == buffer].tolist()]

    def reads(self, trace: Trace) -> tuple[Ints, Ints]:
        """Return each moment that runs and each buffer that it reads, evaluated ones behind it.

        Pairs without repeats, in the order of moments.
        """
        count = len(trace.start)
        does = self.runs(trace)[trace.at]
        read, at = trace.read[does], trace.at[does]
        direct = ~self.is_in[read]
        behind = self.which.searchsorted(read[~direct])
        through, owner = self.sources.take(behind)
        source = np.concatenate([read[direct], through])
        moment = np.concatenate([at[direct], at[~direct][owner]])
        moment, source = np.divmod(np.unique(moment * count + source), max(count, 1))
        return moment, source

    def runs(self, trace: Trace) -> Flags:
        """Return for each moment whether its op runs, rather than its readers evaluate it."""
        runs: Flags = ~trace.tables.makes[trace.order]
        runs[trace.start[~self.is_in & (trace.start >= 0)]] = True
        return runs


@dataclass(frozen=True)
class Kernels:
    """Which ops of a schedule run in one kernel, and what never leaves it.

    Attributes:
        inlined: instances that their readers evaluate anew.
        nothing: instances that take no memory: these, and what stays inside one kernel.
        place: for each moment the last one of its kernel, at which the kernel runs.
        side: for each moment the stretch between two ops that do not fuse.
        end: for each instance its last moment, by the ops that read what is made of it.
    """

    inlined: Inlined
    nothing: Flags
    place: Ints
    side: Ints
    end: Ints


def kernels(trace: Trace) -> Kernels:
    """Return the kernels that Inductor makes of a schedule."""
    n, start, order, tables = trace.n, trace.start, trace.order, trace.tables
    fuses = tables.fuses[order]
    # What divides kernels: the phase, and how many ops before do not fuse.
    side = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(~fuses, out=side[1:])
    side[trace.split :] += n + 1
    fusing_readers = np.ones(len(start), dtype=np.bool_)
    fusing_readers[trace.read[~fuses[trace.at]]] = False
    inlined = _inlined(trace, fusing_readers)
    end = trace.ends
    inlined.outlive(end)
    made = start >= 0
    inside = made & fusing_readers & (end > start) & (end < n)
    inside &= side[np.minimum(end, n)] == side[start]
    inside &= np.where(made, fuses[start], False) if n else inside
    flat = inside & tables.flat[order[start]] if n else inside
    if flat.any():
        inside[_apart(trace, inlined, flat, side)] = False
    nothing = inlined.is_in | inside
    return Kernels(inlined, nothing, _places(trace, nothing, side), side, end)


def _apart(trace: Trace, inlined: Inlined, flat: Flags, side: Ints) -> Ints:
    """Return the ``flat`` instances that no kernel makes which reads them.

    A reduction reads them, or several ops do, in a stretch that reduces.
    """
    reduces = trace.tables.reduces[trace.order]
    moment, source = inlined.reads(trace)
    several = np.bincount(source, minlength=len(flat))[source] > 1
    beside = several & np.isin(side[moment], side[:-1][reduces])
    found: Ints = source[flat[source] & (reduces[moment] | beside)]
    return found


def fused(trace: Trace, found: Kernels) -> Lives:
    """Return the lives of instances as Inductor's kernels make them."""
    n, start = trace.n, trace.start
    place, end = found.place, found.end
    first = np.where(start >= 0, place[start], start) if n else start
    within = (end >= 0) & (end < n)
    last = np.where(within, place[np.where(within, end, 0)], end) if n else end
    np.maximum.at(last, trace.read, place[trace.at])
    end = np.where(end < n, last, end)
    found.inlined.outlive(end)
    return Lives(first, np.maximum(first, end), found.nothing, _last_reader(trace, found))


def _last_reader(trace: Trace, found: Kernels) -> Ints:
    """Return for each instance the moment that reads it last, through what is evaluated anew."""
    moment, source = found.inlined.reads(trace)
    order = np.lexsort((moment, found.place[moment]))
    reader = np.full(len(trace.start), -1)
    reader[source[order]] = moment[order]  # the last assignment stays
    # A reduction runs before what reads its result; others of a stretch may compute side by side.
    last = found.side[moment] == found.side[reader[source]]
    beside = source[last & ~trace.tables.reduces[trace.order[moment]]]
    reader[np.bincount(beside, minlength=len(reader)) > 1] = -1
    return reader


def _places(trace: Trace, nothing: Flags, side: Ints) -> Ints:
    """Return for each moment the last one of its kernel, at which the kernel runs."""
    made = trace.start[trace.read]
    joins = nothing[trace.read] & (made >= 0)
    joins[joins] = side[made[joins]] == side[trace.at[joins]]
    edges = (made[joins], trace.at[joins])
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(trace.n, trace.n))
    _, kernel = connected_components(graph, directed=False)
    last = np.zeros(trace.n, dtype=np.int64)
    last[kernel] = np.arange(trace.n)
    place: Ints = last[kernel]
    return place


def _inlined(trace: Trace, fusing_readers: Flags) -> Inlined:
    """Return which instances are evaluated anew by their readers, and the buffers behind each."""
    tables, order, start = trace.tables, trace.order, trace.start
    readers = np.bincount(trace.read, minlength=len(start))
    saved = (start < trace.split) & (trace.split <= trace.last)
    may = fusing_readers & (readers > 0) & (start >= 0) & ~trace.returned & ~saved
    may[may] = tables.evaluated[order[start[may]]]
    candidates = np.flatnonzero(may)
    moments = start[candidates]
    low, high = np.searchsorted(trace.at, [moments, moments + 1])
    heavy = tables.heavy[order[moments]]
    # An instance that several ops read, of a heavy op, is a buffer whatever is behind it.
    keep = ~heavy | (readers[candidates] == 1)
    columns = (candidates, low, high, heavy, readers[candidates] > 1)
    sources = _sources(trace.read.tolist(), zip(*(c[keep].tolist() for c in columns), strict=True))
    which = np.array(list(sources), dtype=np.int64)
    is_in = np.zeros(len(start), dtype=np.bool_)
    is_in[which] = True
    return Inlined(which, is_in, Ragged.of(list(sources.values())))


def _sources(
    read: list[int], candidates: Iterable[tuple[int, int, int, bool, bool]]
) -> dict[int, Collection[int]]:
    """Return the buffers behind each candidate that is evaluated anew, in the candidates' order.

    A candidate is an instance, the stretch of ``read`` that its op reads, whether that op is heavy
    and whether the instance has several readers.
    """
    sources: dict[int, Collection[int]] = {}
    weight: dict[int, int] = {}
    hot: set[int] = set()
    for k, low, high, is_heavy, shared in candidates:
        total, hard = 1, is_heavy
        behind: Collection[int] = read[low:high]
        for r in read[low:high]:
            if r in sources:
                total += weight[r]
                hard = hard or r in hot
        if total > 1:
            if high - low == 1:
                behind = sources[read[low]]  # one read only: what is behind it is behind this one
            else:
                found: set[int] = set()
                for r in read[low:high]:
                    inner = sources.get(r)
                    if inner is None:
                        found.add(r)
                    else:
                        found.update(inner)
                behind = found
        if len(behind) > MAX_ALL_SOURCES:
            continue
        if shared and (hard or len(behind) > MAX_SOURCES or total > MAX_WEIGHT):
            continue
        sources[k] = behind
        weight[k] = total
        if hard:
            hot.add(k)
    return sources
