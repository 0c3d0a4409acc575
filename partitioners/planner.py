"""Which planner answers: the fastest plan where it fits, otherwise the best that a budget allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recut.partitioners.evaluator import evaluate
from recut.partitioners.fastest import fastest
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan, make_plan
from recut.partitioners.problem import Problem


@dataclass(frozen=True)
class Frontier:
    """The ends of what a graph's plans reach: peak of the fastest plan and the floor, bytes."""

    fastest_peak: int
    floor: int | None


def plan_under(
    problem: Problem, machine: Machine, resolve: Callable[[int], int]
) -> tuple[Plan, Frontier]:
    base = fastest(problem, machine)
    peak = evaluate(problem, base).peak
    return make_plan(problem, base, resolve(peak), "min-cut"), Frontier(peak, None)
