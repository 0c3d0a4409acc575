"""What any plan holds at once: no schedule needs less, and it is what a budget's refusal names."""

from __future__ import annotations

import pytest
from optimum import Optimum
from problems import Net, in_order, random_problem, small_chain

from recut.partitioners.errors import InfeasibleBudget
from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.needs import Needs
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Kind, Phase, Rule

COMPILERS = pytest.mark.parametrize("compiler", ["eager", "inductor"])
BACKWARD = {"phase": Phase.BACKWARD}


@COMPILERS
def test_no_schedule_in_this_order_holds_less(compiler):
    reached = 0
    for seed in range(1500):
        problem = (small_chain if seed % 2 else random_problem)(seed, compiler)
        schedule = in_order(problem, seed)
        need = Needs(problem).most
        if need is not None:
            peak = measure(problem, schedule).peak
            assert need.bytes <= peak, seed
            reached += need.bytes == peak
    assert reached > 20


def test_at_each_moment_no_schedule_holds_less():
    for seed in range(300):
        problem = random_problem(seed, "inductor" if seed % 3 else "eager")
        schedule = in_order(problem, seed)
        live = measure(problem, schedule).live
        entries = schedule.forward + schedule.backward
        needs = Needs(problem)
        # The forward of a schedule may run more than it must; an op of the backward runs once.
        first = dict(reversed([(i, t) for t, i in enumerate(entries)]))
        for place in needs.moments.nonzero()[0].tolist():
            i = int(needs.order[place])
            assert needs.at(place).bytes <= live[first[i]], (seed, problem.ops[i].name)


def test_what_is_in_memory_is_named():
    net = Net()
    x, copied = net.input(), net.input("w", copy=7)
    (kept,) = net.op("kept", (x,), 50, rule=Rule.MUST_SAVE, reason="by the test")
    (a,) = net.op("a", (kept,), 100)
    (out,) = net.op("out", (a,), 10, workspace=3)
    (g,) = net.op("back", (a,), 100, **BACKWARD)
    (h,) = net.op("last", (g, kept, copied), 100, **BACKWARD)
    problem = net.problem((out,), (h,))
    needs = Needs(problem)
    held = [needs.at(place) for place in range(5)]
    assert [need.bytes for need in held] == [57, 157, 170, 267, 267]
    assert held[2].values == (copied, kept, a, out)
    assert held[3].values == (copied, kept, a, out, g)
    assert needs.most == held[3]
    # A plan may drop what is not must-save, and does so at no place where it counts.
    assert Planner(problem, CPU).floor == 267


def test_what_may_stay_in_a_kernel_counts_nothing():
    net = Net()
    (a,) = net.op("a", (net.input(),), 100, kind=Kind.POINTWISE)
    (out,) = net.op("out", (a,), 10)
    (g,) = net.op("back", (out,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (h,) = net.op("sum", (g,), 10, kind=Kind.REDUCTION, **BACKWARD)
    problem = net.problem((out,), (h,), "inductor")
    needs = Needs(problem)
    assert needs.moments.tolist() == [False, True, False, False]
    assert needs.bytes.tolist() == [0, 110, 0, 0]


def test_what_was_only_observed_of_one_plan_is_no_need():
    problem = small_chain(3)
    more = problem.with_observed(dict.fromkeys(range(len(problem.ops)), 1000))
    assert Needs(more).most == Needs(problem).most


def test_the_oracle_finds_nothing_under_it():
    for seed in range(30):
        problem = small_chain(seed)
        assert Optimum(problem).seconds(Needs(problem).most.bytes - 1) is None


def test_an_error_proves_that_no_plan_can_do():
    problem = small_chain(5)
    planner = Planner(problem, CPU)
    need = planner.needs.most
    with pytest.raises(InfeasibleBudget) as caught:
        planner.plan(need.bytes - 1)
    proof = caught.value.proof
    op = problem.ops[need.op]
    assert (proof.bytes, proof.name, proof.op) == (need.bytes, op.name, op.target)
    assert sum(c.bytes for c in proof.held) == need.bytes
    text = str(caught.value)
    assert f"({need.bytes} bytes): that much is in memory while {op.name} = {op.target}" in text
    assert all(c.name in text for c in proof.held[:8])


def test_a_floor_of_kernels_that_hold_less_takes_the_proof_away():
    planner = Planner(small_chain(5), CPU)
    error = InfeasibleBudget(1, planner.floor, planner.culprits(), planner.proof())
    assert error.proof is not None
    assert error.with_floor(planner.floor + 9).proof == error.proof
    less = error.with_floor(error.proof.bytes - 1)
    assert less.proof is None
    assert "No plan can do" not in str(less)
