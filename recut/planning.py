"""Plan a model's training step without running it: the Python API behind ``recut plan``.

>>> planned = recut.plan(model, batch, budget="12GiB", machine="h200")
>>> print(planned.explain())
>>> for point in recut.sweep(model, batch, machine="h200"):
...     print(point.peak, point.seconds)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, overload

from torch import fx

from recut.choosing import free_bytes, plan_under, tightened
from recut.errors import SettingError, TraceError
from recut.machines import in_force, pick
from recut.measured import measured_costs
from recut.partitioners.effort import EFFORTS, NORMAL, Effort
from recut.partitioners.machine import Machine
from recut.partitioners.outline import outline
from recut.partitioners.plan import Plan
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Problem
from recut.passes.capture import capture, device_of
from recut.passes.prepare import has_backward, prepare
from recut.passes.prices import Prices
from recut.passes.rules import annotated_budget
from recut.pipeline import collector_paused
from recut.planned import PlannedGraph
from recut.settings import Settings
from recut.trace import Call, Dynamic, joint_graph


@dataclass(frozen=True)
class Traced:
    """A model's joint graph, ready to be planned for any budget.

    Attributes:
        problem: the graph as planners see it.
        machine: what sets the prices.
        name: what the model is called.
        free: returns the bytes that are free on the machine; None where it is not this one.
        region: the budget of torch's own annotation in the graph, a ratio; None without one.
    """

    problem: Problem
    machine: Machine
    name: str
    free: Callable[[], int] | None
    region: float | None = None

    def planner(self, seconds: float = float("inf"), effort: Effort = NORMAL) -> Planner:
        """Return a planner that takes so many seconds for a plan, and searches so far."""
        return Planner(self.problem, self.machine, seconds, effort)


def trace(call: Call, settings: Settings, dynamic: Dynamic | None = None) -> Traced:
    """Return the joint graph of a call as planners see it. Nothing is run, and no code generated.

    With a machine description in the settings, prices and memory are those of its kind of device,
    whatever the tensors are on.

    Args:
        call: the model and its inputs.
        settings: the machine, and how costs are known.
        dynamic: the dimensions of inputs whose sizes are to be symbols of the problem.

    Raises:
        TraceError: the call has no training graph, or more than one.
    """
    found: list[Traced] = []

    def take(joint: fx.GraphModule, outputs: int) -> None:
        joint = prepare(joint)
        if not has_backward(joint):
            return
        here = device_of(joint.graph)
        device = here if settings.machine is None else settings.machine.device
        machine = settings.machine or pick(in_force(settings), device)
        # Calls are timed where they would run, or not at all.
        timed = settings.costs == "measure" and device == here
        prices = Prices(machine, measured_costs(joint, "inductor") if timed else {})
        captured = capture(joint, num_fwd_outputs=outputs, prices=prices, device=device)
        free = free_bytes(joint) if device == here else None
        region = annotated_budget(joint)
        found.append(Traced(captured.problem, machine, call.name, free, region))

    with collector_paused():
        joint_graph(call, take, dynamic)
    if not found:
        raise TraceError(
            call.name, "its graph has no backward", "let parameters or inputs require gradients"
        )
    return found[0]


def planned(traced: Traced, settings: Settings) -> PlannedGraph:
    """Return the plan that ``ckpt_backend`` would try first for a traced model.

    Raises:
        InfeasibleBudget: no plan fits the budget, by the count; kernels are not asked.
        SettingError: the budget is "auto", and the machine is not this one.
    """
    start = time.perf_counter()
    planner = traced.planner(settings.solver_seconds, EFFORTS[settings.effort])
    if (region := traced.region) is not None:
        settings = tightened(settings, region, planner.fastest_peak, traced.free)
    budget = settings.memory_budget.resolve(planner.fastest_peak, traced.free)
    with collector_paused():
        plan = plan_under(settings, planner, budget)
        others = outline(planner)
    return PlannedGraph(
        traced.problem,
        plan,
        others,
        traced.machine,
        traced.name,
        str(settings.memory_budget),
        planner.known_floor,
        time.perf_counter() - start,
    )


def read_settings(budget: object = None, machine: object = None) -> Settings:
    """Return the environment's settings with a budget and a machine in the place of theirs.

    Raises:
        SettingError: one of them cannot be read.
    """
    given = {"memory_budget": budget, "machine": machine}
    settings = Settings.read({key: value for key, value in given.items() if value is not None})
    return replace(settings, plan=None)  # it is planned here, not replayed


def plan(
    model: Callable[..., Any],
    /,
    *args: Any,
    budget: str | float | None = None,
    machine: str | Machine | None = None,
    **kwargs: Any,
) -> PlannedGraph:
    """Plan a training step of a model without running it.

    The model and its inputs may be real, on ``meta``, or fake tensors
    (``torch._subclasses.FakeTensorMode``), which take no memory. They stay as they are. With a
    machine description the prices and the memory are those of its kind of device.

    Args:
        model: a module or function; it has to be one graph (``fullgraph=True``).
        args: what it is called with.
        budget: as everywhere (``parse_budget``); the environment's, or 1.0, where not given.
        machine: name or description; what is known best of the device where not given.
        kwargs: what the model is called with by name.

    Returns:
        The plan that the backend would try first. Inductor's kernels are not asked, so that the
        backend's own may differ from it where they hold more than the count.

    Raises:
        InfeasibleBudget: no plan fits the budget.
        TraceError: the model has no training graph, or more than one.
        SettingError: the budget or the machine cannot be read.
    """
    settings = read_settings(budget, machine)
    return planned(trace(Call(model, args, kwargs), settings), settings)


@dataclass(frozen=True)
class Point:
    """One plan of a sweep: bytes and seconds.

    Attributes:
        budget: the budget that it was chosen for.
        peak: its predicted peak.
        seconds: the expected time of a step.
        added: how much of that the fastest plan does without.
        planner: which planner made it.
    """

    budget: int
    peak: int
    seconds: float
    added: float
    planner: str


@dataclass(frozen=True)
class Sweep:
    """The frontier of a training step, by rising budgets: peaks rise, and times fall.

    Iterate over it for its points; ``sweep.at(k)`` is the planned graph of one.

    Attributes:
        fastest: the fastest plan with its graph, whose ``frontier`` are the plans of all points.
    """

    fastest: PlannedGraph

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """What each budget gives."""
        return tuple(self._point(one) for one in self.fastest.frontier)

    def _point(self, one: Plan) -> Point:
        seconds = self.fastest.seconds(one)
        return Point(one.budget, one.peak, seconds, seconds - self.fastest.time, one.planner)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.fastest.frontier)

    @overload
    def __getitem__(self, k: int) -> Point: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, k: int | slice) -> Point | tuple[Point, ...]:
        return self.points[k]

    def at(self, k: int) -> PlannedGraph:
        """Return the planned graph of a point."""
        one = self.fastest.frontier[k]
        return replace(self.fastest, plan=one, asked=f"{one.budget} bytes")

    def __str__(self) -> str:
        whole = max(self.fastest.time, 1e-30)
        rows = [f"{'budget MiB':>12} {'peak MiB':>12} {'step ms':>10} {'added':>7}  planner"]
        rows += [
            f"{p.budget / 2**20:12.1f} {p.peak / 2**20:12.1f} {p.seconds * 1e3:10.2f} "
            f"{p.added / whole:7.1%}  {p.planner}"
            for p in self.points
        ]
        return "\n".join(rows)

    def to_json(self) -> dict[str, Any]:
        """Return the frontier as plain JSON data; bytes and seconds."""
        about = {"name": self.fastest.name, "machine": self.fastest.machine.name}
        return {**about, "points": [asdict(point) for point in self.points]}


def swept(traced: Traced, points: int, effort: Effort = NORMAL) -> Sweep:
    """Return the frontier of a traced model; see :func:`sweep`."""
    if not isinstance(points, int) or points < 2:
        raise SettingError("points", points, "a sweep has at least 2 points", "give 16, say")
    start = time.perf_counter()
    planner = traced.planner(effort=effort)
    with collector_paused():
        plans = planner.sweep(points)
    graph = PlannedGraph(
        traced.problem,
        plans[-1],
        plans,
        traced.machine,
        traced.name,
        floor=planner.floor,
        planning_seconds=time.perf_counter() - start,
    )
    return Sweep(graph)


def sweep(
    model: Callable[..., Any],
    /,
    *args: Any,
    machine: str | Machine | None = None,
    points: int = 16,
    **kwargs: Any,
) -> Sweep:
    """Plan a training step for budgets from the lowest feasible one to the fastest plan's peak.

    Args:
        model: as for :func:`plan`.
        args: what it is called with.
        machine: as for :func:`plan`.
        points: how many budgets, at least 2.
        kwargs: what the model is called with by name.

    Raises:
        TraceError: the model has no training graph, or more than one.
        SettingError: the machine or the number of points cannot be read.
    """
    settings = read_settings(machine=machine)
    traced = trace(Call(model, args, kwargs), settings)
    return swept(traced, points, EFFORTS[settings.effort])


__all__ = [
    "Point",
    "Sweep",
    "Traced",
    "plan",
    "planned",
    "read_settings",
    "sweep",
    "swept",
    "trace",
]
