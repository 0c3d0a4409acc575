"""Sums that matmuls add to, written over by the library instead of copied.

``addmm(total, a, b)`` is what Inductor makes of ``total + a @ b``: a weight's gradient that every
step of a recurrent net adds to, an activation's that each of its readers does. Inductor allocates
the result, and the library first copies ``total`` into it. Where nothing else reads ``total`` the
result is ``total`` here, as in eager's ``addmm_``: no copy, and one tensor less in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from recut.passes import _torch

# Matmuls with something that is added, as Inductor calls them from Python.
_ADDING = ("extern_kernels.addmm", "extern_kernels.baddbmm")


def sum_in_place(nodes: Sequence[Any]) -> None:
    """Have matmuls add to what they are the last to read.

    Args:
        nodes: Inductor's scheduler nodes, for which no code has been generated yet.
    """
    config = _torch.inductor_config
    if config.cpp_wrapper or not config.inplace_buffers:
        return
    adding = [n for n in nodes if _kernel(n) in _ADDING]
    if not adding:
        return
    buffers = adding[0].scheduler.name_to_buf.values()
    shared = {name for b in buffers for name in (*b.get_aliases(), *b.get_mutations())}
    for node in adding:
        if node.node.inputs[0].get_name() not in shared:
            node.mark_run = partial(_allocate, node, node.mark_run)


def _kernel(node: Any) -> str | None:
    """Return the Python name of the library function that a scheduler node calls, if any."""
    name: str | None = getattr(node.node, "python_kernel_name", None)
    return name if node.is_extern() else None


def _allocate(node: Any, allocate: Callable[[], None]) -> None:
    """Generate the code that gives a matmul's result its memory."""
    total = node.node.inputs[0]
    if not _may_write_over(node, total):
        allocate()
        return
    wrapper: Any = _torch.V.graph.wrapper_code
    name, over = node.node.get_name(), total.get_name()
    wrapper.allocated.add(name)
    wrapper.reuses[name] = over
    wrapper.writeline(f"{name} = {over}  # added to in place")


def _may_write_over(node: Any, total: Any) -> bool:
    """Return whether what a matmul adds to is a buffer like its result that nothing reads later."""
    result, scheduler = node.node, node.scheduler
    graph: Any = _torch.V.graph
    buffer = scheduler.name_to_buf.get(total.get_name())
    if buffer is None or total is not buffer.node or not graph.wrapper_code.can_reuse(total):
        return False
    if result.output_view is not None or total.get_name() in {
        factor.get_name() for factor in result.inputs[1:]
    }:
        return False
    if buffer.get_aliases() or buffer.get_mutations() or not _is_alike(total, result):
        return False
    ran = node.ancestors | graph.removed_operations | scheduler.completed_operations
    return all(use.node is node or use.node.get_name() in ran for use in buffer.users)


def _is_alike(one: Any, other: Any) -> bool:
    """Return whether two buffers have memory of their own, laid out in the same way."""
    layouts = [one.get_output_spec(), other.get_output_spec()]
    if not all(type(layout) is _torch.FixedLayout and layout.offset == 0 for layout in layouts):
        return False
    a, b = layouts
    return all(
        getattr(a, what) == getattr(b, what) for what in ("device", "dtype", "size", "stride")
    )
