"""joint graph -> Problem: storages instead of tensors, rules with reasons, prices.

Example, for ``loss = relu(x @ w.t()).sum()``::

    t   = aten.t(w)            a view of an input: no op, no value
    mm  = aten.mm(x, t)        op 0, makes value 2 (x and w are the inputs 0 and 1)
    v   = aten.view(mm, ...)   a view of value 2
    r   = aten.relu(v)         op 1, reads value 2, makes value 3
    s   = aten.sum(r)          op 2 ...
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from recut.partitioners.machine import described
from recut.partitioners.problem import Kind, Op, Phase, Problem, Rule, Value
from recut.passes import _torch, costs, prepare, rules
from recut.passes.prices import Basis, Prices
from recut.passes.sizes import sizes_of
from recut.passes.views import base_of, is_view, op_of
from recut.passes.workspace import workspace_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Capture:
    """A Problem and the nodes that its indices stand for.

    Attributes:
        problem: the planning problem.
        op_nodes: the node of each op.
        value_of: value index of each node that is a storage of its own.
        views: nodes that are views of what ``args`` name; copied beside their base at each use.
        num_forward_outputs: how many of the joint graph's outputs the forward returns.
        device: type of the device that the graph runs on.
        turned: what Inductor turns to channels-last for the graph's convolutions.
        bases: where the price of each op is from.
    """

    problem: Problem
    op_nodes: tuple[fx.Node, ...]
    value_of: dict[fx.Node, int]
    views: frozenset[fx.Node]
    num_forward_outputs: int
    device: str
    turned: frozenset[fx.Node] = frozenset()
    bases: tuple[Basis, ...] = ()

    @property
    def channels_last(self) -> bool:
        """Whether Inductor turns the graph's convolutions to channels-last."""
        return bool(self.turned)


def is_constant(node: fx.Node) -> bool:
    """Return whether Inductor folds a node into its readers: ``full``, ``iota`` and their like.

    They read nothing and never become a buffer where every reader computes element by element or
    writes into a copy of it, so they are copied beside each use like a view.
    """
    return (
        node.op == "call_function"
        and not node.all_input_nodes
        and costs.kind_of(node) is Kind.POINTWISE
        and not rules.is_random(node)
        and _fuses_into_readers(node)
    )


