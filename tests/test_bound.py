"""The lower bound: no schedule may beat it, and on a hand-made net it is the optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from problems import (
    Net,
    forward_values,
    in_order,
    random_problem,
    random_schedule,
    small_chain,
    subsets,
)
from scipy.sparse import csr_array

from recut.partitioners.bound import seconds_bound
from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.needs import Needs
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Phase, Rule
from recut.partitioners.schedule import lazy_schedule
from recut.partitioners.solver import Answer, LinearProgram

COMPILERS = pytest.mark.parametrize("compiler", ["eager", "inductor"])
BACKWARD = {"phase": Phase.BACKWARD}


@COMPILERS
def test_no_schedule_beats_the_bound(compiler):
    positive = 0
    for seed in range(1000):
        problem = random_problem(seed, compiler)
        for draw in range(3):
            schedule = random_schedule(problem, 3 * seed + draw)
            budget, seconds = measure(problem, schedule).peak, schedule.seconds(problem)
            bound = seconds_bound(problem, budget)
            assert bound <= seconds + 1e-11, (seed, draw)
            if seed % 5 == 0:
                whole = seconds_bound(problem, budget, whole=True)
                assert bound * (1 - 1e-5) <= whole <= seconds + 1e-11, (seed, draw)
            positive += bound > 0
    assert positive > 20


@COMPILERS
def test_no_lazy_schedule_of_a_chain_beats_the_bound(compiler):
    close = total = 0
    for seed in range(16):
        problem = small_chain(seed, compiler)
        points = []
        for saved in subsets(forward_values(problem)):
            schedule = lazy_schedule(problem, saved)
            points.append((measure(problem, schedule).peak, schedule.seconds(problem)))
        for budget in sorted({peak for peak, _ in points}):
            best = min(cost for peak, cost in points if peak <= budget)
            bound = seconds_bound(problem, budget)
            assert bound <= best + 1e-11, (seed, budget)
            total += best > 0
            close += bound > 0 and best <= 2 * bound
    # A bound that is always 0 would pass all of the above. Of nets this small temporaries are most.
    assert close > total / 20


@COMPILERS
def test_no_schedule_beats_the_bound_of_a_moment_in_its_order(compiler):
    sharper = 0
    for seed in range(400):
        problem = (small_chain if seed % 2 else random_problem)(seed, compiler)
        schedule = in_order(problem, seed)
        schedule.check(problem)
        budget = measure(problem, schedule).peak
        whole = seconds_bound(problem, budget)
        needs = Needs(problem)
        for place in range(len(problem.forward_order), len(needs.order)):
            if not needs.moments[place]:
                continue
            need, seconds = needs.at(place), schedule.seconds(problem)
            bound = seconds_bound(problem, budget, need)
            assert bound <= seconds + 1e-11, (seed, place)
            if seed % 5 == 0:
                better = seconds_bound(problem, budget, need, whole=True)
                assert bound * (1 - 1e-5) <= better <= seconds + 1e-11, (seed, place)
            sharper += bound > whole + 1e-9
    assert sharper > 20


def test_what_an_op_of_the_backward_makes_takes_its_room():
    net = Net()
    x = net.input()
    (a,) = net.op("a", (x,), 100, seconds=1.0)
    (b,) = net.op("b", (a,), 100, seconds=3.0)
    (out,) = net.op("out", (b,), 10, seconds=1.0)
    (g,) = net.op("back_b", (b,), 100, **BACKWARD)
    (h,) = net.op("back_a", (g, a), 100, **BACKWARD)
    problem = net.problem((out,), (h,))
    back_b, back_a = map(Needs(problem).at, (3, 4))
    # While back_b runs: out, b and g; where 99 bytes are left, a has to be made again.
    assert seconds_bound(problem, 310) == seconds_bound(problem, 310, back_b) == 0.0
    assert seconds_bound(problem, 309) == 0.0
    assert seconds_bound(problem, 309, back_b) == pytest.approx(0.01)
    assert seconds_bound(problem, 210, back_b) == pytest.approx(1.0)
    # While back_a runs: out, g, a and h.
    assert seconds_bound(problem, 310, back_a) < math.inf
    assert seconds_bound(problem, 309, back_a) == math.inf


def two_matmuls(**more):
    """Two values of 100 bytes, of 1 and 3 seconds, which the backward reads."""
    net = Net()
    x = net.input()
    (a,) = net.op("cheap", (x,), 100, seconds=1.0, **more)
    (b,) = net.op("dear", (x,), 100, seconds=3.0)
    (out,) = net.op("out", (a, b), 10, seconds=1.0)
    (g,) = net.op("back", (a, b), 10, seconds=1.0, **BACKWARD)
    return net.problem((out,), (g,))


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [(210, 0.0), (209, 0.01), (110, 1.0), (60, 2.5), (10, 4.0), (9, math.inf)],
)
def test_the_cheapest_goes_first_and_the_output_stays(budget, seconds):
    assert seconds_bound(two_matmuls(), budget) == pytest.approx(seconds)


def test_what_must_be_saved_never_runs_again():
    problem = two_matmuls(rule=Rule.MUST_SAVE, reason="by the test")
    assert seconds_bound(problem, 110) == pytest.approx(3.0)
    assert seconds_bound(problem, 109) == math.inf


def test_what_must_run_again_is_never_kept():
    problem = two_matmuls(rule=Rule.MUST_RECOMPUTE, reason="by the test")
    assert seconds_bound(problem, 10**6) == pytest.approx(1.0)


def test_what_only_the_backward_needs_runs_once_in_any_case():
    net = Net()
    x = net.input()
    (a,) = net.op("a", (x,), 100, seconds=1.0)
    (b,) = net.op("b", (a,), 100, seconds=5.0, phase=Phase.EITHER)
    (out,) = net.op("out", (a,), 10, seconds=1.0)
    (g,) = net.op("back", (b,), 10, seconds=1.0, **BACKWARD)
    problem = net.problem((out,), (g,))
    assert seconds_bound(problem, 110) == 0.0
    assert seconds_bound(problem, 10) == pytest.approx(1.0)


def test_a_problem_without_a_forward_has_nothing_to_add():
    net = Net()
    (g,) = net.op("back", (net.input(),), 10, **BACKWARD)
    assert seconds_bound(net.problem((), (g,)), 10) == 0.0


def test_plans_carry_it():
    for seed in range(40):
        planner = Planner(small_chain(seed), CPU)
        plan = planner.plan(planner.floor)
        if plan.planner != "min-cut":
            assert plan.any_order_seconds == any_order(planner, plan)
        # What a plan may not use is in the bound all the same.
        plan = planner.plan(int(planner.floor * 1.1) + 1, 1 / 1.1)
        if plan.planner != "min-cut":
            assert plan.any_order_seconds == any_order(planner, plan)
            assert plan.bound_seconds >= plan.any_order_seconds
            assert plan.peak <= plan.budget


def any_order(planner, plan):
    """Return what any plan adds to the cheapest one, by the bound at the end of the forward.

    In whole numbers where fractions do not prove the plan.
    """
    proven = planner.bounds(plan.budget)[0] >= plan.added_seconds * (1 - 1e-5)
    kinds = (False,) if proven else (False, True)
    bound = max(seconds_bound(planner.problem, plan.budget, whole=whole) for whole in kinds)
    return max(0.0, bound - planner.cheapest_seconds)


def test_whole_numbers_prove_what_fractions_do_not(monkeypatch):
    """Two of four layers fit: half of each is cheaper than any two."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    made = []
    for k, size in enumerate((70, 50, 40, 30)):
        (v,) = net.op(f"op{k}", (x,), size, seconds=size / 10 + k % 2)
        made.append((v, *net.op(f"sum{k}", (v,), 1)))
    (loss,) = net.op("loss", tuple(s for _, s in made), 1)
    for k, (v, _) in reversed(list(enumerate(made))):
        (tangent,) = net.op(f"back{k}", (tangent, v), 1, phase=Phase.BACKWARD)
    problem = net.problem((loss,), (tangent,))
    budget = Planner(problem, CPU).fastest_peak * 2 // 3
    fractions = Planner(problem, CPU).bounds(budget)[0]
    plan = Planner(problem, CPU).plan(budget)
    assert fractions < plan.added_seconds * 0.99
    assert plan.bound_seconds >= plan.added_seconds * (1 - 1e-5)
    monkeypatch.setattr(
        LinearProgram, "whole", lambda *_: Answer(None, 0.0)
    )  # as where the solver fails
    assert Planner(problem, CPU).plan(budget).bound_seconds == fractions


def test_a_solver_that_fails_at_whole_numbers_knows_nothing(monkeypatch):
    program = LinearProgram(np.ones(2), csr_array(np.ones((1, 2))))
    assert program.whole(1.0, np.inf, 10).bound == pytest.approx(1.0, rel=1e-5)
    assert program.whole(3.0, np.inf, 10).bound == np.inf
    monkeypatch.setattr(LinearProgram, "_passed", lambda *_: 1 / 0)
    assert program.whole(1.0, np.inf, 10).bound == 0.0
