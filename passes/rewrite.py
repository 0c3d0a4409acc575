"""Schedule -> joint graph with recompute copies in their place.

Example, a schedule that recomputes ``r`` for the backward op ``d``::

    forward:  mm, r, s                 mm = aten.mm(x, t); r = aten.relu(mm); s = aten.sum(r)
    backward: r, d                     r_1 = aten.relu(mm); d = aten.threshold_backward(g, r_1, 0)

The new joint graph holds one node per entry of the schedule, in its order, and views copied beside
their base at each use; ``split.py`` makes forward and backward of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from recut.partitioners.schedule import Schedule
from recut.passes import _torch, costs, rules
from recut.passes.capture import Capture
from recut.passes.prepare import exact_copy

aten = torch.ops.aten


class _Emitter:
    """Emits a schedule into a new graph; ``env`` maps a joint-graph node to its latest copy."""

    def __init__(self, joint: fx.GraphModule, captured: Capture, schedule: Schedule) -> None:
        self.joint = joint
        self.captured = captured
        self.schedule = schedule
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.views: dict[tuple[Any, ...], fx.Node] = {}
        self.in_forward: set[fx.Node] = set()
        self.phase = "forward"
        self.last_kernel: fx.Node | None = None  # the latest op that does not fuse
        twice = set(schedule.recomputed(captured.problem))
        self.replayed = {i for i in twice if captured.problem.ops[i].random}
        self.states: dict[int, fx.Node] = {}
        self.kept = _kept(captured)
        self.ops: dict[str, int] = {}
        self.effects: dict[str, set[str]] = {"forward": set(), "backward": set()}

    def arg(self, node: fx.Node) -> fx.Node:
        """Return what stands for a node of the joint graph at this moment."""
        if node not in self.captured.views:
            return self.env[node]
        key = (node, self.phase, *(self.arg(n) for n in node.all_input_nodes))
        if key not in self.views:
            self.views[key] = self.copy(node)
        return self.views[key]

    def copy(self, node: fx.Node) -> fx.Node:
        """Copy a node of the joint graph to this place."""
        new = self.graph.node_copy(node, self._reader(node))
        if self.phase == "backward" and new.meta.get("partitioner_tag") == "must_be_in_forward":
            new.meta["partitioner_tag"] = "is_backward"
        self._record(new)
        return new

    def _stay_apart(self, add: fx.Node) -> bool:
        """Keep a matmul that ran before other kernels out of the sum that reads it.

        Inductor turns the sum of a matmul and something into one ``addmm`` at the place of the sum.
        Where a gradient is summed at the end (a tied embedding), both operands of the matmul would
        live until then. A copy in between hides the pair and is computed within the sum. Returns
        whether that leaves a sum that no library computes.
        """
        matmuls = [n for n in add.all_input_nodes if n.target is aten.mm.default]
        # Inductor leaves complex numbers to eager's own sum.
        earlier = [
            n for n in matmuls if n is not self.last_kernel and not n.meta["val"].is_complex()
        ]
        for n in earlier:
            with self.graph.inserting_before(add):
                copy = exact_copy(self.graph, n)
            self._record(copy)
            add.replace_input_with(n, copy)
        return bool(earlier) and earlier == matmuls

    def _own_storage(self, cat: fx.Node) -> None:
        """Keep the inputs of a concatenation out of its result.

        Inductor writes an input straight into its slice of the result. The result is then allocated
        when the first input is made, and lives as long as any of them: a saved skip connection
        holds the whole of it. Inductor computes the copy while it writes the slice.
        """
        inputs: Sequence[fx.Node] = cat.args[0]  # type: ignore[assignment]
        copies = []
        for n in inputs:
            val = n.meta.get("val")
            if not isinstance(val, torch.Tensor) or val.is_complex():
                copies.append(n)  # Inductor leaves complex numbers to eager's own concatenation
                continue
            with self.graph.inserting_before(cat):
                own = self._channels_last(n) if val.dim() == 4 else exact_copy(self.graph, n)
            self._record(own)
            copies.append(own)
        cat.args = (copies, *cat.args[1:])

    def _channels_last(self, node: fx.Node) -> fx.Node:
        """Copy an image; Inductor gives a concatenation the layout that its inputs' metadata show.

        A clone into another layout is no clone that Inductor drops.
        """
        if not self.captured.channels_last:
            return exact_copy(self.graph, node)
        last = torch.channels_last
        new = self.graph.call_function(aten.clone.default, (node,), {"memory_format": last})
        new.meta = {"val": node.meta["val"].contiguous(memory_format=last)}
        return new

    def _record(self, new: fx.Node) -> None:
        if self.phase == "forward":
            self.in_forward.add(new)

    def op(self, i: int) -> None:
        """Emit one entry of the schedule with the getitems that hold its results."""
        node = self.captured.op_nodes[i]
        self.env[node] = self._replay(i, node) if i in self.replayed else self.copy(node)
        self.ops[self.env[node].name] = i
        written = i in self.kept[self.phase]
        if self.captured.problem.compiler == "inductor":
            if node.target is aten.cat.default:
                self._own_storage(self.env[node])
            elif node.target is aten.add.Tensor:
                apart = self._stay_apart(self.env[node])
                written |= apart and not self.captured.problem.fuses[i]
        if not self.captured.problem.fuses[i]:
            self.last_kernel = self.env[node]
        if node.is_impure() or self.captured.problem.ops[i].random:
            self.effects[self.phase].add(self.env[node].name)
        if written:
            self.env[node] = self._written(node)
        self._getitems(node)

    def _getitems(self, node: fx.Node) -> None:
        for user in node.users:
            if user.target is operator.getitem and user not in self.captured.views:
                self.env[user] = self.copy(user)
                self._getitems(user)

    def _call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], val: Any
    ) -> fx.Node:
        new = self.graph.call_function(target, args, kwargs)
        new.meta["val"] = val
        self._record(new)
        return new

    def _replay(self, i: int, node: fx.Node) -> fx.Node:
        """Emit a random op that saves its generator's state, or one that replays it."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._reader(node))
        val = node.meta["val"]
        if self.phase == "backward":
            assert i in self.states, f"{node} is replayed before it has run"
            call = (self.states[i], node.target, *args)
            new = self._call(_torch.run_with_rng_state, call, kwargs, val)
        else:
            state_val = _state_like(val)
            both = self._call(
                _torch.run_and_save_rng_state, (node.target, *args), kwargs, (state_val, val)
            )
            self.states[i] = self._call(operator.getitem, (both, 0), {}, state_val)
            new = self._call(operator.getitem, (both, 1), {}, val)
        new.meta = {**node.meta, "val": val}
        return new

    def _reader(self, node: fx.Node) -> Callable[[fx.Node], fx.Node]:
        """Return what gives a node its arguments: as they are, or in the joint graph's layout.

        Libraries draw in the order of memory, which Inductor chooses for each graph anew: a forward
        and a backward that choose differently would draw the same numbers for other places. Fused
        attention draws by place.
        """
        draws = rules.is_random(node) and not rules.has_dropout_argument(node)
        under_inductor = self.captured.problem.compiler == "inductor"
        return self._laid_out if draws and under_inductor else self.arg

    def _laid_out(self, node: fx.Node) -> fx.Node:
        """Return an argument in the order of strides that the joint graph shows."""
        given = self.arg(node)
        val = given.meta.get("val")
        if not isinstance(val, torch.Tensor) or val.dim() < 2:
            return given
        return self._in_order_of(given, val)

    def _written(self, node: fx.Node) -> fx.Node:
        """Return an op's result as a buffer of its own, images in the layout that the net has."""
        given = self.env[node]
        val = given.meta["val"]
        if val.dim() == 4 and self.captured.channels_last:
            return self._in_order_of(given, val.contiguous(memory_format=torch.channels_last))
        return self._in_order_of(given, val)

    def _in_order_of(self, given: fx.Node, val: torch.Tensor) -> fx.Node:
        """Have Inductor write a tensor down in the order of ``val``'s strides."""
        # Only their order counts, which a hint has too.
        strides = [costs.hint(s) for s in val.stride()]
        return self._call(_torch.force_stride_order, (given, strides), {}, val)

    def emit(self) -> fx.GraphModule:
        """Return the joint graph that runs the schedule."""
        for n in self.joint.graph.nodes:
            if n.op in ("placeholder", "get_attr"):
                self.env[n] = self.graph.node_copy(n, lambda x: self.env[x])
                if not (n.op == "placeholder" and _is_backward_input(n)):
                    self.in_forward.add(self.env[n])
        for i in self.schedule.forward:
            self.op(i)
        output = self.joint.graph.output_node()
        flat: Sequence[Any] = output.args[0]  # type: ignore[assignment]
        k = self.captured.num_forward_outputs
        forward = [self.arg(n) if isinstance(n, fx.Node) else n for n in flat[:k]]
        self.phase = "backward"
        for i in self.schedule.backward:
            self.op(i)
        backward = [self.arg(n) if isinstance(n, fx.Node) else n for n in flat[k:]]
        new = self.graph.output((*forward, *backward))
        new.meta = dict(output.meta)
        return _torch.make_graph_module(self.joint, self.graph)


