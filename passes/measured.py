"""How long a call takes on the device, and what it allocates: run on made-up data.

What counts of a call is its op, and the shapes, strides, dtypes and devices of its tensors, so that
many nodes of a graph, and graphs of many runs, share one figure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import fx
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from recut.partitioners.problem import Kind
from recut.passes import _torch, costs

# For one figure, the first run aside.
_SECONDS = 0.02
# Runs of a call, if they are no longer than this many times as many seconds.
_RUNS = 6
# Calls of others, or of no more than a number.
_FOREIGN = {"_c10d_functional", "c10d", "inductor", "inductor_prims", "prims", "rngprims"}


def best_seconds(run: Callable[[], Any], at_least: float = _SECONDS) -> float:
    """Return the time of the fastest of many runs, in seconds: the least disturbed one.

    Args:
        run: what to time.
        at_least: seconds that all runs together take at least.
    """
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    times = timer.blocked_autorange(min_run_time=at_least).times
    while len(times) < _RUNS and sum(times) < _RUNS * at_least:
        times = [*times, *timer.timeit(1).times]
    return float(min(times))


def is_measurable(node: fx.Node, inductor: bool) -> bool:
    """Return whether a node is a call whose time can be taken by itself, and means something.

    Args:
        node: the node.
        inductor: Inductor compiles the graph: what it fuses is no call of its own.
    """
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op.namespace in _FOREIGN:
        return False
    if op._schema.is_mutable or not costs.tensors(node.meta.get("val")):
        return False
    if torch.Tag.data_dependent_output in op.tags or costs.has_shape_of_data(node):
        return False
    kind = costs.kind_of(node)
    if inductor and kind not in (Kind.COMPUTE, Kind.OTHER):
        return False
    return not any(_torch.is_opaque_node(n) for n in node.all_input_nodes)


def signature(node: fx.Node, channels_last: bool = False) -> str:
    """Return a text that two calls share if they take the same time.

    Args:
        node: a measurable node.
        channels_last: its images are laid out channels-last, whatever the graph says.
    """
    return f"{node.target}{_show((node.args, node.kwargs), channels_last)}"


def _show(value: Any, channels_last: bool) -> str:
    if isinstance(value, fx.Node):
        return _show(value.meta.get("val"), channels_last)
    if isinstance(value, torch.Tensor):
        shape, strides = _layout(value, channels_last)
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype}{list(shape)}{list(strides)}@{value.device.type}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_show(v, channels_last) for v in value)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}={_show(v, channels_last)}' for k, v in value.items())}}}"
    return str(costs.hint(value)) if isinstance(value, torch.SymInt) else repr(value)


def _layout(tensor: torch.Tensor, channels_last: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a tensor's shape and strides, in numbers."""
    shape = tuple(map(costs.hint, tensor.shape))
    if channels_last and len(shape) == 4:
        _, c, h, w = shape
        return shape, (c * h * w, 1, w * c, c)
    return shape, tuple(map(costs.hint, tensor.stride()))


def measure(node: fx.Node, channels_last: bool = False) -> float | None:
    """Return how long a call takes, in seconds; None where it does not run on made-up data.

    Random numbers of the process stay as they are. The call's tensors are allocated and freed.

    Args:
        node: a measurable node.
        channels_last: as for :func:`signature`.
    """
    return _on_made_up_data(node, channels_last, best_seconds)


def extra_bytes(node: fx.Node, channels_last: bool = False) -> int | None:
    """Return the most bytes that a call holds on its device beside what it returns.

    None where it does not run on made-up data. As for :func:`measure`, and on a CPU with no
    profiler on: it takes one. On a GPU it is all that the call allocates, also what it frees before
    it allocates more: at most that is held, and what is held at once can only be seen by resetting
    the peak that the user may be watching.
    """
    gpu = next((t.device for t in _of(node) if t.is_cuda), None)
    ask = _extra_on_cpu if gpu is None else partial(_extra_on_gpu, gpu)
    return _on_made_up_data(node, channels_last, ask)


