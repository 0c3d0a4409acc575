"""What one operation costs: FLOPs by torch's formulas, bytes moved, and the roofline over both."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import fx

from recut.partitioners.machine import Machine
from recut.partitioners.problem import Kind
from recut.passes import _torch

aten = torch.ops.aten
prims = torch.ops.prims

# Memory passes over inputs and outputs that a kernel of its own makes, relative to the roofline.
_REDUCTION_SHARE = 0.5
_OTHER_SHARE = 1.0

_REDUCTIONS = {
    aten.sum, aten.mean, aten.var, aten.var_mean, aten.std, aten.amax, aten.amin, aten.max,
    aten.min,
    aten.prod, aten.any, aten.all, aten.argmax, aten.argmin, aten._softmax, aten._log_softmax,
    aten.native_layer_norm, aten.native_group_norm, aten.native_batch_norm, aten.cumsum,
    aten._native_batch_norm_legit_functional, aten._native_batch_norm_legit, aten.logsumexp,
    aten._fused_rms_norm, aten.linalg_vector_norm, prims.var, prims.sum,
    prims.prepare_softmax_online,
}  # fmt: skip

# Reductions that Inductor unrolls where they are of few numbers.
_UNROLLED = {aten.sum, aten.mean, aten.amax, aten.amin, aten.prod, aten.any, prims.sum}

# Ops that Inductor turns into index arithmetic inside a pointwise kernel.
_INDEXED = {
    aten.embedding, aten.index, aten._unsafe_index, aten._unsafe_masked_index, aten.gather,
    aten.index_select, aten.constant_pad_nd, aten.flip,
    aten.select_scatter, aten.slice_scatter, aten.roll, aten.triu, aten.tril, aten.clone, aten.copy,
    aten._to_copy, aten.where, aten.full, aten.full_like, aten.zeros, aten.zeros_like, aten.ones,
    aten.ones_like, aten.empty, aten.empty_like, aten.arange, aten.scalar_tensor,
    aten.lift_fresh_copy,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.one_hot, aten.repeat,
    aten.contiguous,
    aten.reshape, aten.upsample_nearest2d, prims.iota, prims.convert_element_type,
    aten.native_dropout, aten.bernoulli, aten.rand_like, aten.randn_like, aten.rand, aten.randn,
    aten.eye, aten.tril_indices, aten.nll_loss_forward,
    prims._low_memory_max_pool_offsets_to_indices,
}  # fmt: skip

# Those of them that read an element from another place than they write one to.
_MOVES = {
    aten.embedding, aten.index, aten._unsafe_index, aten._unsafe_masked_index, aten.gather,
    aten.index_select, aten.constant_pad_nd, aten.flip, aten.select_scatter, aten.slice_scatter,
    aten.roll, aten.repeat, aten.upsample_nearest2d,
}  # fmt: skip

# torch/_inductor/ir.py, StorageBox.should_realize_on_reuse.
_HEAVY = {
    aten.exp, aten.log, aten.log10, aten.log1p, aten.log2, aten.sigmoid, aten.tanh, aten.silu,
}  # fmt: skip

# Inductor's own random ops, pure functions of a seed, which it registers when it is imported.
_DRAWN = {"inductor_random", "inductor_randint"}

# Ops that run as kernels of their own and are bound by memory traffic.
_COPIES = {
    aten.cat, aten.stack, aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d,
    aten.adaptive_max_pool2d, aten.upsample_bilinear2d, aten.upsample_nearest1d,
    aten.upsample_bicubic2d,
    aten.reflection_pad1d, aten.reflection_pad2d, aten.replication_pad2d, aten.im2col, aten.col2im,
    prims._low_memory_max_pool_with_offsets, aten.index_put, aten.scatter, aten.scatter_add,
    aten.upsample_nearest2d, aten.avg_pool3d, aten.max_pool3d_with_indices, aten.grid_sampler_2d,
}  # fmt: skip

# Ops that Inductor lowers to a copy of their first input and a kernel that writes into the copy.
_WRITERS = {
    aten.index_put, aten._unsafe_index_put, aten._unsafe_masked_index_put_accumulate, aten.scatter,
    aten.scatter_add, aten.scatter_reduce,
}  # fmt: skip


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(_torch.sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    flops = _torch.sdpa_backward_flop_count(grad, query, key, value)  # type: ignore[no-untyped-call]
    return int(flops)


# Formulas that torch's registry lacks. A missing formula must never mean cheap: CPU flash attention
# looked all but free without one (docs/design.md).
OWN_FLOPS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in a node's ``val``, nested tuples and lists included."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors(v)]
    return []


def hint(size: Any) -> int:
    """Return the number that a size stands for while compiling; 4096 for what nobody knows."""
    return (
        int(size) if isinstance(size, int) else int(_torch.optimization_hint(size, fallback=4096))
    )


def family_of(node: fx.Node) -> str:
    """Return the family of library calls (``machine.FAMILIES``) that a node belongs to, or ""."""
    name = packet(node).__name__ if kind_of(node) is Kind.COMPUTE else ""
    if packet(node) in (aten.bmm, aten.baddbmm):
        return "batched matmul"
    stem = next((s for s in ("attention", "convolution") if s in name), "")
    return f"{stem} backward" if stem and "backward" in name else stem


# The function that a pointwise op computes (``machine.FUNCTIONS``).
_FUNCTIONS = {
    aten.exp: "exp", aten.exp2: "exp", aten.expm1: "exp", aten.log: "log", aten.log1p: "log",
    aten.log2: "log", aten.tanh: "tanh", aten.sigmoid: "sigmoid", aten.silu: "sigmoid",
    aten.erf: "erf", aten.gelu: "erf", aten.sin: "sin", aten.cos: "sin",
    aten.native_dropout: "uniform", aten.bernoulli: "uniform", aten.rand_like: "uniform",
    aten.rand: "uniform", aten.randn: "normal", aten.randn_like: "normal",
}  # fmt: skip


def arithmetic_of(node: fx.Node, machine: Machine) -> float:
    """Return what computing a pointwise node takes beside reading and writing, in seconds."""
    op = packet(node)
    function = _FUNCTIONS.get(op, "")
    if _name(op) == "inductor_random":
        function = "normal" if node.args[2] == "randn" else "uniform"
    elif op is aten.pow and not isinstance(node.args[1], int | float):
        function = "pow"  # a power of a plain number is a product or a root
    made = tensors(node.meta.get("val")) if function else []
    return machine.function_seconds(function, hint(made[0].numel())) if made else 0.0


def access_of(node: fx.Node, size: int, machine: Machine) -> tuple[float, float]:
    """Return the seconds that a generated kernel takes to write and to read a node's results.

    Inductor's kernels on a CPU pack and unpack truth values one by one.
    """
    masks = [t for t in tensors(node.meta.get("val")) if t.dtype is torch.bool]
    count = sum(hint(t.numel()) for t in masks)
    packing, unpacking = (
        machine.function_seconds(f"bool {way}", count) for way in ("store", "load")
    )
    traffic = size / machine.bandwidth
    return traffic + packing, traffic + unpacking


def nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes at the hint that a tensor's own elements take."""
    return hint(tensor.numel()) * tensor.dtype.itemsize