def _kept(captured: Capture) -> dict[str, frozenset[int]]:
    """Return by phase the ops whose result Inductor is to write down where it is made.

    It would compute it inside a kernel that reads it, and hold all that it is made of until that
    one runs, later in the backward or at its end.
    """
    problem = captured.problem
    if problem.compiler != "inductor":
        return dict.fromkeys(("forward", "backward"), frozenset())
    held = problem.pace.held
    late = [i for i in held if costs.constant_under(captured.op_nodes[i]) is not None]
    summed = _summed(captured)
    backward = (
        summed | problem.written | _fused_makers(captured, (v for i in late for v in held[i]))
    )
    return {"forward": summed, "backward": backward}


def _summed(captured: Capture) -> frozenset[int]:
    """Return the sums over a batch of a few, and what they read that a library call reads too.

    A sum's summands are as many times as large. What the call reads is a buffer, but not yet one
    where a sum is taken of it before.
    """
    problem = captured.problem
    sums = frozenset(i for i, n in enumerate(captured.op_nodes) if costs.is_unrolled(n))
    read = {v for i in sums for v in problem.ops[i].inputs}
    shared = (v for v in read if not all(problem.fuses[i] for i in problem.readers[v]))
    return sums | _fused_makers(captured, shared)


def _fused_makers(captured: Capture, values: Iterable[int]) -> frozenset[int]:
    """Return the ops that make some values, each as its only one, where these may fuse."""
    problem = captured.problem
    makers = {problem.values[v].producer for v in values} - {-1}
    nodes = captured.op_nodes
    single = (i for i in makers if isinstance(nodes[i].meta.get("val"), torch.Tensor))
    return frozenset(i for i in single if problem.fuses[i])


