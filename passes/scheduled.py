"""What Inductor's kernels hold in memory, counted behind code generation, before any compiler runs.

A plan's peak is a model of what Inductor will do. Here Inductor has done it: kernels are fused and
ordered, copies into other layouts are buffers of their own, buffers inside a kernel are gone and
in-place writes are decided. So each kernel's live bytes are summed again over Inductor's own
buffers and held against what the plan promised at that place. Where they are more, the difference
belongs to the op that runs there, and a planner that knows it can plan again.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import fx

from recut.partitioners.evaluator import Timeline
from recut.partitioners.problem import Problem
from recut.passes import _torch, costs
from recut.passes.capture import Capture
from recut.passes.rewrite import Emission

aten = torch.ops.aten


@dataclass(frozen=True)
class Expectation:
    """What a plan promises of one of its two graphs; plain data, since it travels with the graph.

    Attributes:
        digest: digest of the problem that was planned.
        moments: by name of the node that stands for it, the place of each of the graph's entries.
        ops: op of the problem at each place.
        live: bytes that the evaluator counts at each place.
        workspace: bytes of ``live`` that library calls allocate beside Inductor's buffers.
        inputs: bytes of each saved tensor by name of its placeholder, freed at its last read.
        held: bytes that live throughout and that the graph neither makes nor frees.
        limit: bytes that the graph's kernels must not exceed; None where nothing is promised.
        copied: bytes of the largest gradient that autograd copies behind the graph's last kernel.
        channels_last: convolutions are counted with channels-last images, whose layout Inductor
            would choose anew for a graph that has none but their gradients.
    """

    digest: str
    moments: dict[str, int]
    ops: tuple[int, ...]
    live: tuple[int, ...]
    workspace: tuple[int, ...]
    inputs: dict[str, int]
    held: int
    limit: int | None
    copied: int
    channels_last: bool


def expectations(
    captured: Capture,
    emission: Emission,
    line: Timeline,
    limits: tuple[int | None, int | None],
) -> tuple[Expectation, Expectation]:
    """Return what a plan promises of its forward and of its backward.

    Args:
        captured: the problem and its nodes.
        emission: the joint graph that runs the plan's schedule.
        line: the evaluator's timeline of the schedule.
        limits: bytes that the forward and the backward may not exceed; None where nothing is
            promised.
    """
    entries = [n for n in emission.module.graph.nodes if n.name in emission.ops]
    problem = captured.problem
    # Not on a GPU: what its libraries make of that has not been measured.
    turned = captured.channels_last and captured.device == "cpu"

    def part(
        entries: Sequence[fx.Node],
        base: int,
        limit: int | None,
        inputs: dict[str, int],
        held: int = 0,
        copied: int = 0,
    ) -> Expectation:
        ops = tuple(emission.ops[n.name] for n in entries)
        return Expectation(
            digest=problem.digest,
            moments={n.name: k for k, n in enumerate(entries)},
            ops=ops,
            live=line.live[base : base + len(ops)],
            workspace=tuple(problem.ops[i].workspace - problem.ops[i].observed for i in ops),
            inputs=inputs,
            held=held,
            limit=limit,
            copied=copied,
            channels_last=turned,
        )

    returned, copied = _returned(problem), _copied(captured, emission)
    split = line.split
    return (
        part(entries[:split], 0, limits[0], {}),
        part(entries[split:], split, limits[1], _saved(captured, emission), returned, copied),
    )


def _returned(problem: Problem) -> int:
    """Return the bytes that live from the forward to the end of the backward whatever it does."""
    kept = {v for v in problem.backward_outputs if problem.values[v].producer < 0}
    return sum(problem.values[v].bytes for v in kept | set(problem.forward_outputs))


def _copied(captured: Capture, emission: Emission) -> int:
    """Return the bytes of the largest gradient that autograd copies, one after another.

    Convolutions with channels-last images give their weights' gradients that layout too, and a
    parameter's gradient gets the parameter's own (torch/csrc/autograd/functions/accumulate_grad.h).
    """
    if not captured.channels_last:
        return 0
    graph = emission.module.graph
    flat: Sequence[Any] = graph.output_node().args[0]  # type: ignore[assignment]
    gradients = flat[captured.num_forward_outputs :]
    weights = (n for n in graph.find_nodes(op="placeholder") if _torch.is_primal(n))
    sizes = [
        costs.channels_last_copy(weight)
        for gradient, weight in zip(gradients, weights, strict=False)
        if isinstance(gradient, fx.Node) and _of_weight(gradient)
    ]
    return costs.allocated(max(sizes, default=0), captured.device)


def _of_weight(gradient: fx.Node) -> bool:
    """Return whether a gradient is a convolution's own result, for its weight."""
    call = gradient.args[0] if gradient.target is operator.getitem else None
    return isinstance(call, fx.Node) and costs.packet(call) is aten.convolution_backward


