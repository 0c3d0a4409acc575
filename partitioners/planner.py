"""Which planner answers: the fastest plan where it fits, otherwise the best that a budget allows.

1. The fastest plan (``fastest.py``), if its peak fits.
2. For segmentations of the forward from one to about fifty segments (``segments.py``), the
   linear program of what else to save (``program.py``); the cheapest rounded answer wins.
3. The floor: the lowest peak over all segmentations. It is found without looking at the budget, so
   a lower budget never gives a higher peak.

The work is counted, not timed: the same problem and budget give the same plan on every machine,
unless ``solver_seconds`` cuts it short, and then the plan says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from recut.partitioners.errors import Culprit, InfeasibleBudget
from recut.partitioners.evaluator import evaluate
from recut.partitioners.fastest import fastest
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan, make_plan
from recut.partitioners.problem import Problem
from recut.partitioners.program import Program, fill, shrink
from recut.partitioners.schedule import Schedule
from recut.partitioners.segments import Forward

_SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48)


class Planner:
    """Plans for one problem; what does not depend on the budget is computed once.

    Args:
        problem: the problem.
        machine: prices of memory traffic.
        seconds: time for one plan; what it cuts short says so in its planner's name.
    """

    def __init__(self, problem: Problem, machine: Machine, seconds: float = float("inf")) -> None:
        self.problem = problem
        self.machine = machine
        self.seconds = seconds

    @cached_property
    def fastest(self) -> Schedule:
        """The fastest schedule."""
        return fastest(self.problem, self.machine)

    @cached_property
    def fastest_peak(self) -> int:
        """Peak of the fastest schedule, bytes."""
        return evaluate(self.problem, self.fastest).peak

    @cached_property
    def programs(self) -> tuple[Program, ...]:
        """One program per distinct segmentation."""
        forward = Forward(self.problem)
        total = int(forward.made_bytes.sum())
        found = {forward.cut(int(total / k)).boundaries: None for k in _SEGMENTS}
        programs = (Program(self.problem, b) for b in found)
        return tuple(p for p in programs if p.ops)

    @cached_property
    def lowest(self) -> tuple[int, Schedule]:
        """The lowest peak found for this problem, bytes, and its schedule."""
        found = [(self.fastest_peak, self.fastest), *map(shrink, self.programs)]
        best = min(found, key=lambda b: b[0])
        while (cheaper := self._cheapest(best[0] - 1)) is not None:
            best = (evaluate(self.problem, cheaper[0]).peak, cheaper[0])
        return best

    @property
    def floor(self) -> int:
        """The lowest feasible budget that was found, bytes."""
        return self.lowest[0]

    @property
    def known_floor(self) -> int | None:
        """The floor, bytes, if something has asked for it yet."""
        return self.lowest[0] if "lowest" in self.__dict__ else None

    def plan(self, budget: int) -> Plan:
        """Return the best plan found under ``budget`` bytes.

        Raises:
            InfeasibleBudget: the budget lies under the floor.
        """
        if self.fastest_peak <= budget:
            return make_plan(self.problem, self.fastest, budget, "min-cut")
        found = self._cheapest(budget)
        if found is None and self.floor <= budget:
            found = (self.lowest[1], "floor")
        if found is None:
            raise InfeasibleBudget(budget, self.floor, self.culprits())
        return make_plan(self.problem, found[0], budget, found[1])

    def _cheapest(self, budget: int) -> tuple[Schedule, str] | None:
        """Return the cheapest schedule that the programs give under a budget, and who found it."""
        best: tuple[float, Schedule] | None = None
        solved = []
        name = "segments"
        end = time.monotonic() + self.seconds
        for k, program in enumerate(self.programs):
            answer = program.solve(budget)
            if answer is not None:
                solved.append((answer[1], k, answer[0]))
        for bound, k, x in sorted(solved, key=lambda s: s[:2]):
            if best is not None and bound >= best[0]:
                break
            if time.monotonic() > end:
                name = "segments (cut short by solver_seconds)"
                break
            schedule = fill(self.programs[k], budget, x)
            if schedule is not None:
                cost = schedule.added_seconds(self.problem)
                if best is None or cost < best[0]:
                    best = (cost, schedule)
        return None if best is None else (best[1], name)

    def floor_plan(self) -> Plan:
        """Return the plan with the lowest peak; of several, the cheapest that was found."""
        return replace(self.plan(self.floor), planner="floor")

    def culprits(self) -> tuple[Culprit, ...]:
        """Return what is live at the worst moment of the floor plan, largest first."""
        problem, (_, schedule) = self.problem, self.lowest
        line = evaluate(problem, schedule)
        moment = line.worst
        now = problem.ops[(schedule.forward + schedule.backward)[moment]]
        found = []
        for inst in line.at(moment):
            value = problem.values[inst.value]
            if value.producer < 0:
                why = "made of or for an input: a copy in another layout, or the loss's gradient"
                found.append(Culprit(value.name, inst.bytes, "an input", "", why))
                continue
            op = problem.ops[value.producer]
            if inst.start == moment:
                why = "made at the worst moment"
            elif inst.end == moment:
                why = f"read at the worst moment by {now.name}"
            elif inst.end >= len(line.live):
                why = "returned by the step"
            elif inst.start < line.split <= inst.end:
                why = f"saved for the backward{f' ({op.reason})' if op.reason else ''}"
            else:
                why = "needed again later"
            found.append(Culprit(value.name, inst.bytes, op.target, op.source, why))
        return tuple(sorted(found, key=lambda c: (-c.bytes, c.name)))


def plan_under(
    problem: Problem,
    machine: Machine,
    budget: Callable[[int], int],
    *,
    clamp: bool,
    seconds: float = float("inf"),
) -> tuple[Plan, Planner]:
    """Return the plan for a budget, and the planner that knows its alternatives.

    Args:
        problem: the problem.
        machine: prices of memory traffic.
        budget: gives bytes for the peak of the fastest plan (bytes).
        seconds: time that planning may take.
        clamp: give the floor plan where the budget lies under the floor, instead of an error.

    Raises:
        InfeasibleBudget: no plan fits, and ``clamp`` is False.
    """
    planner = Planner(problem, machine, seconds)
    limit = budget(planner.fastest_peak)
    try:
        return planner.plan(limit), planner
    except InfeasibleBudget:
        if not clamp:
            raise
        return planner.floor_plan(), planner
