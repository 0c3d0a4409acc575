"""Room that a schedule leaves: what is dropped for it fits, and costs no more."""

from __future__ import annotations

import pytest
from problems import Net, random_problem
from test_schedule import in_stretches

from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Phase
from recut.partitioners.room import Base, filled
from recut.partitioners.schedule import Schedule, lazy_schedule
from recut.partitioners.timing import step_seconds

CASES = 150


def based(problem, schedule):
    return Base(problem, schedule, measure(problem, schedule))


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_what_is_dropped_fits_and_spares_what_was_expected(compiler):
    cheaper = whole = 0
    for seed in range(CASES):
        problem = random_problem(seed, compiler)
        base = based(problem, in_stretches(problem, seed))
        for budget in (base.lives.peak, base.lives.peak * 5 // 4, base.lives.peak * 10):
            choice = base.choice(budget)
            found = base.without(choice, budget)
            if found is None:
                continue
            found.schedule.check(problem)
            assert measure(problem, found.schedule).peak == found.candidate.peak <= budget, seed
            # All of it fits, and the forward is none that has to run more for what is saved.
            if budget > 9 * base.lives.peak and found.schedule.forward == base.schedule.forward:
                whole += 1
                assert found.candidate.seconds <= choice.seconds + 1e-12, seed
            more = filled(base, budget).candidate
            more.schedule.check(problem)
            assert more.peak <= budget, seed
            assert more.seconds <= base.candidate.seconds + 1e-15, seed
            cheaper += more.seconds < base.candidate.seconds - 1e-12
    assert whole > CASES / 5
    assert cheaper > CASES / 5


def layers(sizes, seconds):
    """Ops of one input, each of which the backward reads, in the reverse order."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    made, sums = [], []
    for k, (size, cost) in enumerate(zip(sizes, seconds, strict=True)):
        made.append(net.op(f"op{k}", (x,), size, seconds=cost))
        sums += net.op(f"sum{k}", made[k], 1)
    (loss,) = net.op("loss", tuple(sums), 1)
    for k in reversed(range(len(sizes))):
        (tangent,) = net.op(f"back{k}", (tangent, *made[k]), 1, phase=Phase.BACKWARD)
    return net.problem((loss,), (tangent,))


def again(problem, schedule):
    return {problem.ops[i].name for i in schedule.recomputed(problem)}


@pytest.mark.parametrize(
    ("sizes", "seconds", "budget", "left"),
    [
        ((40, 40, 40), (1.0, 5.0, 2.0), 53, {"op0", "op1"}),  # what is read first stays the least
        ((40, 40, 40), (1.0, 5.0, 2.0), 83, {"op0", "op2"}),  # the dearest
        ((40, 40, 40), (1.0, 5.0, 2.0), 93, {"op0"}),
        ((30, 60, 30), (4.0, 5.0, 4.0), 93, {"op1"}),  # two for the dearest one
    ],
)
def test_what_is_dropped_is_the_best_of_several_orders(sizes, seconds, budget, left):
    problem = layers(sizes, seconds)
    base = based(problem, lazy_schedule(problem, ()))
    assert again(problem, base.schedule) == {"op0", "op1", "op2"}
    assert again(problem, filled(base, budget).schedule) == left


def test_what_runs_for_a_dropped_one_alone_is_gone_with_it():
    """The last layer is dropped, and then nothing asks for the layers in front of it."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    (a,) = net.op("first", (x,), 100, seconds=3.0)
    (b,) = net.op("second", (a,), 100, seconds=1.0)
    (out,) = net.op("loss", (b,), 1)
    (gradient,) = net.op("back", (tangent, b), 100, phase=Phase.BACKWARD)
    problem = net.problem((out,), (gradient,))
    base = based(problem, lazy_schedule(problem, ()))
    assert again(problem, base.schedule) == {"first", "second"}
    choice = base.choice(1000)
    assert len(choice.offers) == 1
    assert again(problem, filled(base, 1000).schedule) == set()


def test_an_op_whose_results_are_read_in_different_stretches_is_dropped_in_each():
    """Attention: what it returns is recomputed early, and the sums that its gradient reads late."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    a, b = net.op("attention", (x,), 100, 10, seconds=3.0)
    (out,) = net.op("loss", (a,), 1)
    (g,) = net.op("early", (tangent, a), 100, phase=Phase.BACKWARD)
    (gradient,) = net.op("late", (g, b), 100, phase=Phase.BACKWARD)
    problem = net.problem((out,), (gradient,))
    base = based(problem, Schedule((0, 1), (0, 2, 0, 3)))
    base.schedule.check(problem)
    assert base.candidate.seconds == 6.0
    assert base.choice(1000).seconds == 0.0
    assert filled(base, 1000).schedule == Schedule((0, 1), (2, 3))


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_planners_leave_no_room(compiler):
    """What a plan leaves of its budget has no place for what it recomputes."""
    for seed in range(30):
        problem = random_problem(seed, compiler)
        planner = Planner(problem, CPU)
        budget = (planner.floor + planner.fastest_peak) // 2
        candidate = planner._cheapest(budget).candidate
        more = filled(based(problem, candidate.schedule), budget).candidate
        before, after = (step_seconds(problem, c.schedule, CPU) for c in (candidate, more))
        assert after >= before * (1 - 1e-9), seed
