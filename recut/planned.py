"""A training graph with its plan, as one value: what reports, files and notebooks are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recut.errors import SettingError
from recut.files import figures, read_json, read_plan, read_problem
from recut.partitioners.decisions import Decision, Use, decisions, memory
from recut.partitioners.errors import PlanningError
from recut.partitioners.evaluator import Timeline, evaluate
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule
from recut.partitioners.timing import step_seconds

if TYPE_CHECKING:
    from recut.explain import Explanation

# The files of a planned graph in a folder; a dump adds what is for reading.
PROBLEM, PLAN, FRONTIER, GRAPH = "problem.json", "plan.json", "frontier.json", "graph.json"
VERSION = 1


@dataclass(frozen=True)
class PlannedGraph:
    """A plan and what it was made of.

    Attributes:
        problem: the joint graph as planners see it, with what was observed of its kernels.
        plan: the plan.
        frontier: other plans for the same problem by rising budgets: the last one is the fastest.
        machine: what set the prices.
        name: what was planned, as a title.
        asked: the budget as the user wrote it ("" where nobody did).
        floor: lowest budget that a plan was found for, bytes; None where it was not looked for.
        planning_seconds: how long planning took, seconds.
        scheduled_peak: the most bytes that Inductor's kernels hold; None where no code was made.
        measured_peak: the most bytes that a step allocated, and
        measured_seconds: the median time of a step, where ``recut doctor`` has run it; else None.
    """

    problem: Problem
    plan: Plan
    frontier: tuple[Plan, ...]
    machine: Machine
    name: str = "graph"
    asked: str = ""
    floor: int | None = None
    planning_seconds: float = 0.0
    scheduled_peak: int | None = None
    measured_peak: int | None = None
    measured_seconds: float | None = None

    @property
    def fastest(self) -> Plan:
        """The fastest plan, whatever its peak."""
        return self.frontier[-1]

    @property
    def peak(self) -> int:
        """Predicted peak of the plan, bytes."""
        return self.plan.peak

    @cached_property
    def time(self) -> float:
        """Expected time of a step of the plan, seconds."""
        return self.seconds(self.plan)

    def seconds(self, plan: Plan) -> float:
        """Return the expected time of a step of a plan for this graph, seconds."""
        if plan.schedule not in self._seconds:
            found = step_seconds(self.problem, plan.schedule, self.machine)
            self._seconds[plan.schedule] = found
        return self._seconds[plan.schedule]

    @cached_property
    def _seconds(self) -> dict[Schedule, float]:
        """What is known of :meth:`seconds`: a report asks for the same plans again and again."""
        return {}

    @cached_property
    def timeline(self) -> Timeline:
        """What is in memory at each moment of the step."""
        return evaluate(self.problem, self.plan.schedule)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What the plan does with each op."""
        return decisions(self.problem, self.plan.schedule)

    @cached_property
    def memory(self) -> Mapping[Use, Sequence[int]]:
        """Bytes in memory at each moment of the step, by what they are for."""
        return memory(self.problem, self.plan.schedule, self.timeline)

    def explain(self) -> Explanation:
        """Return in words where the peak is, what is there, and what was decided; ``print`` it."""
        from recut.explain import explain

        return explain(self)

    def to_html(self) -> str:
        """Return the report: one page that needs nothing but itself."""
        from recut.page import render

        return render(self)

    def _repr_html_(self) -> str:
        """Return the report as a part of a notebook."""
        from recut.page import frame

        return frame(self.to_html(), f"recut report of {self.name}")

    def _summary(self) -> dict[str, Any]:
        """Return what a list of graphs tells of this one; :func:`load` does not read it."""
        return {
            "ops": len(self.problem.ops),
            "peak": self.peak,
            "budget": self.plan.budget,
            "planner": self.plan.planner,
            "seconds": self.time,
            "fastest_seconds": min([self.time, *map(self.seconds, self.frontier)]),
        }

    def files(self) -> dict[str, str]:
        """Return the text by file name that :func:`load` reads back."""
        about = {
            "version": VERSION,
            "name": self.name,
            "asked": self.asked,
            "floor": self.floor,
            "planning_seconds": self.planning_seconds,
            "scheduled_peak": self.scheduled_peak,
            "measured_peak": self.measured_peak,
            "measured_seconds": self.measured_seconds,
            "machine": self.machine.to_json(),
            "summary": self._summary(),
        }
        return {
            PROBLEM: json.dumps(self.problem.to_json(), separators=(",", ":")) + "\n",
            PLAN: self.plan.dumps(),
            FRONTIER: json.dumps([plan.to_json() for plan in self.frontier]) + "\n",
            GRAPH: json.dumps(about, indent=1) + "\n",
        }


def load(folder: Path) -> PlannedGraph:
    """Read a planned graph from a folder of a dump.

    Raises:
        SettingError: the folder is none of a dump, or one of its files cannot be read.
    """
    try:
        problem = read_problem(folder / PROBLEM)
        frontier = tuple(Plan.from_json(plan) for plan in read_json(folder / FRONTIER))
        if not frontier:
            raise ValueError(f"{FRONTIER} is empty")
        about = read_json(folder / GRAPH)
        if not isinstance(about, Mapping) or about.get("version") != VERSION:
            raise ValueError(f"{GRAPH} is not of version {VERSION}")
        machine = Machine.from_json(about.get("machine"))
        # Dumps from before steps were measured lack these two.
        known = figures({"measured_peak": None, "measured_seconds": None, **about}, _FIGURES)
        plan = read_plan(folder / PLAN)
        for one in (plan, *frontier):
            one.check(problem)
        problem = problem.with_observed(dict(plan.observed))
    except (OSError, ValueError, TypeError, PlanningError) as error:
        raise SettingError(
            "folder", str(folder), f"no dumped graph ({error})", "give a folder that recut dumped"
        ) from error
    return PlannedGraph(problem, plan, frontier, machine, **known)


_FIGURES: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "asked": (str,),
    "floor": (int, type(None)),
    "planning_seconds": (int, float),
    "scheduled_peak": (int, type(None)),
    "measured_peak": (int, type(None)),
    "measured_seconds": (int, float, type(None)),
}


__all__ = ["FRONTIER", "GRAPH", "PLAN", "PROBLEM", "PlannedGraph", "load"]
