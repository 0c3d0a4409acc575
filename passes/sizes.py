"""Which symbols the sizes of a graph's tensors are made of, and which inputs they are sizes of."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from recut.partitioners.problem import Size
from recut.passes.costs import hint, tensors


def sizes_of(graph: fx.Graph) -> tuple[Size, ...]:
    """Return the symbols of a joint graph's inputs, in their order.

    Sizes that only running can tell (of ``nonzero`` and its like) are none of them: nobody can
    choose those.
    """
    found: dict[str, Size] = {}
    for n in graph.find_nodes(op="placeholder"):
        val = n.meta.get("val")
        for size in (val, *(s for t in tensors(val) for s in t.shape)):
            if isinstance(size, torch.SymInt):
                for symbol in sorted(size.node.expr.free_symbols, key=str):
                    if str(symbol) not in found and _is_backed(size, symbol):
                        found[str(symbol)] = _size(size, symbol)
    return tuple(found.values())


def places_of(graph: fx.Graph) -> dict[str, tuple[int, int | None]]:
    """Return where a call of Dynamo's graph shows what each symbol stands for.

    By symbol the number of an input, and which of its dimensions; None where it is the input.
    """
    found: dict[str, tuple[int, int | None]] = {}
    for k, node in enumerate(graph.find_nodes(op="placeholder")):
        value = node.meta.get("example_value", node.meta.get("val"))
        if isinstance(value, torch.SymInt):
            found[str(value.node.expr)] = (k, None)
        elif isinstance(value, torch.Tensor):
            lengths: list[Any] = list(value.shape)
            for d, length in enumerate(lengths):
                if isinstance(length, torch.SymInt):
                    found.setdefault(str(length.node.expr), (k, d))
    return found


def _is_backed(size: torch.SymInt, symbol: Any) -> bool:
    return not size.node.shape_env.is_unbacked_symint(symbol)


def _size(size: torch.SymInt, symbol: Any) -> Size:
    env = size.node.shape_env
    sources = env.var_to_sources.get(symbol) or [None]
    name = getattr(sources[0], "name", "")
    text = str(name() if callable(name) else name)  # a method before torch 2.12
    shown = re.sub(r"\bL\['(\w+)'\]", r"\1", text)
    return Size(str(symbol), hint(env.create_symintnode(symbol, hint=None)), shown)