def _saved(captured: Capture, emission: Emission) -> dict[str, int]:
    """Return the bytes of what the backward gets from the forward, and frees."""
    sizes = {}
    joint = {n.name: n for n in captured.value_of}
    held = {captured.problem.values[v].name for v in captured.problem.forward_outputs}
    for n in emission.crossing:
        if n.op != "placeholder":
            saved = costs.tensors(n.meta.get("val"))
            sizes[n.name] = sum(costs.allocated(costs.nbytes(t), t.device.type) for t in saved)
        elif joint.get(n.name) in captured.turned:
            # The forward saves its copy of the input in the input's place.
            sizes[n.name] = costs.channels_last_copy(joint[n.name])
    return {name: size for name, size in sizes.items() if size and name not in held}


@dataclass(frozen=True)
class Observation:
    """What one graph's kernels hold.

    Attributes:
        digest: digest of the problem that was planned.
        peak: the most bytes that are live while a kernel runs.
        limit: bytes that it must not exceed, or None.
        excess: by op of the problem, bytes that a kernel of it holds beyond the plan's count.
    """

    digest: str
    peak: int
    limit: int | None
    excess: dict[int, int]

    @property
    def fits(self) -> bool:
        """Whether the limit holds."""
        return self.limit is None or self.peak <= self.limit


# Kernels that hold less than this share of the limit say nothing about plans that have to fit it.
_NEAR = 0.75


def lives_of(scheduler: Any) -> list[Any]:
    """Return the first and last kernel of each of a scheduler's buffers, and the buffers' sizes.

    To be asked before the scheduler generates code: that prunes what a kernel waits for whose loops
    it regroups, and the buffers that it reads would seem to end where they are made.
    """
    _torch.assign_memory_planning_info(scheduler.nodes, scheduler.name_to_buf)
    returned = _torch.OrderedSet(_torch.V.graph.get_output_names())
    lives: list[Any] = _torch.compute_memory_timeline(scheduler.nodes, {}, returned)[0]
    return lives


def observe(scheduler: Any, lives: Sequence[Any], promised: Expectation) -> Observation:
    """Return what the kernels of a scheduler hold, after it has generated their code.

    Args:
        scheduler: Inductor's scheduler.
        lives: what :func:`lives_of` said of it before.
        promised: what the plan counts for this graph.
    """
    excess: dict[int, int] = {}
    peak = 0
    place = 0
    *live, behind = _live(scheduler, lives, promised)
    for node, buffers in zip(scheduler.nodes, live, strict=True):
        places = [promised.moments[o] for o in _origins(node) if o in promised.moments]
        place = max(places, default=place)
        size = buffers + max((promised.workspace[p] for p in places), default=0)
        peak = max(peak, size)
        if promised.ops and promised.limit is not None and size > _NEAR * promised.limit:
            op = promised.ops[place]
            excess[op] = max(excess.get(op, 0), size - promised.live[place])
    # Behind the last kernel everything returned is alive, and the copy of one gradient.
    size = behind + promised.copied
    peak = max(peak, size)
    if promised.ops and promised.limit is not None and size > promised.limit:
        op = promised.ops[-1]
        excess[op] = max(excess.get(op, 0), size - promised.live[-1])
    beyond = {op: x for op, x in excess.items() if x > 0}
    return Observation(promised.digest, peak, promised.limit, beyond)


def _origins(node: Any) -> set[str]:
    """Return the names of the FX nodes that a kernel computes."""
    return {o.name for n in node.get_nodes() if n.node is not None for o in n.node.get_origins()}


def _live(scheduler: Any, lives: Sequence[Any], promised: Expectation) -> list[int]:
    """Return the bytes that are live while each kernel runs, and behind the last of them.

    Without workspace of library calls.
    """
    nodes = scheduler.nodes
    graph = _torch.V.graph
    # The outputs of one call are allocated with it, and freed each at its own end.
    made, freed = dict(promised.inputs), dict(promised.inputs)
    starts = dict.fromkeys(promised.inputs, 0)
    last_read = _last_reads(nodes, promised.inputs)
    ends = {name: last_read.get(name, len(nodes)) for name in promised.inputs}
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
    delta = [promised.held, *[0] * (len(nodes) + 1)]
    for name, start in starts.items():
        delta[start] += made[name]
        delta[ends[name] + 1] -= freed[name]
    # A kernel that writes over an input holds the two as one.
    for written, over in graph.wrapper_code.reuses.items():
        if written in starts and ends.get(over) == starts[written]:
            start = starts[written]
            shared = min(freed[written], freed[over])
            delta[start] -= shared
            delta[start + 1] += shared
    return list(accumulate(delta[: len(nodes) + 1]))


def _last_reads(nodes: Sequence[Any], names: Mapping[str, int]) -> dict[str, int]:
    """Return the last kernel that reads each of some inputs."""
    out: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for dep in node.read_writes.reads:
            if dep.name in names:
                out[dep.name] = k
    return out
