"""How a training step is run, compiled and measured: peaks to the byte, times side by side.

Peaks repeat to the byte, times do not.  So peaks are taken alone, and times only in a race: all
contestants compiled beforehand, in one process, alternating, compared by ratios of medians.
"""

from __future__ import annotations

import gc
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Times:
    """Seconds of each round of one contestant; ``ratio`` is its median over the first one's.

    ``least`` is its fastest round: a neighbour on the machine slows whole seconds down by a
    quarter, and a median of few rounds says as much of the neighbour as of the contestant.
    """

    seconds: tuple[float, ...]
    median: float
    ratio: float

    @property
    def least(self) -> float:
        """Seconds of the fastest round."""
        return min(self.seconds)


def step(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """One forward and backward from cleared gradients; returns the loss, detached."""
    model.zero_grad(set_to_none=True)
    loss: Tensor = model(*inputs)
    loss.backward()
    return loss.detach()


def peak_bytes(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """The most bytes that one step holds at once on top of what was alive before it.

    The model must have been warmed up: compilation allocates too.
    """
    model.zero_grad(set_to_none=True)
    return peak_of(lambda: step(model, inputs), inputs[0].device)


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes on ``device`` that ``run`` holds at once on top of what was alive before it.

    ``run`` must be warmed up, and must free nothing that was made before it.
    """
    gc.collect()
    return _peak_cuda(run, device) if device.type == "cuda" else _peak_cpu(run)


def _peak_cpu(run: Callable[[], object]) -> int:
    # One cycle has nothing to accumulate, but torch before 2.13 warns where it is not asked to.
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as prof:
        run()
    events = [
        event
        for event in prof.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _peak_cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def warm_up(contestants: Mapping[str, Callable[[], object]], steps: int = 2) -> None:
    """Compile every contestant before a race.

    Never call ``torch._dynamo.reset()`` after this: each would compile again inside the race, under
    the config of that moment.
    """
    for run in contestants.values():
        for _ in range(steps):
            run()


def race(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    on_round: Callable[[int], object] | None = None,
    device: torch.device | None = None,
) -> dict[str, Times]:
    """Time compiled contestants side by side: ``rounds`` rounds, each running every one once.

    Each round starts with another contestant, so that none always follows the same neighbour's
    cache contents.  Ratios are to the first of ``contestants``.  A GPU as ``device`` times them by
    its own events.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            start = index % len(names)
            for name in names[start:] + names[:start]:
                seconds[name].append(seconds_of(contestants[name], device))
            gc.collect()
            if on_round:
                on_round(index)
    finally:
        if enabled:
            gc.enable()
    medians = {name: statistics.median(seconds[name]) for name in names}
    return {
        name: Times(tuple(seconds[name]), medians[name], medians[name] / medians[names[0]])
        for name in names
    }


def seconds_of(run: Callable[[], object], device: torch.device | None = None) -> float:
    """How long ``run`` takes: by the events of a GPU if ``device`` is one, else by the clock."""
    if device is not None and device.type == "cuda":
        return _seconds_by_events(run, device)
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _seconds_by_events(run: Callable[[], object], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Give back to the device what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prepare(cache: bool = False) -> None:
    """Set this process up for many compiled contestants of one model.

    Without ``cache`` every compilation runs its partitioner, so that planning can be timed and
    reported; Inductor's cache of compiled kernels stays on.
    """
    torch._dynamo.reset()
    # Every instance of a model shares its code objects, so entries add up over contestants.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.accumulated_recompile_limit = 1024
    torch._functorch.config.enable_autograd_cache = cache


def compile_stock(model: nn.Module) -> nn.Module:
    """``model`` under stock Inductor (with checkpointed blocks if it was made with them)."""
    return _compile(model)


def compile_budget(model: nn.Module, ratio: float) -> nn.Module:
    """``model`` under torch's own ``activation_memory_budget``, a ratio of saved bytes."""
    return Configured(_compile(model), {"activation_memory_budget": ratio})


def compile_recut(model: nn.Module, budget: str | int | float, **options: object) -> nn.Module:
    """``model`` under recut at ``budget`` (bytes as an int, a fraction, or text with a unit).

    ``options`` are recut's others.
    """
    import recut

    options |= {"memory_budget": budget}
    return _compile(model, backend=recut.ckpt_backend, options=options)


def _compile(model: nn.Module, **kwargs: Any) -> nn.Module:
    """Compile without sharing code with any other call.

    Two torch.compile calls with equal backends otherwise share cache entries across instances of
    one class, and stock's code would run under another contestant's name.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        kwargs["isolate_recompiles"] = True
    else:  # torch before 2.13: a backend that equals no other one does the same
        kwargs["backend"] = _unequalled(kwargs.get("backend", "inductor"))
    compiled: nn.Module = torch.compile(model, fullgraph=True, dynamic=False, **kwargs)
    return compiled


def _unequalled(backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """A backend that does what ``backend`` does and is equal to itself only."""
    found = torch._dynamo.lookup_backend(backend)

    def own(*args: Any, **kwargs: Any) -> Any:
        return found(*args, **kwargs)

    return own


class Configured(nn.Module):
    """Sets torch's ``_functorch.config`` around every call: whichever call compiles, it sees it."""

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.config = model, dict(config)

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch._functorch.config.patch(self.config):
            loss: Tensor = self.model(*inputs)
            return loss


def grads(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients by parameter name, without the names that wrappers put in front."""
    if isinstance(model, Configured):
        model = model.model
    return {
        name.removeprefix("_orig_mod."): parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def max_error(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest difference of any gradient entry over that gradient's largest entry in ``b``.

    Relative per parameter: gradients of one model differ by orders of magnitude, so an absolute
    maximum would only see the largest of them.
    """
    if a.keys() != b.keys():
        raise ValueError(f"gradients of different parameters: {sorted(a.keys() ^ b.keys())}")
    worst = 0.0
    for name, reference in b.items():
        scale = max(reference.abs().max().item(), torch.finfo(reference.dtype).tiny)
        worst = max(worst, (a[name] - reference).abs().max().item() / scale)
    return worst


@contextmanager
def partition_replaced(
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Puts ``wrap`` of torch's own partitioner in its place inside the block."""
    from torch._functorch import partitioners
    from torch._inductor import compile_fx

    name = "min_cut_rematerialization_partition"
    ours = wrap(getattr(partitioners, name))
    # compile_fx holds a reference of its own from its import.
    with mock.patch.object(partitioners, name, ours), mock.patch.object(compile_fx, name, ours):
        yield


@contextmanager
def partition_seconds() -> Iterator[list[float]]:
    """Collects the seconds of each run of torch's own partitioner inside the block."""
    seconds: list[float] = []

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        def timed_run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                seconds.append(time.perf_counter() - start)

        return timed_run

    with partition_replaced(timed):
        yield seconds
