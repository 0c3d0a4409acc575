"""Which plan a budget gets: a replayed one, the best under it, or a floor plan to be tried.

A count errs, in both directions. So before a budget is refused the floor plan is compiled, and its
kernels decide; what an attempt has taught is in the next one's problem.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import fx

from recut.budget import Budget
from recut.files import replayed
from recut.partitioners.effort import EFFORTS
from recut.partitioners.errors import InfeasibleBudget
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan
from recut.partitioners.planner import Planner
from recut.passes.capture import Capture
from recut.passes.costs import tensors
from recut.settings import Settings

# How much of a budget a plan may fill at first. Inductor adds buffers of a few bytes that no graph
# shows, and a plan filled to the brim would have to be compiled twice for them.
_FILL = 511 / 512
# A floor plan is accepted with kernels this much over its own peak; the floor is then theirs.
_FLOOR_FILL = 1.005
# What torch's annotation means by 0: as little memory as can be.
_LEAST = 1e-6

# A floor plan whose kernels decide about a budget: made by the count alone, or with what was
# observed of that plan's kernels.
Trial = Literal["plain", "observed"]


@dataclass(frozen=True)
class Experience:
    """What an earlier attempt at a graph has taught.

    Attributes:
        budget: bytes that the budget stood for then; it stays, whatever is learnt of the peaks.
        observed: bytes by op that compiled code holds beyond the problem's own count.
        tried: what the kernels of the floor plans hold that were tried, bytes, by trial.
        spent: the attempts are used up. A fraction gets the next plan whatever its kernels hold,
            a budget in bytes the plain floor plan, or a refusal.
    """

    budget: int
    observed: Mapping[int, int]
    tried: Mapping[Trial, int] = field(default_factory=dict)
    spent: bool = False


@dataclass(frozen=True)
class Choice:
    """A plan, and what it was chosen for.

    Attributes:
        budget: bytes that were asked for.
        plan: the plan; its peak lies over the budget where that is a fraction below the floor.
        captured: what it plans: the graph with what was observed of it, or without.
        planner: who made it.
        trial: it is a floor plan, tried although its count is over the budget; which one, or None.
    """

    budget: int
    plan: Plan
    captured: Capture
    planner: Planner
    trial: Trial | None = None

    @property
    def clamped(self) -> bool:
        """Whether the budget lies under the floor, and the floor plan was taken."""
        return self.plan.peak > self.budget and not self.trial


def choose(
    settings: Settings,
    joint: fx.GraphModule,
    captured: Capture,
    machine: Machine,
    known: Experience | None,
) -> Choice:
    """Return the plan for a graph: a replayed one, or the best by what is known of its kernels.

    Raises:
        InfeasibleBudget: no plan fits the budget.
    """
    if settings.plan is not None:
        plan = replayed(settings.plan, captured.problem)
        return Choice(plan.peak, plan, captured, Planner(captured.problem, machine))
    observed = captured
    if known is not None:
        observed = replace(captured, problem=captured.problem.with_observed(known.observed))
    effort = EFFORTS[settings.effort]
    planner = Planner(observed.problem, machine, settings.solver_seconds, effort)
    if known is None:
        budget = settings.memory_budget.resolve(planner.fastest_peak, free_bytes(joint))
    else:
        budget = known.budget
    spent = known is not None and known.spent and settings.memory_budget.kind != "fraction"
    if not spent:
        with suppress(InfeasibleBudget):
            return Choice(budget, plan_under(settings, planner, budget), observed, planner)
    tried = known.tried if known else {}
    # A count errs, in both directions: before a budget is refused, and a floor named, the floor
    # plan's kernels are asked. Without Inductor there are none that could tell.
    if captured.problem.compiler == "inductor":
        if "plain" not in tried:
            if observed is not captured:
                # What was observed of several plans adds up to a floor that none of them has.
                planner = Planner(captured.problem, machine, settings.solver_seconds, effort)
            return _trial("plain", budget, captured, planner)
        if known is not None and known.observed and "observed" not in tried and not spent:
            return _trial("observed", budget, observed, planner)
    refusal = planner.refusal(budget)
    raise refusal.with_floor(min(tried.values(), default=refusal.floor))


def _trial(kind: Trial, budget: int, captured: Capture, planner: Planner) -> Choice:
    """Return the choice of a floor plan whose kernels decide about a budget, in bytes."""
    return Choice(budget, replace(planner.floor_plan(), budget=budget), captured, planner, kind)


def limit_of(settings: Settings, choice: Choice, known: Experience | None) -> int | None:
    """Return the bytes that the plan's kernels may hold, None where nothing is promised of them."""
    if known is not None and known.spent and settings.memory_budget.kind == "fraction":
        return None
    # All of the fastest plan's peak is a promise of nothing, and a replayed plan is what it is.
    if settings.memory_budget.is_all or settings.plan is not None:
        return None
    # A trial's budget lies under its count, and is what its kernels have to hold.
    return int(choice.plan.peak * _FLOOR_FILL) if choice.clamped else choice.budget


def plan_under(settings: Settings, planner: Planner, budget: int) -> Plan:
    """Return the best plan that a planner finds for a budget in bytes.

    Raises:
        InfeasibleBudget: the budget lies under the floor, and it is no fraction.
    """
    if planner.problem.compiler == "inductor" and planner.fastest_peak > budget:
        with suppress(InfeasibleBudget):
            return planner.plan(budget, _FILL)
    try:
        return planner.plan(budget)
    except InfeasibleBudget as error:
        if settings.memory_budget.kind == "fraction":
            return planner.floor_plan()
        if planner.problem.compiler == "inductor":
            # A budget of the floor and not a byte more would be refused again for a few bytes.
            raise error.with_floor(math.ceil(error.floor / _FILL)) from None
        raise


def tightened(
    settings: Settings,
    region: float,
    fastest_peak: int,
    free: Callable[[], int] | None,
) -> Settings:
    """Return the settings with the budget of torch's own annotation where that asks for less.

    Args:
        settings: the settings.
        region: the annotation's budget, a ratio.
        fastest_peak: peak of the fastest plan of the graph, bytes.
        free: returns the device's free bytes; None where they are not known.
    """
    if region >= 1:
        return settings
    asked = Budget("fraction", max(region, _LEAST))
    given = settings.memory_budget.resolve(fastest_peak, free)
    less = asked.resolve(fastest_peak, None) < given
    return replace(settings, memory_budget=asked) if less else settings


def free_bytes(joint: fx.GraphModule) -> Callable[[], int]:
    """Return how to ask the graph's device for its free bytes."""

    def free() -> int:
        devices = {t.device for n in joint.graph.nodes for t in tensors(n.meta.get("val"))}
        cuda = sorted((d for d in devices if d.type == "cuda"), key=str)
        if cuda:
            available, _ = torch.cuda.mem_get_info(cuda[0])
            cached = torch.cuda.memory_reserved(cuda[0]) - torch.cuda.memory_allocated(cuda[0])
            return int(available + cached)
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    return free


__all__ = [
    "Choice",
    "Experience",
    "Trial",
    "choose",
    "free_bytes",
    "limit_of",
    "plan_under",
    "tightened",
]
