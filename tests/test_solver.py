"""A solver that fails costs the better plan, never a right one, and the plan says so."""

from __future__ import annotations

from types import SimpleNamespace

import highspy
import numpy as np
import pytest
from problems import layers, random_problem
from scipy.sparse import csr_array

from recut.partitioners.bound import seconds_bound
from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.solver import LinearProgram


class Highs:
    """A solver that answers as it is told."""

    def __init__(self, x, status=highspy.HighsModelStatus.kOptimal, cost=0.0):
        self.getSolution = lambda: SimpleNamespace(col_value=x)
        self.getInfo = lambda: SimpleNamespace(objective_function_value=cost)
        self.getModelStatus = lambda: status
        self.modelStatusToString = str


def raises(*_):
    raise RuntimeError("out of licences")


def gives_up(*_):
    return Highs(None, highspy.HighsModelStatus.kTimeLimit)


def not_numbers(program, *_):
    return Highs(np.full(program.columns, np.nan), cost=np.nan)


def too_few(program, *_):
    return Highs(np.zeros(max(program.columns - 1, 0)))


def nonsense(program, *_):
    """A confident answer that fits no row; its bound is as wrong, and cannot be told from right."""
    return Highs(np.random.default_rng(0).random(program.columns))


FAULTS = [raises, gives_up, not_numbers, too_few]


@pytest.mark.parametrize("fault", [*FAULTS, nonsense])
def test_plans_hold_their_budget_without_the_solver(monkeypatch, fault):
    problem = layers(12)
    sound = Planner(problem, CPU)
    low, high = sound.floor, sound.fastest_peak
    want = sound.plan((low + high) // 2)
    monkeypatch.setattr(LinearProgram, "_asked", fault)
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
    monkeypatch.setattr(LinearProgram, "_asked", fault)
    assert seconds_bound(problem, budget) == 0.0


def test_a_solver_that_fails_now_and_then_is_not_missed(monkeypatch):
    problem = random_problem(3, "inductor", 60)
    calls = [0]
    asked = LinearProgram._asked

    def unsteady(*args):
        calls[0] += 1
        return raises() if calls[0] % 3 == 0 else asked(*args)

    monkeypatch.setattr(LinearProgram, "_asked", unsteady)
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


def small_program():
    """Three columns; the first two are dear, the third is cheap and limited by the second row."""
    matrix = csr_array(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))
    return LinearProgram(np.array([2.0, 3.0, 1.0]), matrix)


def test_a_program_that_goes_on_finds_what_one_that_starts_anew_finds():
    program = small_program()
    least, most = np.array([2.0, -np.inf]), np.array([np.inf, 0.5])
    assert program.solve(least, most).bound == pytest.approx(0.5 + 2 + 1.5)
    for limit in (0.25, 0.75, 0.0, 1.0, 0.5):
        most = np.array([np.inf, limit])
        gone_on, anew = program.solve(least, most, go_on=True), small_program().solve(least, most)
        assert gone_on.bound == pytest.approx(anew.bound)
        np.testing.assert_allclose(gone_on.x, anew.x, atol=1e-9)


def test_what_cannot_be_met_is_told_from_what_failed():
    program = small_program()
    nothing_fits = program.solve(np.array([3.5, -np.inf]), np.inf)
    assert (nothing_fits.x, nothing_fits.bound, nothing_fits.failed) == (None, np.inf, "")
    assert program.solve(np.array([1.0, -np.inf]), np.inf).bound == pytest.approx(1.0)


def test_plans_do_not_depend_on_what_was_asked_before():
    problem = layers(12)
    used = Planner(problem, CPU)
    low, high = used.floor, used.fastest_peak
    budgets = [low + (high - low) * k // 5 for k in range(6)]
    used.sweep(4)
    plans = [used.plan(b) for b in reversed(budgets)]
    for budget, plan in zip(reversed(budgets), plans, strict=True):
        fresh = Planner(problem, CPU)
        assert fresh.floor == low
        assert fresh.plan(budget).schedule == plan.schedule


def test_the_solver_says_nothing(capfd):
    assert small_program().solve(0.0, np.inf).x is not None
    assert capfd.readouterr() == ("", "")
