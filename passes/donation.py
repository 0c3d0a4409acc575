"""Saved tensors that a backward may write over, though its graph may be kept for another one.

torch calls them donated: a saved tensor that nobody else sees may be overwritten by the backward
that reads it last. It donates where it knows, while the first backward runs, that autograd will not
keep the graph, and every later backward has to keep to that (``retain_graph``). Here a backward is
compiled before it runs. So its code asks autograd each time, and works on copies where the graph is
kept. What is donated lives in the tracing context only while the backward is compiled: torch
refuses to keep the graph of a backward that it takes for donating.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.multiprocessing.reductions import StorageWeakRef

from recut.passes import _torch
from recut.passes.costs import tensors

# What autograd answers where no backward runs is that the graph is kept.
_KEPT = "torch._C._autograd._get_current_graph_task_keep_graph()"

# Of any layout, with its strides: the kernels are made for them.
_COPY = "torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)"


@contextmanager
def donated(gm: fx.GraphModule) -> Iterator[frozenset[str]]:
    """Let Inductor write over what a backward may, inside the block; nothing is donated behind it.

    Gives the names of the placeholders that are donated.
    """
    context = _torch.TracingContext.try_get()
    allowed: list[int] | None = getattr(context and context.fw_metadata, "bw_donated_idxs", None)
    if not allowed:
        yield frozenset()
        return
    names = [n.name for n in gm.graph.find_nodes(op="placeholder")]
    mine = [i for i in _alone(gm) if i in allowed] if _asks(gm) else []
    allowed[:] = mine  # the list is shared with what runs the backward
    try:
        yield frozenset(names[i] for i in mine)
    finally:
        allowed.clear()


def _asks(gm: fx.GraphModule) -> bool:
    """Return whether the code that is generated can ask autograd each time.

    A recorded CUDA graph does what it did first, and generated C++ knows no autograd.
    """
    config = _torch.inductor_config
    found = (t for n in gm.graph.nodes for t in tensors(n.meta.get("val")))
    recorded = config.triton.cudagraphs and any(t.is_cuda for t in found)
    return not (recorded or config.cpp_wrapper)


def _alone(gm: fx.GraphModule) -> list[int]:
    """Return the places of the placeholders that share their storage with no other one."""
    given = enumerate(n.meta.get("val") for n in gm.graph.find_nodes(op="placeholder"))
    storages = {
        i: StorageWeakRef(t.untyped_storage())  # type: ignore[no-untyped-call, unused-ignore]
        for i, t in given
        if isinstance(t, torch.Tensor) and t.layout is torch.strided
    }
    count = Counter(storages.values())
    return [i for i, storage in storages.items() if count[storage] == 1]


def copy_where_kept(names: Iterable[str]) -> None:
    """Have the code that Inductor is generating work on copies of what it writes over.

    Where autograd keeps the graph, that is.

    Args:
        names: what is donated.
    """
    wrapper: Any = _torch.V.graph.wrapper_code
    over = sorted(set(names).intersection(wrapper.reuses.values()))
    if over:
        them = "".join(f"{name}, " for name in over)
        wrapper.lines.insert(0, f"if {_KEPT}: {them}= ({_COPY} for t in ({them}))")
