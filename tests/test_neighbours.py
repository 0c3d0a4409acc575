"""Plans of small problems, improved by their neighbours."""

from __future__ import annotations

import random

import pytest
from problems import forward_values, layers, random_problem, small_chain

from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.neighbours import Neighbours
from recut.partitioners.planner import Planner
from recut.partitioners.schedule import lazy_schedule, recomputing_schedule
from recut.partitioners.timing import step_seconds

COMPILERS = pytest.mark.parametrize("compiler", ["eager", "inductor"])


def cost(problem, schedule):
    if problem.compiler == "inductor":
        return step_seconds(problem, schedule, CPU)
    return schedule.seconds(problem)


def starts(problem, seed):
    """Return a few schedules that save at random."""
    rng = random.Random(f"starts {seed}")
    values = forward_values(problem)
    sizes = [rng.randint(0, len(values)) for _ in range(3)]
    return [lazy_schedule(problem, rng.sample(values, k)) for k in sizes]


@COMPILERS
def test_a_problem_is_recomputed_for_each_op_of_the_backward(compiler):
    for seed in range(100):
        problem = random_problem(seed, compiler)
        recomputing_schedule(problem).check(problem)


@COMPILERS
def test_without_tries_a_schedule_is_found_as_it_is(compiler):
    for seed in range(100):
        problem = random_problem(seed, compiler)
        for schedule in starts(problem, seed):
            peak = measure(problem, schedule).peak
            found = Neighbours(problem, CPU).improved([schedule], peak, 0)
            assert found is not None
            assert found.peak == peak == measure(problem, found.schedule).peak
            assert found.seconds == pytest.approx(schedule.seconds(problem), abs=1e-15)


@COMPILERS
def test_what_is_found_fits_and_costs_no_more(compiler):
    better = 0
    for seed in range(40):
        problem = small_chain(seed, compiler)
        for schedule in starts(problem, seed):
            budget = measure(problem, schedule).peak
            found = Neighbours(problem, CPU).improved([schedule], budget, 50)
            assert found is not None
            found.schedule.check(problem)
            assert measure(problem, found.schedule).peak == found.peak <= budget
            assert cost(problem, found.schedule) <= cost(problem, schedule) + 1e-15
            better += cost(problem, found.schedule) < cost(problem, schedule) - 1e-12
    assert better > 30


@COMPILERS
def test_a_peak_is_lowered(compiler):
    lower = 0
    for seed in range(40):
        problem = small_chain(seed, compiler)
        for schedule in starts(problem, seed):
            found = Neighbours(problem, CPU).lowered(schedule, 50)
            found.schedule.check(problem)
            assert measure(problem, found.schedule).peak == found.peak
            assert found.peak <= measure(problem, schedule).peak
            lower += found.peak < measure(problem, schedule).peak
    assert lower > 60


def test_a_schedule_over_the_budget_is_brought_under_it_or_given_up():
    problem = small_chain(3)
    planner = Planner(problem, CPU)
    found = Neighbours(problem, CPU).improved([planner.fastest], planner.floor, 100)
    assert found is not None
    assert found.peak <= planner.floor < planner.fastest_peak
    assert Neighbours(problem, CPU).improved([planner.fastest], 1, 100) is None


@COMPILERS
def test_no_answer_depends_on_what_was_asked_before(compiler):
    for seed in range(20):
        problem = small_chain(seed, compiler)
        (lean, *_), peak = starts(problem, seed), Planner(problem, CPU).fastest_peak
        asked = Neighbours(problem, CPU)
        for budget in range(peak, peak // 2, -max(1, peak // 20)):
            again = Neighbours(problem, CPU).improved([lean], budget, 10)
            assert asked.improved([lean], budget, 10) == again
        assert asked.lowered(lean, 10) == Neighbours(problem, CPU).lowered(lean, 10)


def test_no_more_is_measured_than_is_allowed(monkeypatch):
    problem = layers(6)
    planner = Planner(problem, CPU)
    budget = (planner.floor + planner.fastest_peak) // 2
    begin = [planner.plan(budget).schedule, planner.fastest]
    counted = []

    def counting(*args):
        counted.append(args)
        return measure(*args)

    neighbours = Neighbours(problem, CPU)
    monkeypatch.setattr("recut.partitioners.neighbours.measure", counting)
    neighbours.improved(begin, budget, 10)
    assert 0 < len(counted) <= 2 * (10 + 1)
