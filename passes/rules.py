"""Which ops may run twice: the refusals, each a small pure function that returns its reason.

When in doubt an op must be saved: a wrong gradient is worse than any memory saved.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from recut.partitioners.problem import Rule
from recut.passes import _torch, costs
from recut.passes.views import base_of, is_view, op_of

aten = torch.ops.aten
prims = torch.ops.prims

# A discrete decision: two compilations of what feeds it may differ in the last bit and decide
# differently, and the gradient follows the decision (pytorch/pytorch#186572).
_DECISIONS = {
    aten.argmax, aten.argmin, aten.argsort, aten.topk, aten.sort, aten.kthvalue, aten.mode,
    aten.median,
    aten.nanmedian, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.multinomial,
    aten.nonzero, aten.unique_consecutive, aten._unique2, aten.searchsorted, aten.bucketize,
    prims._low_memory_max_pool_with_offsets, aten.adaptive_max_pool2d,
}  # fmt: skip

# What a gradient compares with its own input, to find where it was taken.
_EXTREMES = {
    aten.amax, aten.amin, aten.max, aten.min, aten.aminmax, aten.median, aten.nanmedian,
}  # fmt: skip

# Inductor's draw of seeds: a few bytes that make every random op a pure function.
_SEEDS = {"inductor_seed", "inductor_seeds"}


def source_of(node: fx.Node) -> str:
    """Return the user's innermost source line of a node as ``file:line``, or ``""``."""
    return _innermost(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=4096)
def _innermost(trace: str) -> str:
    lines = [x.strip() for x in trace.splitlines() if x.strip().startswith("File ")]
    if not lines:
        return ""
    parts = lines[-1].split(", ")
    if len(parts) < 2:
        return ""
    name = parts[0].removeprefix("File ").strip('"').rsplit("/", 1)[-1]
    return f"{name}:{parts[1].removeprefix('line ')}"


def module_of(node: fx.Node) -> str:
    """Return the path of the innermost module that a node is of, or ``""``."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return _path(path)


@lru_cache(maxsize=4096)
def _path(text: str) -> str:
    """Return ``blocks.3.attn`` for what Dynamo calls ``L['self'].blocks[3].attn`` or the like."""
    inner = re.sub(r"^L\['\w+'\]\.?", "", text)
    inner = re.sub(r"_modules\['(\w+)'\]", r"\1", inner)
    return re.sub(r"\['?(\w+)'?\]", r".\1", inner).strip(".")


def annotated_budget(joint: fx.GraphModule) -> float | None:
    """Return the least budget that the user wrote into a graph by torch's own annotation.

    That is ``torch.autograd.graph.region_activation_memory_budget`` (since torch 2.13): a ratio,
    which torch takes for a whole graph as well; None where there is none.
    """
    found = [
        node.meta["custom"].get("_region_activation_memory_budget")
        for part in joint.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
        if isinstance(node.meta.get("custom"), dict)
    ]
    return min((budget for budget in found if isinstance(budget, float)), default=None)


def is_random(node: fx.Node) -> bool:
    """Return whether running a node draws from a generator.

    Attention carries the tag whatever its dropout; at probability 0 it draws nothing.
    """
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded not in tags or _is_seed(node):
        return False
    k = _place_of_dropout(node)
    if k is not None:
        given = node.args[k] if k < len(node.args) else node.kwargs.get("dropout_p", 0.0)
        return bool(given != 0.0)
    return "inductor" not in str(node.target)


def has_dropout_argument(node: fx.Node) -> bool:
    """Return whether a node is a fused op with dropout inside (attention)."""
    return _place_of_dropout(node) is not None


def _place_of_dropout(node: fx.Node) -> int | None:
    schema = getattr(node.target, "_schema", None)
    names = [arg.name for arg in schema.arguments] if schema else []
    return names.index("dropout_p") if "dropout_p" in names else None


def _is_seed(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "").split(".")[0] in _SEEDS


def _refuse_tagged(node: fx.Node) -> str:
    if node.meta.get("recompute") == CheckpointPolicy.MUST_SAVE:
        return _at("tagged MUST_SAVE", node)
    if any(
        u.meta.get("recompute") == CheckpointPolicy.MUST_SAVE
        for u in node.users
        if u.target is operator.getitem
    ):
        return _at("a result is tagged MUST_SAVE", node)
    return ""


def _refuse_symbolic(node: fx.Node) -> str:
    if _torch.is_sym_node(node) or isinstance(node.meta.get("val"), (int, float, bool)):
        return "a symbolic size"
    if _torch.is_opaque_node(node) or isinstance(node.meta.get("val"), _torch.BackwardState):
        return "an opaque object"
    return ""


def _refuse_target(node: fx.Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return f"a higher-order or foreign call ({node.target})"
    if node.target.namespace == "_c10d_functional":
        return "a collective"
    if node.target._schema.is_mutable:
        return "it mutates an input"
    if _is_seed(node):
        return "it draws the seeds of random ops"
    if torch.Tag.data_dependent_output in node.target.tags:
        return "its output depends on data"
    if costs.has_shape_of_data(node):
        return "its shape depends on data"
    return ""


def _refuse_decision(node: fx.Node) -> str:
    if costs.packet(node) in _DECISIONS:
        return "a discrete decision"
    return ""


def _refuse_compared(node: fx.Node) -> str:
    """Refuse an extreme and what it was taken of, where the gradient looks for one in the other.

    Made by two kernels they may differ in the last bit, and the gradient is shared among none.
    """
    for equality in _equalities(node):
        if any(costs.packet(op_of(base_of(n))) in _EXTREMES for n in equality.all_input_nodes):
            return "a gradient compares it with an extreme"
    return ""


def _equalities(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the comparisons for equality that read a node or a view of it."""
    for user in node.users:
        if user.target is aten.eq.Tensor:
            yield user
        elif user.op != "output" and is_view(user):
            yield from _equalities(user)


_REFUSALS: tuple[Callable[[fx.Node], str], ...] = (
    _refuse_tagged,
    _refuse_symbolic,
    _refuse_target,
    _refuse_decision,
    _refuse_compared,
)


def unpriced(target: str) -> str:
    """Return the reason to save what an op of unknown cost makes."""
    return f"no cost is known for {target}"


def _at(text: str, node: fx.Node) -> str:
    source = source_of(node)
    return f"{text} at {source}" if source else text


def rule_of(node: fx.Node, mutated: Collection[Any], priced: bool = True) -> tuple[Rule, str]:
    """Return what may be decided for a forward node, and why.

    Args:
        node: a node of the joint graph that runs in the forward.
        mutated: placeholders that the graph writes to, and views of them.
        priced: whether it is known what running the node takes.
    """
    if any(n in mutated for n in node.all_input_nodes):
        return Rule.MUST_SAVE, "it reads an input that the step mutates"
    if _torch.must_recompute(node) and not _refuse_symbolic(node):
        return Rule.MUST_RECOMPUTE, _at("inside a checkpoint region", node)
    for refuse in _REFUSALS:
        reason = refuse(node)
        if reason:
            return Rule.MUST_SAVE, reason
    if not priced:
        return Rule.MUST_SAVE, unpriced(str(node.target))
    return Rule.MAY_RECOMPUTE, ""
