"""Which nodes are views: their results lie in another node's storage."""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import torch
from torch import fx

from recut.passes import costs

aten = torch.ops.aten

# Views by behaviour that their schema does not show: Inductor and eager make no copy.
_UNMARKED_VIEWS = {aten._unsafe_view, torch.ops.prims.broadcast_in_dim}


def is_view(node: fx.Node) -> bool:
    """Return whether a node's result lies in the storage of its first argument."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        base = node.args[0]
        return isinstance(base, fx.Node) and is_view(base)
    if costs.packet(node) is aten.reshape:
        return _reshape_is_view(node)
    return _is_view(node.target)


@cache
def _is_view(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target.overloadpacket in _UNMARKED_VIEWS:
        return True
    returns = target._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def _reshape_is_view(node: fx.Node) -> bool:
    base = node.args[0]
    val = base.meta.get("val") if isinstance(base, fx.Node) else None
    return isinstance(val, torch.Tensor) and val.is_contiguous()


def base_of(node: fx.Node) -> fx.Node:
    """Return the node that owns the storage which a view (or getitem) shows."""
    while is_view(node):
        base = node.args[0]
        assert isinstance(base, fx.Node), f"{node} is a view of {base!r}"
        node = base
    return node


def op_of(node: fx.Node) -> fx.Node:
    """Return the multi-output op behind (nested) getitems, or the node itself."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
