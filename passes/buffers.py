"""When Inductor's buffers are in memory, and which kernels may share a function.

On a CPU Inductor generates one function of all kernels between two library calls. What it makes is
allocated before, and what it reads last freed after it: more is in memory than a plan counts. A
call of each kernel by itself takes some microseconds more. So kernels share one where what is in
memory then is no more than the most that the plan counts anywhere in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from recut.passes import _torch, costs


@dataclass(frozen=True)
class Groups:
    """Which kernels are generated as one function.

    Attributes:
        nodes: the scheduler's nodes, in order.
        first: for each of them the first of its function.
        last: and the last.
    """

    nodes: tuple[Any, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]

    def span(self, k: int) -> tuple[int, int]:
        """Return the first and the last kernel of the function that kernel ``k`` is in."""
        return self.first[k], self.last[k]

    def ends(self, node: Any) -> bool:
        """Return whether a function ends with a scheduler node."""
        return id(node) in self._ends

    @cached_property
    def _ends(self) -> frozenset[int]:
        """The last node of each function for which code is generated.

        The scheduler does not ask behind what no kernel makes, such as a concatenation.
        """
        last: dict[int, int] = {}
        for k, node in enumerate(self.nodes):
            if not isinstance(node, _torch.NopKernelSchedulerNode):
                last[self.first[k]] = id(node)
        return frozenset(last.values())


def lives_of(scheduler: Any) -> list[Any]:
    """Return the first and last kernel of each of a scheduler's buffers, and the buffers' sizes.

    To be asked before the scheduler generates code: that prunes what a kernel waits for whose loops
    it regroups, and the buffers that it reads would seem to end where they are made.
    """
    _torch.assign_memory_planning_info(scheduler.nodes, scheduler.name_to_buf)
    returned = _torch.OrderedSet(_torch.V.graph.get_output_names())
    lives: list[Any] = _torch.compute_memory_timeline(scheduler.nodes, {}, returned)[0]
    return lives


@dataclass(frozen=True)
class Life:
    """How long a buffer or an input of a graph is in memory.

    Attributes:
        start: the first kernel during which it is.
        end: the last one; the number of kernels where it is returned.
        made: bytes that are allocated for it.
        freed: bytes that go with it.
    """

    start: int
    end: int
    made: int
    freed: int


def buffer_lives(
    scheduler: Any, lives: Sequence[Any], inputs: Mapping[str, int]
) -> dict[str, Life]:
    """Return by name how long each buffer and each input is in memory that is freed.

    What stays inside a kernel is left out, as far as Inductor knows it by then.

    Args:
        scheduler: Inductor's scheduler.
        lives: what :func:`lives_of` says of it.
        inputs: bytes of each input that is freed at its last read.
    """
    nodes = scheduler.nodes
    graph = _torch.V.graph
    # The outputs of one call are allocated with it, and freed each at its own end.
    made, freed = dict(inputs), dict(inputs)
    starts = dict.fromkeys(inputs, 0)
    last_read = _last_reads(nodes, inputs)
    ends = {name: last_read.get(name, len(nodes)) for name in inputs}
    views: dict[str, Sequence[str]] = {}
    for life in lives:
        name = life.buffer.get_name()
        if name in graph.removed_buffers:
            continue  # it stays inside its kernel
        starts[name] = life.start_step
        ends[name] = len(nodes) if life.end_step < 0 else life.end_step
        # A call may return a view of what it reads (complex numbers are left to eager), or write
        # into a part of a concatenation that is allocated for it.
        views[name] = life.buffer.get_aliases()
        device = getattr(life.buffer.node.get_device(), "type", "")
        made[name], freed[name] = (
            costs.allocated(size, device) for size in (life.size_alloc, life.size_free)
        )
        if views[name]:
            made[name] = freed[name] = 0
    for name in reversed(views):
        for base in views[name]:
            if base in ends:
                starts[base] = min(starts[base], starts[name])
                ends[base] = max(ends[base], ends[name])
    return {n: Life(starts[n], ends[n], made[n], freed[n]) for n in starts}


def live_bytes(
    found: Mapping[str, Life],
    count: int,
    held: int,
    over: Mapping[str, str],
    group: Callable[[int], tuple[int, int]] = lambda k: (k, k),
) -> list[int]:
    """Return the bytes that are live while each kernel runs, and behind the last of them.

    Without workspace of library calls.

    Args:
        found: what is in memory when.
        count: how many kernels there are.
        held: bytes that live throughout.
        over: by buffer what it is written over by the kernel that reads that last.
        group: the first and the last kernel that are called together with one.
    """

    def last(k: int) -> int:
        return group(k)[1] if k < count else k

    delta = [held, *[0] * (count + 1)]
    for life in found.values():
        delta[group(life.start)[0]] += life.made
        delta[last(life.end) + 1] -= life.freed
    # A kernel that writes over an input holds the two as one.
    for written, source in over.items():
        if written in found and source in found and found[source].end == found[written].start:
            shared = min(found[written].freed, found[source].freed)
            first, end = group(found[written].start)
            delta[first] -= shared
            delta[end + 1] += shared
    return list(accumulate(delta[: count + 1]))


def _last_reads(nodes: Sequence[Any], names: Mapping[str, int]) -> dict[str, int]:
    """Return the last kernel that reads each of some inputs."""
    out: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for dep in node.read_writes.reads:
            if dep.name in names:
                out[dep.name] = k
    return out


def grouped(nodes: Sequence[Any], found: Mapping[str, Life], held: int, limit: int) -> Groups:
    """Return the kernels that share a function, as many as ``limit`` lets.

    Args:
        nodes: the scheduler's nodes, in order.
        found: what is in memory when, each kernel called by itself.
        held: bytes that live throughout.
        limit: bytes that may be in memory while a function runs that several kernels share.
    """
    count = len(nodes)
    live = live_bytes(found, count, held, {})
    made = [0] * count
    for life in found.values():
        made[life.start] += life.made
    first: list[int] = []
    together = 0  # what the function holds, to its end
    for k, node in enumerate(nodes):
        together += made[k]
        joins = k and _is_kernel(node) and _is_kernel(nodes[k - 1]) and together <= limit
        first.append(first[-1] if joins else k)
        if not joins:
            together = live[k]
    ends = dict(zip(first, range(count), strict=True))  # the last assignment stays
    return Groups(tuple(nodes), tuple(first), tuple(ends[f] for f in first))


def _is_kernel(node: Any) -> bool:
    """Return whether a scheduler node becomes a part of a C++ function."""
    device = node.get_device()
    return (
        device is not None
        and device.type == "cpu"
        and not (node.is_extern() or node.is_template() or node.is_foreach())
    )
