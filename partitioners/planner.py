"""Which planner answers: the fastest plan where it fits, otherwise the best that a budget allows.

1. The fastest plan (``fastest.py``), if its peak fits.
2. For segmentations of the forward from one to about two hundred segments (``segments.py``), the
   linear program of what else to save (``program.py``). The programs' costs fall and rise again
   with the number of segments, so the search walks from the middle to where they are least; the
   most promising ones are rounded (``rounding.py``), and the cheapest answer wins.
3. Where that costs much more than the bound (``bound.py``), the same for segmentations in two
   levels, in which a segment is recomputed as a whole first and piece by piece again.
4. What these leave of the budget is filled, and where the plan still costs much more than the
   bound, so are the bases of the most promising programs (``room.py``).
5. Of a small problem the best of these, improved step by step (``neighbours.py``), and run op by
   op, what a program of all its moments in whole numbers answers (``exact.py``).
6. The floor: the lowest peak over the segmentations near the one that needs least. It is found
   without looking at the budget, so it does not move with it.

Each budget is planned alone; a :meth:`Planner.sweep` is monotone by construction.

The work is counted, not timed: the same problem and budget give the same plan on every machine,
unless ``solver_seconds`` cuts it short, and then the plan says so.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cached_property, partial

from recut.partitioners import exact
from recut.partitioners.certificate import Certificate
from recut.partitioners.effort import NORMAL, Effort
from recut.partitioners.errors import Culprit, InfeasibleBudget, Proof
from recut.partitioners.evaluator import Liveness, measure
from recut.partitioners.fastest import cheapest_cut, fastest
from recut.partitioners.frontier import Candidate, Frontier
from recut.partitioners.machine import Machine
from recut.partitioners.needs import Needs
from recut.partitioners.neighbours import Neighbours
from recut.partitioners.plan import Plan, make_plan
from recut.partitioners.problem import Phase, Problem
from recut.partitioners.programs import SMALL, Programs, ask
from recut.partitioners.refusal import culprits, proof
from recut.partitioners.rounding import shrink
from recut.partitioners.schedule import Schedule, lazy_schedule
from recut.partitioners.search import SHRINKS, Found, Search, better
from recut.partitioners.stages import StageProgram, Stages
from recut.partitioners.timing import step_seconds

# Programs that are asked for a peak below the lowest of all.
_LEANEST = 4
# Of the budgets of a sweep every so manieth is searched in full.
_SWEPT = 3
# What is this near to the bound, as a share of a step, is not searched for in a sweep.
_SWEPT_LOSS = 0.0025


class Planner:
    """Plans for one problem; what does not depend on the budget is computed once.

    Args:
        problem: the problem.
        machine: what starting a kernel costs.
        seconds: time for one plan; what it cuts short says so in its planner's name.
        effort: how far a plan is searched for.
    """

    def __init__(
        self,
        problem: Problem,
        machine: Machine,
        seconds: float = float("inf"),
        effort: Effort = NORMAL,
    ) -> None:
        self.problem = problem
        self.machine = machine
        self.seconds = seconds
        self.effort = effort
        self._programs = Programs(problem)
        self._answers: dict[int, Found | None] = {}

    @cached_property
    def fastest(self) -> Schedule:
        """The fastest schedule."""
        return fastest(self.problem, self.machine, self._cheapest_cut)

    @cached_property
    def _cheapest_cut(self) -> frozenset[int]:
        return cheapest_cut(self.problem)

    @cached_property
    def _fastest_lives(self) -> Liveness:
        return measure(self.problem, self.fastest)

    @property
    def fastest_peak(self) -> int:
        """Peak of the fastest schedule, bytes."""
        return self._fastest_lives.peak

    @cached_property
    def cheapest_seconds(self) -> float:
        """What recomputing and saving take at least, whatever memory it needs, in seconds."""
        problem = self.problem
        schedule = lazy_schedule(problem, self._cheapest_cut)
        # To the cut, what only the backward needs costs nothing; here the forward may run it too.
        twice = schedule.recomputed(problem)
        only_backward = (i for i in twice if problem.ops[i].phase is Phase.EITHER)
        either = sum(problem.again_seconds[i] for i in only_backward)
        return schedule.seconds(problem) - either

    @cached_property
    def _step_seconds(self) -> float:
        """What a step of the fastest plan takes."""
        return step_seconds(self.problem, self.fastest, self.machine)

    @property
    def lowest(self) -> Candidate:
        """The schedule with the lowest peak found for this problem."""
        return self._lowest.candidate

    @cached_property
    def _lowest(self) -> Found:
        """The schedule with the lowest peak."""
        best = Candidate(self.fastest_peak, self.fastest.seconds(self.problem), self.fastest)

        programs = self._programs

        def peak(k: int, finer: int) -> tuple[float, int]:
            return (programs.program(k, finer).peak, k)

        for k in range(programs.count):
            peak(k, k)
        programs.nested(peak)
        most = min(program.peak for program in programs.known.values()) * SHRINKS
        near = [key for key, program in programs.known.items() if program.peak <= most]
        shrunk = {key: shrink(programs.program(*key)) for key in near}
        near.sort(key=lambda key: (shrunk[key].peak, key))
        best = min(best, shrunk[near[0]], key=lambda c: c.peak)
        explore = partial(ask, near[:_LEANEST])
        # What the programs find for this very peak may be cheaper, and lie below it all the same.
        budget = best.peak
        end = time.monotonic() + self.seconds
        while found := self._search(budget, end - time.monotonic()).rounded(explore):
            best = found.candidate
            budget = best.peak - (best.peak == budget)
        search = self._search(best.peak)
        best = search.filled(search.found(best)).candidate
        if self._neighbours is not None:
            tries = NORMAL.neighbours
            best = self._neighbours.lowered(best.schedule, tries)
            best = self._neighbours.improved([best.schedule], best.peak, tries) or best
        found = self._search(best.peak).found(best, planner="floor")
        return replace(found, cut_short=time.monotonic() > end, failed=programs.failed)

    @cached_property
    def _neighbours(self) -> Neighbours | None:
        """The neighbours of a small problem's schedules."""
        small = len(self.problem.ops) <= SMALL
        return Neighbours(self.problem, self.machine) if small else None

    @property
    def floor(self) -> int:
        """The lowest feasible budget that was found, bytes."""
        return self.lowest.peak

    @property
    def known_floor(self) -> int | None:
        """The floor, bytes, if something has asked for it yet."""
        return self.floor if "_lowest" in self.__dict__ else None

    def plan(self, budget: int, fill: float = 1.0) -> Plan:
        """Return the best plan found under ``budget`` bytes.

        Args:
            budget: bytes.
            fill: how much of the budget the plan may use; of a fastest plan that fits, all.

        Raises:
            InfeasibleBudget: that much of the budget lies under the floor.
        """
        if self.fastest_peak <= budget:
            return self._made(self.fastest, budget, "min-cut")
        room = int(budget * fill)
        found = self._cheapest(room)
        if found is None:
            raise self.refusal(budget)
        return self._made(found.candidate.schedule, budget, found.name)

    def sketch(self, budget: int) -> tuple[Schedule, str] | None:
        """Return a schedule under ``budget`` bytes, and its planner's name, in little time.

        It is the best of segmentations in one level; None where they have none.
        """
        found = self._search(budget).plain()
        return None if found is None else (found.candidate.schedule, found.name)

    def known(self) -> dict[Schedule, str]:
        """Return schedules that are known or need no search, with their planners' names."""
        programs = self._programs
        bare = (programs.program(k, k).schedule for k in range(programs.count))
        answers = [answer for answer in self._answers.values() if answer]
        found = dict.fromkeys(bare, "segments, bare")
        found |= {answer.candidate.schedule: answer.name for answer in answers}
        if "_lowest" in self.__dict__:
            found[self.lowest.schedule] = self._lowest.name
        return found | {self.fastest: "min-cut"}

    def sweep(self, points: int = 16) -> tuple[Plan, ...]:
        """Return the frontier: plans for budgets from the floor to the fastest plan's peak.

        The budgets lie evenly. Each plan is the cheapest of all schedules that were tried for any
        of them, so a step of it takes no longer than of the plan before, and its peak is no lower.
        Only some budgets are searched in full; for those between, the programs are asked that won
        there, unless what was tried is near the bound already.

        Args:
            points: how many budgets, at least 2.

        Raises:
            ValueError: fewer than 2 points.
        """
        if points < 2:
            raise ValueError(f"a sweep has at least 2 points, not {points}")
        low, high = self.floor, max(self.floor, self.fastest_peak)
        budgets = [low + (high - low) * k // (points - 1) for k in range(points)]
        tried = Frontier()
        found: dict[int, Found] = {}
        # Near the floor the frontier is steep.
        for k in (*range(min(_SWEPT, points - 1)), *range(_SWEPT, points - 1, _SWEPT)):
            # Asked anew, since an answer that is known tells nothing of what was tried for it.
            if answer := self._asked(budgets[k], tried):
                found[k] = answer
        for k, budget in enumerate(budgets[:-1]):
            keys = {found[i].key for i in (k - k % _SWEPT, k - k % _SWEPT + _SWEPT) if i in found}
            known = tried.under(budget)
            if k in found or (known is not None and self._loss(known, budget) < _SWEPT_LOSS):
                continue
            if answer := self._search(budget, tried=tried).rounded(partial(ask, keys)):
                found[k] = answer
        pool = {c.schedule: (c.peak, "sweep") for c in tried.candidates}
        pool |= {f.candidate.schedule: (f.candidate.peak, f.name) for f in found.values()}
        pool[self.fastest] = (self.fastest_peak, "min-cut")
        pool[self.lowest.schedule] = (self.floor, self._lowest.name)
        # By what a step takes, then by the peak: a schedule is passed over for a better one only.
        step = {x: step_seconds(self.problem, x, self.machine) for x in pool}
        ranked = sorted(pool, key=lambda x: (step[x], pool[x][0]))
        chosen = [next(x for x in ranked if pool[x][0] <= budget) for budget in budgets]
        return tuple(self._made(x, b, pool[x][1]) for x, b in zip(chosen, budgets, strict=True))

    def _made(self, schedule: Schedule, budget: int, planner: str) -> Plan:
        problem = self.problem
        added = self._added(schedule.seconds(problem))
        bounds = self._certificate.proven(budget, added) if added else (0.0, 0.0)
        return make_plan(problem, schedule, budget, planner, added, bounds)

    def _added(self, seconds: float) -> float:
        """Return what a schedule adds to the least that recomputing and saving may take."""
        return max(0.0, seconds - self.cheapest_seconds)

    def bounds(self, budget: int) -> tuple[float, float]:
        """Return what any plan under ``budget`` bytes adds: in the backward's order, and in any.

        In the terms of ``Plan.added_seconds``, in seconds.
        """
        return self._certificate.bounds(budget)

    @property
    def needs(self) -> Needs:
        """What any plan holds while each op runs."""
        return self._certificate.needs

    @cached_property
    def _certificate(self) -> Certificate:
        return Certificate(self.problem, self._fastest_lives, self.cheapest_seconds)

    def _cheapest(self, budget: int) -> Found | None:
        """Return the cheapest schedule that the programs give under a budget."""
        if budget not in self._answers:
            self._answers[budget] = self._asked(budget, None)
        return self._answers[budget]

    def _search(
        self,
        budget: int,
        seconds: float = math.inf,
        tried: Frontier | None = None,
        effort: Effort = NORMAL,
    ) -> Search:
        """Return the search for a budget."""
        return Search(self._programs, self.machine, budget, seconds, tried, effort)

    def _asked(self, budget: int, tried: Frontier | None) -> Found | None:
        """Return what :meth:`_cheapest` keeps; what is tried is added to ``tried``.

        More effort starts with less: it finds nothing dearer.
        """
        end = time.monotonic() + self.seconds
        best = None
        for effort in dict.fromkeys((NORMAL, self.effort)):
            if best is not None and (time.monotonic() > end or self._near(best, budget, effort)):
                break
            search = self._search(budget, end - time.monotonic(), tried, effort)
            found = self._answered(search, effort)
            if found is not None:
                best = better(best, found)
        return best

    def _answered(self, search: Search, effort: Effort) -> Found | None:
        """Return what a search comes to."""
        budget = search.budget
        best = search.plain()
        if not self._near(best, budget, effort):
            nested = search.nested()
            if nested is None:
                best = best and replace(best, cut_short=best.cut_short or search.late)
            else:
                best = better(best, nested)
        if best is not None:
            best = search.filled(best)
        if not search.late and not self._near(best, budget, effort):
            best = search.dropped(best)
        if best is None and self.floor <= budget:
            best = self._lowest
        if best is None or self._neighbours is None or search.late:
            return best
        if self._near(best, budget, effort):
            return best
        starts = (best.candidate.schedule, self.fastest)
        near = self._neighbours.improved(starts, budget, effort.neighbours)
        best = best if near is None else search.instead(best, near)
        return self._exact(search, best, effort)

    def _exact(self, search: Search, best: Found, effort: Effort) -> Found:
        """Return the best of a small problem's plan and of what the exact tier answers.

        That knows op by op what is in memory: with kernels, its moments would be none.
        """
        if self.problem.compiler != "eager":
            return best
        budget = search.budget
        for count in effort.candidates:
            added = self._added(best.candidate.seconds)
            if search.late or self._certificate.is_least(budget, added):
                break
            stages = Stages(self.problem, best.candidate.schedule)
            program = StageProgram(stages, stages.some(count))
            answer = exact.solve(program, budget, effort.nodes, search.left)
            self._certificate.prove(budget, answer.bound)
            if answer.candidate is not None:
                best = search.instead(best, answer.candidate, "stages")
            cut_short = best.cut_short or answer.cut_short
            best = replace(best, cut_short=cut_short, failed=best.failed or bool(answer.failed))
        return best

    def _near(self, found: Found | None, budget: int, effort: Effort) -> bool:
        """Return whether what was found is so near the bound that to look further does not pay."""
        return found is not None and self._loss(found.candidate, budget) < effort.near

    def _loss(self, candidate: Candidate, budget: int) -> float:
        """Return how much more than the bound a schedule costs, as a share of a step."""
        loss = candidate.seconds - self.cheapest_seconds - self.bounds(budget)[0]
        return loss / max(self._step_seconds, 1e-30)

    def floor_plan(self) -> Plan:
        """Return the plan with the lowest peak; of several, the cheapest that was found."""
        return self._made(self.lowest.schedule, self.floor, self._lowest.name)

    def refusal(self, budget: int) -> InfeasibleBudget:
        """Return the error of a budget under the floor, in bytes."""
        return InfeasibleBudget(budget, self.floor, self.culprits(), self.proof())

    def culprits(self) -> tuple[Culprit, ...]:
        """Return what is live at the worst moment of the floor plan, largest first."""
        return culprits(self.problem, self.lowest.schedule)

    def proof(self) -> Proof | None:
        """Return what every plan holds at its worst moment, None where no op shows it."""
        need = self.needs.most
        return None if need is None else proof(self.problem, need)
