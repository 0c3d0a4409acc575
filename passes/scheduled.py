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
from recut.passes.buffers import Groups, Life, buffer_lives, live_bytes
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
        workspace: bytes of ``live`` that library calls allocate beside Inductor's buffers, what
            nothing reads of their results included.
        inputs: bytes of each saved tensor by name of its placeholder, freed at its last read.
        held: bytes that live throughout and that the graph neither makes nor frees.
        limit: bytes that the graph's kernels must not exceed; None where nothing is promised.
        copied: bytes of the largest gradient that autograd copies behind the graph's last kernel.
        channels_last: convolutions are counted with channels-last images, whose layout Inductor
            would choose anew for a graph that has none but their gradients.
        any_size: what the plan counts is a formula of sizes that may change.
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
    any_size: bool

    @property
    def room(self) -> int:
        """Bytes that may be in memory for speed's sake; -1 where that is not known at all sizes."""
        return -1 if self.any_size else max(self.live, default=0)


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
        beside = (
            problem.ops[i].workspace - problem.ops[i].observed + _state_aside(n, captured.device)
            for i, n in zip(ops, entries, strict=True)
        )
        return Expectation(
            digest=problem.digest,
            moments={n.name: k for k, n in enumerate(entries)},
            ops=ops,
            live=line.live[base : base + len(ops)],
            workspace=tuple(size + unread.get(base + k, 0) for k, size in enumerate(beside)),
            inputs=inputs,
            held=held,
            limit=limit,
            copied=copied,
            channels_last=turned,
            any_size=bool(problem.sizes),
        )

    unread = _unread(problem, line)
    returned, copied = _returned(problem), _copied(captured, emission)
    split = line.split
    return (
        part(entries[:split], 0, limits[0], {}),
        part(entries[split:], split, limits[1], _saved(captured, emission), returned, copied),
    )


def _state_aside(node: fx.Node, device: str) -> int:
    """Return the bytes of the generator's state that a replayed draw keeps until it has drawn.

    Only here: no plan knows of it, since it depends on how often an op runs.
    """
    if device != "cpu" or node.target is not _torch.run_with_rng_state:
        return 0
    return int(torch.get_rng_state().nbytes)


def _unread(problem: Problem, line: Timeline) -> dict[int, int]:
    """Return by moment the bytes of what a library call makes and nothing reads.

    Inductor has no buffer for that: a dropout that is drawn again for its mask makes the rest too.
    """
    sizes: dict[int, int] = {}
    for instance in line.instances:
        producer = problem.values[instance.value].producer
        if 0 <= instance.start == instance.end and not problem.fuses[producer]:
            sizes[instance.start] = sizes.get(instance.start, 0) + instance.bytes
    return sizes


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


@dataclass(frozen=True)
class Held:
    """What the kernels of a graph hold, once their code is generated.

    Attributes:
        found: how long each buffer is in memory.
        places: for each kernel the place in the plan's order of the op that it ends with.
        apart: bytes that each holds if it is called by itself, a library call's workspace included.
        together: bytes that it holds as a part of its function.
        behind: bytes that are in memory behind the last one.
    """

    found: dict[str, Life]
    places: list[int]
    apart: list[int]
    together: list[int]
    behind: int

    @property
    def peak(self) -> int:
        """The most bytes that are in memory while a kernel runs or behind the last one."""
        return max([0, *self.apart, *self.together, self.behind])


def held_by(scheduler: Any, lives: Sequence[Any], promised: Expectation, groups: Groups) -> Held:
    """Return what the kernels of a scheduler hold, after it has generated their code.

    Args:
        scheduler: Inductor's scheduler.
        lives: what :func:`buffers.lives_of` said of it before.
        promised: what the plan counts for this graph.
        groups: which kernels were generated as one function.
    """
    nodes = scheduler.nodes
    places: list[int] = []
    workspace: list[int] = []
    for node in nodes:
        ends = [promised.moments[o] for o in _origins(node) if o in promised.moments]
        places.append(max(ends, default=places[-1] if places else 0))
        # A kernel that turns what a library call reads counts among what stands for that call.
        calls = [promised.workspace[p] for p in ends if node.is_extern()]
        workspace.append(max(calls, default=0) + _number(node.node))
    found = buffer_lives(scheduler, lives, promised.inputs)
    over = _torch.V.graph.wrapper_code.reuses
    *apart, behind = live_bytes(found, len(nodes), promised.held, over)
    *together, _ = live_bytes(found, len(nodes), promised.held, over, groups.span)
    return Held(
        found,
        places,
        [a + w for a, w in zip(apart, workspace, strict=True)],
        [t + w for t, w in zip(together, workspace, strict=True)],
        # Behind the last kernel everything returned is alive, and the copy of one gradient.
        behind + promised.copied,
    )


def _number(kernel: Any) -> int:
    """Return the bytes of a number that an eager op on complex numbers makes a tensor of.

    In double precision, and as complex as the result. No plan knows which ops Inductor leaves.
    """
    if not isinstance(kernel, _torch.FallbackKernel):
        return 0
    if torch.Tag.pointwise not in getattr(kernel.op_overload, "tags", ()):
        return 0
    dtype = kernel.outputs[0].get_dtype()
    numbers = any(type(a) in (int, float, complex) for a in kernel.constant_args)
    return int(torch.float64.itemsize + dtype.itemsize) if numbers and dtype.is_complex else 0


def observe(held: Held, promised: Expectation) -> Observation:
    """Return what the kernels hold beyond what the plan counts, by op.

    Args:
        held: what the kernels hold.
        promised: what the plan counts for this graph.
    """
    excess: dict[int, int] = {}
    if promised.ops and promised.limit is not None:
        for place, size in zip(held.places, held.apart, strict=True):
            if size > _NEAR * promised.limit:
                op = promised.ops[place]
                excess[op] = max(excess.get(op, 0), size - promised.live[place])
        if held.behind > promised.limit:
            op = promised.ops[-1]
            excess[op] = max(excess.get(op, 0), held.behind - promised.live[-1])
    beyond = {op: x for op, x in excess.items() if x > 0}
    return Observation(promised.digest, held.peak, promised.limit, beyond)


def _origins(node: Any) -> set[str]:
    """Return the names of the FX nodes that a kernel computes."""
    return {o.name for n in node.get_nodes() if n.node is not None for o in n.node.get_origins()}