# torch hands out a GPU's memory in blocks of so many bytes (kMinBlockSize of
# c10/core/CachingDeviceAllocator.h), on a CPU to the byte.
_BLOCK = 512


def allocated(size: int, device: str) -> int:
    """Return the bytes that torch's allocator takes for ``size`` on a type of device."""
    return -(-size // _BLOCK) * _BLOCK if device == "cuda" else size


def constant_under(node: fx.Node) -> fx.Node | None:
    """Return the constant that Inductor makes for an op to write its result into, if it does.

    The gradient of an embedding or of pooling: zeros of its size are never a buffer beside it.
    """
    base = node.args[0] if node.args and packet(node) in _WRITERS else None
    if not isinstance(base, fx.Node) or base.op != "call_function":
        return None
    return base if all(_torch.is_sym_node(n) for n in base.all_input_nodes) else None


def writes_in_place(node: fx.Node) -> bool:
    """Return whether Inductor may write an op's result over an input that it reads last.

    The op computes each element from the one that lies in the same place.
    """
    if (constant := constant_under(node)) is not None:
        # One of sizes that are known is copied beside its use, and is no buffer to write over.
        return bool(constant.all_input_nodes)
    if kind_of(node) is not Kind.POINTWISE or packet(node) in _MOVES:
        return False
    val = node.meta.get("val")
    return any(_lies_like(n.meta.get("val"), val) for n in node.all_input_nodes)


def _lies_like(one: Any, other: Any) -> bool:
    """Return whether two tensors have the same sizes and strides, by their hints."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    if one.dim() != other.dim() or one.layout is not torch.strided:
        return False
    sizes = [(hint(a), hint(b)) for a, b in zip(one.shape, other.shape, strict=True)]
    if any(a != b for a, b in sizes):
        return False
    strides = [(hint(a), hint(b)) for a, b in zip(one.stride(), other.stride(), strict=True)]
    return all(a == b or n == 1 for (a, b), (n, _) in zip(strides, sizes, strict=True))


def packet(node: fx.Node) -> Any:
    """Return the overload packet (``aten.mm``) that a node calls, or its target."""
    return getattr(node.target, "overloadpacket", node.target)


def _name(op: Any) -> str:
    """Return the name of an op, for those that torch knows only once Inductor is imported."""
    return getattr(op, "__name__", "")


def kind_of(node: fx.Node) -> Kind:
    """Return how a node runs."""
    return _kind_of(node.target)


@cache
def _kind_of(target: Any) -> Kind:
    op = getattr(target, "overloadpacket", target)
    if op in OWN_FLOPS or op in _torch.flop_registry:
        return Kind.COMPUTE
    tags = getattr(target, "tags", ())
    if op in _REDUCTIONS:
        return Kind.REDUCTION
    drawn = _name(op) in {*_DRAWN, "inductor_lookup_seed"}
    if op in _INDEXED or drawn or torch.Tag.pointwise in tags or target is operator.getitem:
        return Kind.POINTWISE
    return Kind.OTHER


def is_heavy(node: fx.Node) -> bool:
    """Return whether Inductor keeps a node's result on a CPU where several ops read it."""
    return packet(node) in _HEAVY


def is_unrolled(node: fx.Node) -> bool:
    """Return whether Inductor makes a pointwise op of a reduction, since it adds up so few numbers.

    As torch._inductor.ir.Reduction.create does.
    """
    if packet(node) not in _UNROLLED:
        return False
    made, read = (n.meta.get("val") for n in (node, node.all_input_nodes[0]))
    if not isinstance(made, torch.Tensor) or not isinstance(read, torch.Tensor):
        return False
    few = (
        hint(read.numel()) < hint(made.numel()) * _torch.inductor_config.unroll_reductions_threshold
    )
    return few and hint(made.numel()) > 1


def is_drawn(node: fx.Node) -> bool:
    """Return whether a node draws random numbers, which Inductor writes down whoever reads them."""
    return _name(packet(node)) in _DRAWN


def is_priced(node: fx.Node) -> bool:
    """Return whether the cost of a node is known: only then may it be recomputed."""
    op = packet(node)
    if kind_of(node) is not Kind.OTHER or op in _COPIES:
        return True
    return getattr(node.target, "namespace", "") == "prims" and "inductor" in str(node.target)


def flops_of(node: fx.Node) -> int:
    """Return the FLOPs of a node that has a formula, 0 otherwise."""
    op = packet(node)
    formula = OWN_FLOPS.get(op)
    args, kwargs = concrete_arguments(node)
    if "attention" in _name(op):
        args = _ungrouped(args)
    if formula is not None:
        flops = formula(*[a.shape if isinstance(a, torch.Tensor) else a for a in args])
    elif op in _torch.flop_registry:
        out = concrete(node.meta.get("val"))
        flops = int(_torch.flop_registry[op](*args, **kwargs, out_val=out))
    else:
        return 0
    # The formulas count what a causal mask hides, and kernels skip it.
    return flops // 2 if _is_causal(node) else flops


def _ungrouped(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return attention's arguments with a key and a value for each head of the query.

    torch's formulas refuse those that several heads share (grouped-query attention).
    """

    def wide(a: Any) -> Any:
        if not isinstance(a, torch.Tensor) or a.dim() != 4 or a.shape[1] == heads:
            return a
        return a.new_empty((a.shape[0], heads, *a.shape[2:]), device="meta")

    heads = max(
        (a.shape[1] for a in args if isinstance(a, torch.Tensor) and a.dim() == 4), default=0
    )
    return tuple(map(wide, args))


def _is_causal(node: fx.Node) -> bool:
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    for k, argument in enumerate(arguments):
        if argument.name == "is_causal":
            given = node.args[k] if k < len(node.args) else node.kwargs.get("is_causal")
            return given is True
    return False


def has_shape_of_data(node: fx.Node) -> bool:
    """Return whether a node's shape depends on data: an index of integers only might have."""
    tagged = torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
    return tagged and any(_torch.free_unbacked_symbols(t) for t in tensors(node.meta.get("val")))


def concrete_arguments(node: fx.Node) -> tuple[Any, Any]:
    """Return a call's arguments, tensors without data in the place of nodes."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: concrete(n.meta.get("val")))
    return args, kwargs


def concrete(value: Any) -> Any:
    """Return ``value`` with symbolic sizes replaced by their hints."""
    if isinstance(value, torch.Tensor):
        if all(isinstance(s, int) for s in value.shape):
            return value
        with _torch.disable_current_modes():
            return torch.empty([hint(s) for s in value.shape], dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(concrete(v) for v in value)
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return hint(value) if isinstance(value, torch.SymInt) else 1.0
    return value


def before_convolutions(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that Inductor turns to channels-last for the convolutions behind them.

    After ``GraphLowering.find_nodes_prefer_channels_last``.
    """
    found: set[fx.Node] = set()
    for n in reversed(graph.nodes):
        if packet(n) is aten.convolution or (
            packet(n) is not aten.bmm and any(user in found for user in n.users)
        ):
            found.add(n)
    return found


def channels_last_copy(node: fx.Node) -> int:
    """Return the bytes of the copy that Inductor makes of an input that it turns to channels-last.

    Inductor saves the copy for the backward in the place of the input.
    """
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or val.dim() != 4:
        return 0
    return 0 if val.is_contiguous(memory_format=torch.channels_last) else nbytes(val)


def dtype_name(values: Iterable[torch.Tensor]) -> str:
    """Return the name of the first tensor's dtype ("float32")."""
    for t in values:
        return str(t.dtype).removeprefix("torch.")
    return "float32"


def moved_bytes(node: fx.Node) -> int:
    """Return the bytes that a node reads and writes."""
    around = (node, *node.all_input_nodes)
    return sum(nbytes(t) for n in around for t in tensors(n.meta.get("val")))


def seconds_of(node: fx.Node, machine: Machine) -> float:
    """Return what running a node once more costs, in seconds, by the machine's roofline.

    A pointwise op is priced as it runs: fused into the kernel of its reader, where it costs a
    small share of its traffic and no launch.
    """
    moved = moved_bytes(node)
    kind = kind_of(node)
    if kind is Kind.POINTWISE:
        return machine.fused * moved / machine.bandwidth + arithmetic_of(node, machine)
    if kind is Kind.REDUCTION:
        return machine.launch + _REDUCTION_SHARE * moved / machine.bandwidth
    traffic = _OTHER_SHARE * moved / machine.bandwidth
    if kind is Kind.COMPUTE:
        compute = flops_of(node) / machine.peak_flops(
            dtype_name(tensors(node.meta.get("val"))), family_of(node)
        )
        return machine.launch + max(compute, traffic * 0.5)
    return machine.launch + traffic
