"""What Inductor does otherwise in planned graphs, and only there.

Two defects of its C++ backend give wrong numbers without a word. Programs drawn from seeds found
them (``benchmarks/fuzzing.py``), and each has a test that fails without its remedy. What else is
here costs time: a copy that need not be, and memory that is handed back to be asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from recut.passes import _torch
from recut.passes.pool import lend

_MENDED = "recut.mended"


def mend_inductor(planned: Callable[[], bool]) -> None:
    """Have graphs compiled without these defects wherever ``planned()`` holds; others are left."""
    _wrap(_torch.AllocateLine, "should_reuse_buffer", planned, lend)
    _wrap(_torch.SchedulerNode, "recompute_size_and_body", planned, _keep_renames)
    _wrap(
        _torch.OuterLoopFusedSchedulerNode,
        "check_outer_fusion_loop_level_attr",
        planned,
        _keep_rows_apart,
    )
    _wrap(_torch.FallbackKernel, "codegen", planned, _let_go)
    gradients = torch.ops.aten.convolution_backward.default
    own = _torch.maybe_layout_constraints(gradients)
    if own is not None and not hasattr(own, _MENDED):
        _torch.add_layout_constraint(gradients, _mended(own, planned, _turn_early))


def _wrap(owner: Any, name: str, planned: Callable[[], bool], remedy: Callable[..., Any]) -> None:
    """Let ``remedy(own, *arguments)`` stand for a method while ``planned()`` holds, once."""
    own = getattr(owner, name)
    if not hasattr(own, _MENDED):
        setattr(owner, name, _mended(own, planned, remedy))


def _mended(
    own: Callable[..., Any], planned: Callable[[], bool], remedy: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a function that is ``remedy(own, *arguments)`` while ``planned()`` holds."""

    @wraps(own)
    def mended(*args: Any, **kwargs: Any) -> Any:
        return remedy(own, *args, **kwargs) if planned() else own(*args, **kwargs)

    setattr(mended, _MENDED, True)
    return mended


def _turn_early(
    own: Callable[..., Any], node: Any, *args: Any, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Have what the backward of a convolution reads computed as channels-last in the first place.

    Where the graph's images are turned, torch since 2.13 turns it, but computes it first, in
    whatever layout it finds: a gradient through a group norm was computed by channels and then
    copied. Before 2.13 the library itself copies what comes as the graph's strides say.
    """
    if not _torch.V.graph.layout_opt or len(args[0].get_size()) != 4:
        asked: tuple[tuple[Any, ...], dict[str, Any]] = own(node, *args, **kwargs)
        return asked
    gradient, image, weight, *rest = args
    turn = _torch.ExternKernel.require_channels_last
    of_image, of_weight, _ = node.args[-1]  # which gradients are asked for
    if of_weight:
        image = turn(image)
    if of_image:
        weight = turn(weight)
    return (turn(gradient), image, weight, *rest), kwargs


def _let_go(own: Callable[..., None], kernel: Any, wrapper: Any) -> None:
    """Free what a call returns where nothing reads any of it: it runs for its effect.

    A draw whose numbers are of no use still moves the generator on. The scheduler has forgotten its
    buffer by then, so that the generated function keeps it to its end. (In C++ it is not named.)
    """
    own(kernel, wrapper)
    name = kernel.get_name()
    several = isinstance(kernel.get_output_spec(), _torch.MultiOutputLayout)
    if several and name in _torch.V.graph.removed_buffers and not _torch.V.graph.cpp_wrapper:
        wrapper.writeline(f"del {name}")


def _keep_renames(own: Callable[..., None], node: Any, *args: Any, **kwargs: Any) -> None:
    """Let a node know what was written over, whatever its loops become.

    A node that reads a buffer which an earlier node has written over (a scatter into a view)
    depends on that node by a name of its own. Where the C++ backend gives a node the loops of
    another one, torch before 2.14 restores that name only if the node has dependencies that no
    index shows. Without it both may end in one kernel, whatever their indices, and the reader gets
    another element.
    """
    own(node, *args, **kwargs)
    node.set_read_writes(node.read_writes.rename(node.mutation_renames))


def _keep_rows_apart(
    own: Callable[..., bool], node: Any, kernels: Sequence[Any], depth: int
) -> bool:
    """Refuse to join loops that share a buffer of one row where they handle several rows at once.

    Kernels over the same rows are joined in one loop over them, and what only they read is held in
    a buffer of one row. Where that loop is vectorised (something is read with a stride), all rows
    of a vector are written to the same place, and each is read as the last one. What is refused is
    computed in loops of its own.
    """
    if not own(node, kernels, depth):
        return False
    shared = getattr(_torch.V.local_buffer_context, "local_buffers", None)
    return not shared or all(
        loop.steps == 1 for kernel in kernels for loop in kernel.loop_nest.loops[:depth]
    )