def _is_backward_input(node: fx.Node) -> bool:
    return bool(_torch.is_tangent(node) or _torch.is_bwd_seed_offset(node))


def _state_like(val: Any) -> torch.Tensor:
    """Return a fake tensor with the shape of the generator state of ``val``'s device."""
    first = costs.tensors(val)[0]
    device = first.device
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    mode = getattr(first, "fake_mode", None)
    return state if mode is None else mode.from_tensor(state)


@dataclass(frozen=True)
class Emission:
    """A joint graph that runs a schedule.

    Attributes:
        module: the graph.
        forward: its nodes that run in the forward, and what the forward takes.
        crossing: those of them that the backward reads, in their order.
        ops: op index by name of the node that stands for an entry of the schedule.
        effects: by phase the names of the nodes that stay though nobody reads them.
    """

    module: fx.GraphModule
    forward: frozenset[fx.Node]
    crossing: tuple[fx.Node, ...]
    ops: dict[str, int]
    effects: dict[str, set[str]]


def emit(joint: fx.GraphModule, captured: Capture, schedule: Schedule) -> Emission:
    """Return the joint graph that runs ``schedule``."""
    emitter = _Emitter(joint, captured, schedule)
    module = emitter.emit()
    forward = frozenset(emitter.in_forward)
    crossing: set[fx.Node] = set()
    for n in module.graph.nodes:
        if n in forward:
            continue
        reads = n.all_input_nodes
        if n.op == "output":
            reads = [a for a in n.args[0][captured.num_forward_outputs :] if isinstance(a, fx.Node)]
        crossing.update(a for a in reads if a in forward and a.op != "get_attr")
    ordered = tuple(n for n in module.graph.nodes if n in crossing)
    return Emission(module, forward, ordered, emitter.ops, emitter.effects)