def _extra_on_cpu(run: Callable[[], Any]) -> int:
    run()  # what libraries keep for good is allocated here
    out, found = allocations(run)
    held = np.cumsum([0, *(size for _, size in found)])
    return int(held.max()) - sum(map(costs.nbytes, costs.tensors(out)))


def _extra_on_gpu(device: torch.device, run: Callable[[], Any]) -> int:
    run()
    before = _allocated_by_now(device)
    out = run()
    made = (t for t in costs.tensors(out) if t.is_cuda)
    kept = sum(costs.allocated(costs.nbytes(t), "cuda") for t in made)
    return max(0, _allocated_by_now(device) - before - kept)


def _allocated_by_now(device: torch.device) -> int:
    """Return the bytes that this process has ever allocated on a GPU, in the allocator's blocks."""
    return int(torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"])


Answer = TypeVar("Answer")


def allocations(run: Callable[[], Answer]) -> tuple[Answer, list[tuple[int, int]]]:
    """Return what a call returns, and address and bytes of what it allocates on a CPU.

    In their order; the bytes are negative where they are freed. Takes torch's profiler.
    """
    # Where nothing else is asked for, the profiler prints two lines whenever it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # One cycle has nothing to accumulate, but torch before 2.13 warns where it is not asked to.
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as profiled:
        out = run()
    results: Any = profiled.profiler and profiled.profiler.kineto_results
    waiting = list(results.experimental_event_tree())
    found = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]" and event.extra_fields.device.type == "cpu":
            entry = event.extra_fields
            found.append((event.start_time_ns, entry.ptr, entry.alloc_size))
    return out, [(address, size) for _, address, size in sorted(found, key=lambda e: e[0])]


def _on_made_up_data(
    node: fx.Node, channels_last: bool, ask: Callable[[Callable[[], Any]], Answer]
) -> Answer | None:
    """Return what ``ask`` says of a call, None where it does not run on made-up data."""
    devices = sorted({t.device for n in (node, *node.all_input_nodes) for t in _of(n)}, key=str)
    cuda = [d for d in devices if d.type == "cuda"]
    op: Any = node.target
    with (
        _torch.disable_current_modes(),
        torch.no_grad(),
        torch.random.fork_rng(devices=[d.index or 0 for d in cuda]),
        torch.autocast(devices[0].type if devices else "cpu", enabled=False),
    ):
        try:
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda n: _make(n.meta.get("val"), channels_last)
            )
            args = _without_dropout(op, args)
            return ask(lambda: op(*args, **kwargs))
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
            return None  # an op may refuse made-up data, and memory may be short: nothing is known


def _without_dropout(op: Any, args: Any) -> tuple[Any, ...]:
    """Return the arguments of a call with no dropout in attention.

    Its backward draws the mask again, by a generator's state that it reads through a pointer: on a
    CPU, whatever device fake tensors say that the state is on. A made-up one would end the process.
    """
    names = [argument.name for argument in op._schema.arguments]
    return tuple(
        0.0 if name == "dropout_p" else given for name, given in zip(names, args, strict=False)
    )


def _of(node: fx.Node) -> list[torch.Tensor]:
    return costs.tensors(node.meta.get("val"))


def _make(value: Any, channels_last: bool) -> Any:
    """Return a value of made-up data: numbers that every function takes, and valid indices."""
    if isinstance(value, torch.Tensor):
        shape, strides = _layout(value, channels_last)
        extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = 0 if 0 in shape else extent
        data = torch.zeros(size, dtype=value.dtype, device=value.device)
        if value.is_floating_point():
            data.uniform_(0.1, 1)
        return data.as_strided(shape, strides)
    if isinstance(value, (list, tuple)):
        return type(value)(_make(v, channels_last) for v in value)
    return costs.hint(value) if isinstance(value, torch.SymInt) else value


__all__ = [
    "allocations",
    "best_seconds",
    "extra_bytes",
    "is_measurable",
    "measure",
    "signature",
]
