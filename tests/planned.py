"""Planned graphs for tests, from problems by hand: no torch, no tracing."""

from __future__ import annotations

from dataclasses import replace

from problems import layers

from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Problem
from recut.planned import PlannedGraph


def planned(
    problem: Problem | None = None, share: float = 0.6, points: int = 4, **more: object
) -> PlannedGraph:
    """Return a problem planned for a share of the way from its floor to its fastest plan."""
    planner = Planner(problem or modules(layers(6)), CPU)
    budget = planner.floor + int(share * (planner.fastest_peak - planner.floor))
    frontier = planner.sweep(points)
    plan = planner.plan(budget)
    more = {"floor": planner.floor, "asked": "60%", "name": "layers", **more}
    return PlannedGraph(planner.problem, plan, frontier, CPU, **more)  # type: ignore[arg-type]


def modules(problem: Problem) -> Problem:
    """Return a problem of ``layers`` whose ops say which layer they are of."""
    ops = []
    for op in problem.ops:
        number = "".join(c for c in op.name if c.isdigit())
        part = op.name.rstrip("0123456789").removeprefix("g_")
        ops.append(replace(op, module=f"blocks.{number}.{part}" if number else "head"))
    return replace(problem, ops=tuple(ops))
