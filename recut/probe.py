"""Measure the compiled training graphs of a running script: peak and time, at their own calls.

A graph's step is a call of its forward and the call of its backward that follows. The first is a
warm-up, the second is measured for its peak, the others for their time, so that a profiler never
runs while a call is timed. Nothing is drawn, allocated or kept between the calls: the script gets
the numbers that it would get alone.

The peak is that of the bytes which the two calls allocate, as the budget bounds them. What runs
between the calls (the loss, other graphs) is not seen, so what the forward returns counts until the
backward frees it, as it does in the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from recut.passes import _torch
from recut.passes.fusion import call_through
from recut.passes.measured import allocations
from recut.report import GraphReport

Call = Callable[[Any], Any]

# Steps of a graph before its peak is measured: its kernels' libraries set themselves up.
_WARM_UP = 1
# Steps of the script without a new graph before it may end, and without a call of a graph before
# that one is no longer waited for (it was compiled anew for other sizes, or never runs backward).
_PATIENCE = 5


class Enough(BaseException):
    """Ends a script between two of its steps; no ``except Exception`` of the script's holds it."""


class _Clock:
    """Adds up the seconds of calls."""

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.seconds = 0.0

    def run(self, call: Call, inputs: list[Any]) -> Any:
        _synchronize(self.device)
        start = time.perf_counter()
        out = call(inputs)
        _synchronize(self.device)
        self.seconds += time.perf_counter() - start
        return out


class _ProfiledPeak:
    """Follows what calls allocate on a CPU by the profiler's memory events.

    By address, since a call also frees what others have allocated, and that is not its own (the
    profiler may warn once that it has not seen where such memory was allocated).

    The profiler runs within one call at a time: autograd restores the thread's state behind each of
    its nodes, so a profiler that was started outside of a backward cannot be stopped within.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._held = 0
        self._own: dict[int, int] = {}  # bytes by address

    def run(self, call: Call, inputs: list[Any]) -> Any:
        out, found = allocations(lambda: call(inputs))
        for address, size in found:
            if size > 0:
                self._own[address] = size
                self._held += size
                self.peak = max(self.peak, self._held)
            else:
                self._held -= self._own.pop(address, 0)
        return out


class _AllocatorPeak:
    """Follows what calls allocate on a GPU by the statistics of torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self._held = 0

    def run(self, call: Call, inputs: list[Any]) -> Any:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        out = call(inputs)
        torch.cuda.synchronize(self.device)
        highest = torch.cuda.max_memory_allocated(self.device) - before
        self.peak = max(self.peak, self._held + highest)
        self._held += torch.cuda.memory_allocated(self.device) - before
        return out


_Meter = _Clock | _ProfiledPeak | _AllocatorPeak


def _synchronize(device: torch.device | None) -> None:
    if device is not None:
        torch.cuda.synchronize(device)


def _gpu_of(inputs: list[Any]) -> torch.device | None:
    return next((x.device for x in inputs if isinstance(x, torch.Tensor) and x.is_cuda), None)


@dataclass(frozen=True)
class Figures:
    """What was measured of one compiled training graph.

    Attributes:
        report: what was planned.
        steps: forwards that the graph's backward has followed.
        calls: the most calls of its forward in one step of the script.
        peak: bytes that one step held at once; None where none was measured.
        seconds: of each timed step, the forward and the backward together.
    """

    report: GraphReport
    steps: int
    calls: int
    peak: int | None
    seconds: tuple[float, ...]


@dataclass
class _Graph:
    report: GraphReport
    meter: _Meter | None = None  # of a forward whose backward has not run yet
    steps: int = 0
    peak: int | None = None
    seconds: list[float] = field(default_factory=list)
    last: int = 0  # step of the script in which its forward was last called
    calls: int = 0  # of its forward in that step
    most_calls: int = 0

    def called(self, step: int) -> None:
        """Count a call of the forward."""
        self.calls = self.calls + 1 if step == self.last else 1
        self.last = step
        self.most_calls = max(self.most_calls, self.calls)

    def next_meter(self, gpu: torch.device | None) -> _Meter:
        """Return what measures the step that begins."""
        # Only one profiler may run, and the script's own would be timed along.
        if _torch.profiler_enabled() or self.steps < _WARM_UP:
            return _Clock(gpu)
        if self.peak is None:
            return _ProfiledPeak() if gpu is None else _AllocatorPeak(gpu)
        return _Clock(gpu)

    def take(self, meter: _Meter) -> None:
        """Keep what a whole step has shown."""
        self.steps += 1
        if not isinstance(meter, _Clock):
            self.peak = meter.peak
        elif self.peak is not None and not _torch.profiler_enabled():
            self.seconds.append(meter.seconds)

    def figures(self) -> Figures:
        """Return what is known so far."""
        return Figures(self.report, self.steps, self.most_calls, self.peak, tuple(self.seconds))


class Probe:
    """Measures every training graph that it is told of; see :func:`recut.backend.watching`.

    Args:
        steps: timed steps to take of each graph.
        endless: let the script run to its end; otherwise :class:`Enough` is raised where a step of
            the script begins and all graphs have their figures.
    """

    def __init__(self, steps: int, endless: bool = False) -> None:
        self.wanted = steps
        self.endless = endless
        self._graphs: list[_Graph] = []
        self._step = 0  # of the script: forwards until one follows a backward
        self._newest = 0  # step in which the last graph was compiled
        self._between = True  # no forward has run since the last backward

    def __call__(self, report: GraphReport, forward: Any, backward: Any) -> None:
        """Measure a graph from its next call on."""
        graph = _Graph(report)
        self._graphs.append(graph)
        self._newest = self._step
        call_through(forward, partial(self._forward, graph))
        call_through(backward, partial(self._backward, graph))

    def figures(self) -> list[Figures]:
        """Return what was measured, by graph in the order of their compilation."""
        return [graph.figures() for graph in self._graphs]

    def _forward(self, graph: _Graph, call: Call, inputs: list[Any]) -> Any:
        # Eager's checkpoint calls a forward again inside of a backward.
        if self._between and _torch.current_graph_task_id() < 0:
            if not self.endless and self._enough():
                raise Enough
            self._between = False
            self._step += 1
        if self._step:  # there is none where a checkpoint runs every forward inside of a backward
            graph.called(self._step)
        # A forward whose backward has not come by now was not for training, or is one of several.
        graph.meter = graph.next_meter(_gpu_of(inputs))
        return graph.meter.run(call, inputs)

    def _backward(self, graph: _Graph, call: Call, inputs: list[Any]) -> Any:
        self._between = True
        meter, graph.meter = graph.meter, None
        if meter is None:  # a second backward, or that of an earlier forward of several
            return call(inputs)
        out = meter.run(call, inputs)
        graph.take(meter)
        return out

    def _enough(self) -> bool:
        recent = [g for g in self._graphs if self._step - g.last < _PATIENCE]
        complete = [g for g in recent if g.peak is not None and len(g.seconds) >= self.wanted]
        return (
            bool(complete)
            and len(complete) == len(recent)
            and self._step - self._newest >= _PATIENCE
        )
