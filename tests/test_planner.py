"""Plans: under their budget, no better than possible, the same in every process, JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from optimum import Optimum
from problems import Net, forward_values, layers, random_problem, small_chain, subsets

from recut.partitioners.effort import EFFORTS
from recut.partitioners.errors import ForeignPlan, InfeasibleBudget, InvalidSchedule
from recut.partitioners.evaluator import evaluate
from recut.partitioners.machine import CPU
from recut.partitioners.plan import Plan, make_plan
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Kind, Phase, Problem, Rule
from recut.partitioners.schedule import Schedule, lazy_schedule
from recut.partitioners.timing import step_seconds

ROOT = Path(__file__).resolve().parent.parent
COMPILERS = pytest.mark.parametrize("compiler", ["eager", "inductor"])
MIB = 2**20


def budgets(planner, steps=4):
    """Return budgets from the floor to the fastest plan's peak, both included."""
    low, high = planner.floor, planner.fastest_peak
    return sorted({low + (high - low) * k // steps for k in range(steps + 1)})


def confirm(planner, plan, budget):
    """Check everything that a plan says about itself."""
    problem = planner.problem
    plan.check(problem)
    assert plan.peak == evaluate(problem, plan.schedule).peak <= budget == plan.budget
    added = plan.schedule.seconds(problem) - planner.cheapest_seconds
    assert plan.added_seconds == max(0.0, added)
    assert added >= -1e-12
    assert 0.0 <= plan.bound_seconds <= plan.added_seconds + 1e-12


def confirm_all(problem):
    """Check the plans of a problem from the floor up; return its planner."""
    planner = Planner(problem, CPU)
    for budget in budgets(planner):
        confirm(planner, planner.plan(budget), budget)
    assert planner.floor <= planner.fastest_peak
    confirm(planner, planner.floor_plan(), planner.floor)
    return planner


@COMPILERS
@pytest.mark.parametrize(
    "seeds", [range(0, 60, 2), pytest.param(range(1, 60, 2), marks=pytest.mark.long)]
)
def test_plans_of_chains_stay_under_the_budget(compiler, seeds):
    squeezed = 0
    for seed in seeds:
        planner = confirm_all(small_chain(seed, compiler, length=10))
        squeezed += planner.floor < planner.fastest_peak
    assert squeezed > 25


@COMPILERS
def test_plans_of_random_problems_stay_under_the_budget(compiler):
    squeezed = 0
    for seed in range(150):
        planner = confirm_all(random_problem(seed, compiler))
        squeezed += planner.floor < planner.fastest_peak
    assert squeezed > 10


def test_nothing_lower_is_found_than_the_floor():
    chains = (small_chain(seed, "eager", length=10) for seed in range(60))
    for problem in (*chains, *(random_problem(seed, "inductor") for seed in range(60, 100))):
        planner = Planner(problem, CPU)
        floor = planner.floor
        assert planner.floor_plan().peak == floor
        with pytest.raises(InfeasibleBudget) as caught:
            planner.plan(floor - 1)
        assert (caught.value.budget, caught.value.floor) == (floor - 1, floor)


@COMPILERS
def test_layers(compiler):
    planner = confirm_all(layers(12, compiler))
    # What one layer needs at its backward, and the residual stream before each layer.
    assert planner.fastest_peak > 60 * MIB
    assert planner.floor < 25 * MIB
    plans = [planner.plan(b) for b in budgets(planner, 10)]
    for low, high in pairwise(plans):
        assert low.peak <= high.peak
        assert low.added_seconds >= high.added_seconds
    # Recomputing every layer once is the dearest plan that makes sense in 15 MiB; in less, some ops
    # run once more.
    once = 12 * (2 * 4e-3 + 2 * 2e-5 + 5e-6)
    assert planner.plan(15 * MIB + 4).added_seconds <= 0.97 * once
    assert plans[0].added_seconds <= 1.01 * once
    assert plans[-1].planner == "min-cut"
    assert planner.plan(planner.fastest_peak * 10).schedule == planner.fastest


@cache
def by_budget():
    """Return pairs of plans of chains, each for a budget and the next higher one.

    The fastest plan is left out: it recomputes what costs less than its traffic.
    """
    pairs = []
    for seed in range(60):
        planner = Planner(small_chain(seed), CPU)
        steps = range(planner.floor, planner.fastest_peak)
        plans = [planner.plan(b) for b in steps[:: max(1, len(steps) // 12)]]
        pairs += [(seed, low, high) for low, high in pairwise(plans)]
    return pairs


def test_a_lower_budget_hardly_ever_gives_a_higher_peak():
    higher = [seed for seed, low, high in by_budget() if low.peak > high.peak]
    assert len(higher) <= len(by_budget()) // 500


def test_a_lower_budget_hardly_ever_gives_a_cheaper_plan():
    """Each budget is planned alone, so nothing but the quality of the plans sees to it."""
    pairs = by_budget()
    cheaper = [p for p in pairs if p[1].added_seconds < p[2].added_seconds - 1e-12]
    assert len(pairs) > 300
    assert len(cheaper) <= len(pairs) // 200


@COMPILERS
def test_no_floor_is_over_the_best_that_recomputes_nothing_twice(compiler):
    below = 0
    for seed in range(24):
        problem = small_chain(seed, compiler)
        saved = subsets(forward_values(problem))
        lowest = min(evaluate(problem, lazy_schedule(problem, s)).peak for s in saved)
        floor = Planner(problem, CPU).floor
        assert floor <= lowest, seed
        below += floor < lowest
    assert below >= 12  # what is recomputed may be recomputed twice


def test_no_plan_and_no_bound_beats_the_optimum():
    """The optimum is known: a cheaper plan would be wrong, and a dearer bound no bound."""
    spent, least, optimal, plans = 0.0, 0.0, 0, 0
    for seed in range(24):
        problem = small_chain(seed)
        planner, optimum = Planner(problem, CPU), Optimum(problem)
        for budget in budgets(planner):
            best = optimum.seconds(budget)
            plan = planner.plan(budget)
            seconds = plan.added_seconds + planner.cheapest_seconds
            assert best is not None
            assert plan.bound_seconds + planner.cheapest_seconds <= best + 1e-12, (seed, budget)
            assert seconds >= best - 1e-12, (seed, budget)
            spent, least, plans = spent + seconds, least + best, plans + 1
            optimal += seconds <= best + 1e-12
    # Of chains so short a heuristic misses some optima, and what it adds to them may be a multiple.
    assert optimal >= 0.95 * plans
    assert spent <= 1.03 * least


def test_more_effort_finds_nothing_dearer():
    shorter = 0
    drawn = (random_problem(seed, c) for c in ("eager", "inductor") for seed in range(8))
    for problem in (*drawn, layers(12)):
        normal, high = (Planner(problem, CPU, effort=effort) for effort in EFFORTS.values())
        assert normal.floor == high.floor
        for budget in budgets(normal):
            plan = high.plan(budget)
            confirm(high, plan, budget)
            steps = (p.plan(budget).schedule for p in (normal, high))
            before, after = (step_seconds(problem, schedule, CPU) for schedule in steps)
            assert after <= before * (1 + 1e-12)
            shorter += after < before * (1 - 1e-6)
    assert shorter


def test_what_cannot_be_met_names_the_floor_and_what_sets_it():
    problem = layers(4, "eager")
    planner = Planner(problem, CPU)
    with pytest.raises(InfeasibleBudget) as caught:
        planner.plan(5 * MIB)
    error = caught.value
    line = evaluate(problem, planner.lowest.schedule)
    live = [i for i in line.instances if i.bytes and i.start <= line.worst <= i.end]
    assert error.budget == 5 * MIB
    assert error.floor == planner.floor == line.peak
    assert sorted((c.name, c.bytes) for c in error.culprits) == sorted(
        (problem.values[i.value].name, i.bytes) for i in live
    )
    sizes = [c.bytes for c in error.culprits]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) >= error.floor
    text = str(error)
    assert f"{5 * MIB} bytes" in text
    assert f"{error.floor} bytes" in text
    for c in error.culprits[:3]:
        assert f"{c.name} = {c.op}" in text
        assert c.why


def test_culprits_say_why_and_where():
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    pinned = {"rule": Rule.MUST_SAVE, "reason": "a collective", "source": "m.py:7"}
    (a,) = net.op("a", (x,), 100, **pinned)
    (b,) = net.op("b", (a,), 50)
    (g,) = net.op("g", (tangent, b), 30, phase=Phase.BACKWARD)
    (h,) = net.op("h", (g, a), 1000, phase=Phase.BACKWARD)
    planner = Planner(net.problem((b,), (h,)), CPU)
    assert planner.floor == 100 + 50 + 30 + 1000
    why = {c.name: (c.bytes, c.op, c.source, c.why) for c in planner.culprits()}
    assert why == {
        "a": (100, "call a", "m.py:7", "read at the worst moment by h"),
        "b": (50, "call b", "", "returned by the step"),
        "g": (30, "call g", "", "read at the worst moment by h"),
        "h": (1000, "call h", "", "made at the worst moment"),
    }


def test_where_nothing_may_be_recomputed_the_fastest_plan_is_the_floor():
    net = Net()
    pinned = {"rule": Rule.MUST_SAVE, "reason": "a collective"}
    (a,) = net.op("a", (net.input(),), 100, **pinned)
    (b,) = net.op("b", (a,), 50, **pinned)
    (g,) = net.op("g", (net.input("tangent"), a, b), 30, phase=Phase.BACKWARD)
    planner = confirm_all(net.problem((b,), (g,)))
    assert planner.floor == planner.fastest_peak == 180


def test_a_checkpoint_region_is_never_saved():
    net = Net()
    links = [net.input()]
    inside = {"rule": Rule.MUST_RECOMPUTE, "reason": "inside a checkpoint region"}
    for k in range(8):
        links += net.op(f"f{k}", (links[-1],), 100, **(inside if 2 <= k < 6 else {}))
    (grad,) = net.op("b", (net.input("tangent"), links[-1]), 10, phase=Phase.BACKWARD)
    for k in reversed(range(8)):
        (grad,) = net.op(f"b{k}", (grad, links[k]), 10, phase=Phase.BACKWARD)
    confirm_all(net.problem((links[-1],), (grad,)))


def test_the_fastest_plan_asks_for_no_floor():
    planner = Planner(layers(4), CPU)
    plan = planner.plan(planner.fastest_peak)
    assert plan.schedule == planner.fastest
    assert planner.known_floor is None
    floor = planner.floor_plan()
    assert (floor.planner, floor.peak) == ("floor", planner.known_floor)


# recut/__init__.py imports torch; planning alone must not, so the script stands in for it.
SCRIPT = """
import sys, types
sys.modules["recut"] = package = types.ModuleType("recut")
package.__path__ = ["recut"]
sys.path.insert(0, "tests")
from problems import layers, small_chain
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
for problem in [*(small_chain(seed, "inductor", 12) for seed in range(8)), layers(12)]:
    planner = Planner(problem, CPU)
    low, high = planner.floor, planner.fastest_peak
    for budget in (low, (low + high) // 2, high):
        print(planner.plan(budget).dumps(), end="")
assert "torch" not in sys.modules, "planning imported torch"
"""


def test_two_processes_plan_the_same_and_without_torch():
    answers = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1]
    plans = [Plan.from_json(json.loads(line)) for line in answers[0].splitlines()]
    assert len(plans) == 27
    assert len({p.schedule for p in plans}) > 15


def a_plan():
    problem = small_chain(0)
    planner = Planner(problem, CPU)
    return problem, planner.plan((planner.floor + planner.fastest_peak) // 2)


def test_plans_and_problems_are_json_both_ways():
    problem, plan = a_plan()
    assert Plan.from_json(json.loads(plan.dumps())) == plan
    for seed in range(50):
        problem = random_problem(seed, "inductor")
        back = Problem.from_json(json.loads(json.dumps(problem.to_json())))
        assert back == problem
        assert back.digest == problem.digest
        assert all(type(o.kind) is Kind and type(o.rule) is Rule for o in back.ops)


def test_the_digest_covers_what_a_plan_depends_on_and_neither_names_nor_prices():
    problem, plan = a_plan()

    def changed(**fields):
        ops = (dataclasses.replace(problem.ops[1], **fields), *problem.ops[2:])
        return dataclasses.replace(problem, ops=(problem.ops[0], *ops))

    plan.check(changed(name="other", source="other.py:1", reason="other", seconds=1.0))
    for other in (
        *(changed(**{flag: True}) for flag in ("heavy", "realized", "flat", "inplace", "random")),
        *(changed(**{field: 1}) for field in ("workspace", "target")),
        changed(kind=Kind.OTHER),
        changed(rule=Rule.MUST_SAVE),
        dataclasses.replace(problem, compiler="inductor"),
        dataclasses.replace(problem, forward_outputs=()),
        dataclasses.replace(problem, backward_outputs=()),
        dataclasses.replace(
            problem, values=(*problem.values[:-1], dataclasses.replace(problem.values[-1], bytes=1))
        ),
    ):
        with pytest.raises(ForeignPlan, match=problem.digest[:12]):
            plan.check(other)


def test_a_plan_that_does_not_keep_its_word_is_refused():
    problem, plan = a_plan()
    with pytest.raises(
        InvalidSchedule, match=f"promises a peak of {plan.peak - 1} bytes, but has {plan.peak}"
    ):
        dataclasses.replace(plan, peak=plan.peak - 1).check(problem)
    short = Schedule(plan.schedule.forward, plan.schedule.backward[1:])
    with pytest.raises(InvalidSchedule):
        dataclasses.replace(plan, schedule=short).check(problem)
    with pytest.raises(InvalidSchedule):
        make_plan(problem, short, plan.budget, "test")


def garbled(fields):
    with pytest.raises(ValueError, match=r"plan"):
        Plan.from_json(a_plan()[1].to_json() | fields)


@pytest.mark.parametrize(
    "data", [None, [], "plan", 1, {}, {"version": 0}, {"version": 1}, {"version": 2}]
)
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(ValueError, match=r"plan"):
        Plan.from_json(data)


@pytest.mark.parametrize(
    "field",
    sorted(a_plan()[1].to_json().keys() - {"version"}),
)
def test_a_plan_that_lacks_a_field_is_refused(field):
    data = a_plan()[1].to_json()
    del data[field]
    with pytest.raises(ValueError, match=field):
        Plan.from_json(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"forward": 5},
        {"backward": None},
        {"budget": None},
        {"peak": []},
        {"added_seconds": {}},
        {"forward": [[0]]},
        {"version": 1},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_refused(fields):
    garbled(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"forward": "0123"},
        {"backward": [0.5, 1.5]},
        {"forward": [True, False]},
        {"peak": float("inf")},
        {"budget": "many"},
        {"added_seconds": "0.5"},
        {"digest": None},
    ],
    ids=str,
)
def test_a_field_that_only_looks_right_is_refused(fields):
    garbled(fields)
