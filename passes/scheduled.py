"""What Inductor's kernels hold in memory, counted behind code generation, before any compiler runs.

A plan's peak is a model of what Inductor will do. Here Inductor has done it: kernels are fused and
ordered, copies into other layouts are buffers of their own, buffers inside a kernel are gone and
in-place writes are decided. So each kernel's live bytes are summed again over Inductor's own
buffers and held against what the plan promised at that place. Where they are more, the difference
belongs to the op that runs there, and a planner that knows it can plan again.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from recut.partitioners.evaluator import Timeline
from recut.partitioners.problem import Problem
from recut.passes import _torch, costs
from recut.passes.buffers import Groups, buffer_lives, live_bytes
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


def observe(
    scheduler: Any, lives: Sequence[Any], promised: Expectation, groups: Groups
) -> Observation:
    """Return what the kernels of a scheduler hold, after it has generated their code.

    Args:
        scheduler: Inductor's scheduler.
        lives: what :func:`buffers.lives_of` said of it before.
        promised: what the plan counts for this graph.
        groups: which kernels were generated as one function.
    """
    excess: dict[int, int] = {}
    peak = 0
    place = 0
    found = buffer_lives(scheduler, lives, promised.inputs)
    over = _torch.V.graph.wrapper_code.reuses
    *live, behind = live_bytes(found, len(scheduler.nodes), promised.held, over)
    together = live_bytes(found, len(scheduler.nodes), promised.held, over, groups.span)
    for node, buffers in zip(scheduler.nodes, live, strict=True):
        places = [promised.moments[o] for o in _origins(node) if o in promised.moments]
        place = max(places, default=place)
        size = buffers + max((promised.workspace[p] for p in places), default=0)
        peak = max(peak, size)
        if promised.ops and promised.limit is not None and size > _NEAR * promised.limit:
            op = promised.ops[place]
            excess[op] = max(excess.get(op, 0), size - promised.live[place])
    peak = max([peak, *together])
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