def _fuses_into_readers(node: fx.Node) -> bool:
    for user in node.users:
        if user.op == "output":
            return False
        if costs.constant_under(user) is node:
            continue
        if is_view(user):
            if not _fuses_into_readers(user):
                return False
        elif costs.kind_of(user) not in (Kind.POINTWISE, Kind.REDUCTION):
            return False
    return True


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Have Inductor decide as where there is no oneDNN."""
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    onednn.enabled = False
    try:
        yield
    finally:
        onednn.enabled = before


def channels_last_nodes(graph: fx.Graph, inductor: bool, device: str | None = None) -> set[fx.Node]:
    """Return the nodes that Inductor turns to channels-last for the graph's convolutions.

    Args:
        graph: the joint graph.
        inductor: Inductor compiles it.
        device: type of the device that it will run on; the one that its tensors are on where not
            given.
    """
    owner = graph.owning_module
    if not inductor or owner is None:
        return set()
    # Tensors on a CPU that oneDNN computes with are turned in any case, those on a GPU by how many
    # of its convolutions gain.
    on_cpu = (device or device_of(graph)) == "cpu"
    with nullcontext() if on_cpu else _without_onednn():
        turns = _torch.GraphLowering.decide_layout_opt(owner, is_inference=False)
    return costs.before_convolutions(graph) if turns else set()


class _Builder:
    """Collects values and ops while it walks the joint graph once."""

    def __init__(
        self,
        graph: fx.Graph,
        num_forward_outputs: int,
        inductor: bool,
        prices: Prices,
        device: str,
    ) -> None:
        self.graph = graph
        self.prices = prices
        self.inductor = inductor
        self.device = device
        self.turned = channels_last_nodes(graph, inductor, device)
        self.values: list[Value] = []
        self.value_of: dict[fx.Node, int] = {}
        self.tuple_values: dict[fx.Node, list[int]] = {}
        self.views: set[fx.Node] = set()
        self.op_nodes: list[fx.Node] = []
        outputs = graph.output_node().args[0]
        flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        self.forward_outputs = [n for n in flat[:num_forward_outputs] if isinstance(n, fx.Node)]
        self.backward_outputs = [n for n in flat[num_forward_outputs:] if isinstance(n, fx.Node)]
        self.backward = self._backward_nodes()
        self.mutated = self._mutated_nodes()

    def _backward_nodes(self) -> set[fx.Node]:
        """Nodes that depend on a tangent or are tied to the backward."""
        out: set[fx.Node] = set()
        for n in self.graph.nodes:
            tied = n.op == "placeholder" and (_torch.is_tangent(n) or _torch.is_bwd_seed_offset(n))
            if n.op == "call_function":
                # A draw that autograd's own backward makes keeps its place in the random stream.
                drawn = n.meta.get("partitioner_tag") == "is_backward" and rules.is_random(n)
                tied = drawn or _torch.must_be_in_backward(n)
            if tied or (n.op != "output" and any(a in out for a in n.all_input_nodes)):
                out.add(n)
        return out

    def _mutated_nodes(self) -> set[fx.Node]:
        """Inputs that some op writes to, and every view of them."""
        written: set[fx.Node] = set()
        for n in self.graph.nodes:
            schema = getattr(n.target, "_schema", None)
            if n.op != "call_function" or schema is None or not schema.is_mutable:
                continue
            for k, arg in enumerate(schema.arguments):
                given = n.args[k] if k < len(n.args) else n.kwargs.get(arg.name)
                if (
                    arg.alias_info is not None
                    and arg.alias_info.is_write
                    and isinstance(given, fx.Node)
                ):
                    written.add(base_of(given))
        written.update(prepare.written_inputs(self.graph))
        return {n for n in self.graph.nodes if n.op != "output" and base_of(n) in written}

    def add_value(self, node: fx.Node, producer: int) -> int:
        """Make a value for a node that owns storage."""
        found = costs.tensors(node.meta.get("val"))
        sizes: list[Any] = [self._size(t, node) for t in found]
        size = sum(costs.allocated(costs.hint(s), self.device) for s in sizes)
        symbolic = any(isinstance(s, torch.SymInt) for s in sizes)
        expr = " + ".join(str(getattr(s, "node", s)) for s in sizes) if symbolic else ""
        self.value_of[node] = len(self.values)
        if producer < 0 and (own := self._input_bytes(node)) != size:
            size, expr = own, ""
        store, load = self.prices.access_of(node, size)
        self.values.append(Value(node.name, size, producer, expr, store, load))
        return self.value_of[node]

    def _size(self, tensor: torch.Tensor, node: fx.Node) -> Any:
        """Return the bytes that a tensor's storage takes, a symbol where its sizes are.

        Eager's ``aten.copy`` into a slice makes a tensor with all that lies around the slice;
        Inductor makes its buffers without, and fake tensors know of what lies between only.
        """
        size = tensor.numel() * tensor.dtype.itemsize
        if self.inductor or costs.packet(node) is not aten.copy:
            return size
        given = costs.tensors(node.all_input_nodes[0].meta.get("val"))
        storages: list[Any] = [t.untyped_storage().nbytes() for t in (tensor, *given)]
        return max([size, *storages], key=costs.hint)

    def _input_bytes(self, node: fx.Node) -> int:
        """Return the bytes that an input takes during the step."""
        val = node.meta.get("val")
        if node.op == "placeholder" and _torch.is_tangent(node) and isinstance(val, torch.Tensor):
            # Autograd makes the gradient of a scalar loss itself, between forward and backward.
            return costs.allocated(costs.nbytes(val), self.device) if val.dim() == 0 else 0
        turned = costs.channels_last_copy(node) if node in self.turned else 0
        return costs.allocated(turned, self.device)

    def reads(self, node: fx.Node) -> tuple[int, ...]:
        """Return the values that a node reads, in order and without repeats."""
        return self.behind(node.all_input_nodes)

    def behind(self, nodes: Sequence[fx.Node]) -> tuple[int, ...]:
        """Return the values that some nodes show: a view its base's, and the sizes it is of."""
        out: dict[int, None] = {}
        todo = list(reversed(nodes))
        while todo:
            n = todo.pop()
            if is_view(n):
                todo.extend(reversed(n.all_input_nodes))
            elif n in self.value_of:
                out[self.value_of[n]] = None
            else:
                out.update(dict.fromkeys(self.tuple_values.get(op_of(n), ())))
        return tuple(out)

    def collect(self) -> list[tuple[fx.Node, tuple[int, ...], tuple[int, ...], int]]:
        """Walk the graph; return (node, inputs, outputs, workspace) of each op."""
        found: list[tuple[fx.Node, tuple[int, ...], tuple[int, ...], int]] = []
        for n in self.graph.nodes:
            if n.op in ("placeholder", "get_attr"):
                self.add_value(n, -1)
            elif n.op != "call_function":
                continue
            elif is_view(n) or (self.inductor and is_constant(n)):
                self.views.add(n)
            elif n.target is operator.getitem:
                continue  # made together with its op
            else:
                found.append(self._op(n, len(found)))
        return found

    def _op(self, n: fx.Node, index: int) -> tuple[fx.Node, tuple[int, ...], tuple[int, ...], int]:
        inputs = self.reads(n)
        schema = getattr(n.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            # The result of an in-place op is its argument's storage: no value of its own.
            base = n.args[0]
            if isinstance(base, fx.Node) and base_of(base) in self.value_of:
                self.value_of[n] = self.value_of[base_of(base)]
            return n, inputs, (), 0
        leaves = _getitem_leaves(n)
        if leaves is None:
            return n, inputs, (self.add_value(n, index),), 0
        out = tuple(self.add_value(g, index) for g in leaves)
        self.tuple_values[n] = list(out)
        made = map(costs.nbytes, costs.tensors(n.meta.get("val")))
        unread = sum(costs.allocated(size, self.device) for size in made)
        unread -= sum(self.values[v].bytes for v in out)
        return n, inputs, out, max(0, unread)


def _getitem_leaves(node: fx.Node) -> list[fx.Node] | None:
    """Return the getitems that hold a multi-output op's results; None for a single output."""
    getitems = [u for u in node.users if u.target is operator.getitem]
    if not isinstance(node.meta.get("val"), (tuple, list)) and not (
        getitems and len(getitems) == len(node.users)
    ):
        return None
    out: list[fx.Node] = []
    for g in getitems:
        nested = _getitem_leaves(g) if isinstance(g.meta.get("val"), (tuple, list)) else None
        out.extend([g] if nested is None else nested)
    return out


def device_of(graph: fx.Graph) -> str:
    """Return the type of the device that a graph's tensors are on: a GPU's if any is on one."""
    for n in graph.nodes:
        for t in costs.tensors(n.meta.get("val")):
            if t.device.type not in ("cpu", "meta"):
                return str(t.device.type)
    return "cpu"


def capture(
    joint: fx.GraphModule,
    *,
    num_fwd_outputs: int,
    compiler: str = "inductor",
    prices: Prices | None = None,
    device: str | None = None,
) -> Capture:
    """Read a joint graph.

    Args:
        joint: the joint graph after Inductor's own joint-graph passes; it is not changed.
        num_fwd_outputs: how many of its outputs the forward returns.
        compiler: "inductor" or "eager": who will run the result.
        prices: what ops cost; by a built-in description of the device where not given.
        device: type of the device that the graph will run on, which decides what its compiler and
            its libraries allocate; the one that its tensors are on where not given.
    """
    inductor = compiler == "inductor"
    device = device or device_of(joint.graph)
    prices = prices or Prices(described(device, ""), inductor=inductor)
    b = _Builder(joint.graph, num_fwd_outputs, inductor, prices, device)
    found = b.collect()
    index = {n: i for i, (n, *_) in enumerate(found)}
    forward = _forward_ops(b, found, index)
    bases = tuple(prices.basis_of(n, n in b.turned) for n, *_ in found)
    ops: list[Op] = []
    for i, (n, inputs, outputs, workspace) in enumerate(found):
        backward = n in b.backward
        phase = Phase.BACKWARD if backward else Phase.FORWARD if i in forward else Phase.EITHER
        rule, reason = (
            (Rule.MAY_RECOMPUTE, "")
            if backward
            else rules.rule_of(n, b.mutated, bases[i] is not Basis.UNKNOWN)
        )
        if phase is Phase.EITHER and rule is Rule.MAY_RECOMPUTE:
            makers = (b.values[v].producer for v in inputs)
            rule, reason = _region(ops[p] for p in makers if p >= 0)
        joined = b.inductor and device == "cpu" and joins_matmul(n)
        # What Inductor leaves to a library does not fuse.
        library = joined or (b.inductor and rules.is_random(n))
        kind = Kind.OTHER if library else costs.kind_of(n)
        inplace = joined or (not library and costs.writes_in_place(n))
        ops.append(
            Op(
                name=n.name,
                target=str(n.target),
                inputs=inputs,
                outputs=outputs,
                seconds=0.0 if _torch.is_sym_node(n) else prices.seconds_of(n, n in b.turned),
                arithmetic=prices.arithmetic_of(n) if kind is Kind.POINTWISE else 0.0,
                kind=kind,
                phase=phase,
                rule=rule,
                reason=reason,
                random=not backward and rules.is_random(n),
                heavy=device == "cpu" and costs.is_heavy(n),
                realized=inductor and costs.is_drawn(n),
                # The C++ backend draws them in one loop, and reduces in two.
                flat=inductor and device == "cpu" and costs.is_drawn(n),
                inplace=is_wait(n) or (b.inductor and inplace),
                workspace=costs.allocated(
                    workspace + workspace_of(n, bool(b.turned), device), device
                ),
                source=rules.source_of(n),
                module=rules.module_of(n),
            )
        )
    problem = Problem(
        tuple(ops),
        tuple(b.values),
        b.behind(b.forward_outputs),
        b.behind([*b.backward_outputs, *_loss_gradients(b)]),
        compiler,
        sizes_of(joint.graph),
    )
    return Capture(
        problem,
        tuple(n for n, *_ in found),
        b.value_of,
        frozenset(b.views),
        num_fwd_outputs,
        device,
        frozenset(b.turned),
        bases,
    )


def _region(makers: Iterable[Op]) -> tuple[Rule, str]:
    """Return the rule for an op that only the backward needs, by those that make what it reads.

    Saved, it would keep in memory what a checkpoint region of the user's says not to keep.
    """
    for op in makers:
        if op.rule is Rule.MUST_RECOMPUTE:
            return op.rule, op.reason
    return Rule.MAY_RECOMPUTE, ""


def joins_matmul(node: fx.Node) -> bool:
    """Return whether Inductor makes one ``addmm`` of a sum and the matmul that it alone reads.

    So a gradient that several matmuls add to (a cell's weight, used at every step) is summed up as
    it goes. ``rewrite.py`` keeps the two apart where another kernel stands between them. This is of
    a CPU: on a GPU Inductor prefers to add in the reader's kernel
    (``should_prefer_unfused_addmm``).
    """
    if node.target is not aten.add.Tensor or node.kwargs:
        return False
    one, two = node.args[:2]
    if not isinstance(one, fx.Node) or not isinstance(two, fx.Node) or one is two:
        return False
    a, b = one.meta.get("val"), two.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    if not any(n.target is aten.mm.default and len(n.users) == 1 for n in (one, two)):
        return False
    if a.dtype != b.dtype or a.dim() != b.dim():
        return False
    # Without a guard on symbolic sizes: those that only running can tell allow none.
    sizes = zip(a.shape, b.shape, strict=True)
    return all(_torch.statically_known_true(x == y) for x, y in sizes)


def is_wait(node: fx.Node) -> bool:
    """Return whether a node waits for a collective: its result is the collective's own tensor."""
    return getattr(node.target, "__name__", "") == "wait_tensor.default"


def _loss_gradients(b: _Builder) -> list[fx.Node]:
    """Return the gradients of scalar losses: autograd holds them until the backward has ended."""
    placeholders = b.graph.find_nodes(op="placeholder")
    return [n for n in placeholders if _torch.is_tangent(n) and b.values[b.value_of[n]].bytes]


def _forward_ops(
    b: _Builder, found: Sequence[tuple[Any, ...]], index: dict[fx.Node, int]
) -> set[int]:
    """Return the ops that the forward has to run: for its outputs and for its effects."""
    todo = [b.values[v].producer for v in b.behind(b.forward_outputs)]
    todo += [
        index[n]
        for n, _, _, _ in found
        if n not in b.backward and (n.is_impure(impure_random=False) or rules.is_random(n))
    ]
    seen: set[int] = set()
    while todo:
        i = todo.pop()
        if i < 0 or i in seen:
            continue
        seen.add(i)
        todo.extend(b.values[v].producer for v in found[i][1])
    return seen
