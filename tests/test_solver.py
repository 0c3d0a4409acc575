"""A solver that fails costs the better plan, never a right one, and the plan says so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from problems import layers, random_problem

from recut.partitioners import solver
from recut.partitioners.bound import seconds_bound
from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner


def raises(*_args, **_kwargs):
    raise RuntimeError("out of licences")


def gives_up(*_args, **_kwargs):
    return SimpleNamespace(status=1, x=None, fun=None, mip_dual_bound=None, message="time limit")


def not_numbers(cost, **_kwargs):
    x = np.full(len(cost), np.nan)
    return SimpleNamespace(status=0, x=x, fun=np.nan, mip_dual_bound=np.nan, message="")


def too_few(cost, **_kwargs):
    x = np.zeros(max(len(cost) - 1, 0))
    return SimpleNamespace(status=0, x=x, fun=0.0, mip_dual_bound=0.0, message="")


def nonsense(cost, **_kwargs):
    """A confident answer that fits no row; its bound is as wrong, and cannot be told from right."""
    x = np.random.default_rng(0).random(len(cost))
    return SimpleNamespace(status=0, x=x, fun=0.0, mip_dual_bound=0.0, message="")


FAULTS = [raises, gives_up, not_numbers, too_few]


@pytest.mark.parametrize("fault", [*FAULTS, nonsense])
def test_plans_hold_their_budget_without_the_solver(monkeypatch, fault):
    problem = layers(12)
    sound = Planner(problem, CPU)
    low, high = sound.floor, sound.fastest_peak
    want = sound.plan((low + high) // 2)
    monkeypatch.setattr(solver, "milp", fault)
    planner = Planner(problem, CPU)
    assert planner.floor <= 2 * low
    for budget in (planner.floor, (planner.floor + high) // 2, high):
        plan = planner.plan(budget)
        assert plan.peak <= budget
        plan.check(problem)
        assert ("the solver failed" in plan.planner) == (fault in FAULTS and budget < high)
        assert plan.bound_seconds == 0.0
    plan = planner.plan((low + high) // 2)
    assert plan.peak <= (low + high) // 2
    assert plan.added_seconds <= 4 * want.added_seconds + 0.1


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_not_answered_is_no_bound(monkeypatch, fault):
    problem = layers(4)
    budget = Planner(problem, CPU).floor
    assert seconds_bound(problem, budget) > 0
    monkeypatch.setattr(solver, "milp", fault)
    assert seconds_bound(problem, budget) == 0.0


def test_a_solver_that_fails_now_and_then_is_not_missed(monkeypatch):
    problem = random_problem(3, "inductor", 60)
    calls = [0]
    milp = solver.milp

    def unsteady(*args, **kwargs):
        calls[0] += 1
        return raises() if calls[0] % 3 == 0 else milp(*args, **kwargs)

    monkeypatch.setattr(solver, "milp", unsteady)
    planner = Planner(problem, CPU)
    for share in (0.2, 0.5, 0.8):
        budget = int(planner.floor + share * (planner.fastest_peak - planner.floor))
        assert planner.plan(budget).peak <= budget
    assert calls[0] >= 3


def test_without_time_a_plan_is_the_cheapest_segmentation_that_fits():
    problem = layers(12)
    planner = Planner(problem, CPU, seconds=0.0)
    budget = (planner.floor + planner.fastest_peak) // 2
    plan = planner.plan(budget)
    assert "cut short by solver_seconds" in plan.planner
    assert plan.peak <= budget
    fit = [s for s in planner.known() if measure(problem, s).peak <= budget]
    assert plan.schedule.seconds(problem) <= min(s.seconds(problem) for s in fit)
