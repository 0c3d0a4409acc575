"""The exact tier: against all schedules of small problems, and what it answers for any."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from optimum import Optimum
from problems import Net, forward_values, layers, random_problem, small_chain

from recut.partitioners import exact
from recut.partitioners.effort import HIGH, NORMAL
from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Phase, Rule
from recut.partitioners.schedule import Schedule, lazy_schedule, recomputing_schedule
from recut.partitioners.solver import Answer, LinearProgram
from recut.partitioners.stages import StageProgram, Stages

MANY = 10_000


def everything(problem, schedule):
    """Return the program of all that may run."""
    stages = Stages(problem, schedule)
    return StageProgram(stages, stages.everything)


def budgets(problem, low=0):
    planner = Planner(problem, CPU)
    high = planner.fastest_peak
    return [low + (high - low) * k // 6 for k in range(7)]


def test_it_is_the_optimum_of_all_schedules():
    none = possible = proven = 0
    for seed in range(60):
        problem = small_chain(seed)
        program, optimum = everything(problem, Planner(problem, CPU).fastest), Optimum(problem)
        assert program.whole
        for budget in budgets(problem, Planner(problem, CPU).floor // 2):
            best, answer = optimum.seconds(budget), exact.solve(program, budget, MANY)
            if best is None:
                assert answer.candidate is None
                assert math.isinf(answer.bound)
                none += 1
                continue
            assert answer.candidate is not None, (seed, budget)
            assert answer.candidate.peak <= budget
            assert answer.candidate.seconds == pytest.approx(best, rel=1e-4), (seed, budget)
            assert answer.bound <= best + 1e-12
            possible += 1
            proven += answer.bound >= best * (1 - 1e-3) - 1e-12
    assert none > 20
    assert possible > 200
    assert proven == possible


def test_what_it_answers_is_a_schedule_within_the_budget():
    """With effects, rules, ops that write in place, and what only the backward needs."""
    found = 0
    for seed in range(150):
        problem = random_problem(seed)
        planner = Planner(problem, CPU)
        program = everything(problem, planner.fastest)
        for budget in {planner.floor, (planner.floor + planner.fastest_peak) // 2}:
            candidate = exact.solve(program, budget, MANY).candidate
            if candidate is None:
                continue
            candidate.schedule.check(problem)
            assert measure(problem, candidate.schedule).peak == candidate.peak <= budget
            assert candidate.seconds == candidate.schedule.seconds(problem)
            found += 1
    assert found > 150


def test_a_bound_holds_for_every_schedule():
    """With effects, rules, several results and workspaces, as far as bounds are given."""
    held = 0
    for seed in range(150):
        problem = plainer(random_problem(seed))
        program = everything(problem, lazy_schedule(problem, ()))
        assert program.whole
        rng = random.Random(f"bound {seed}")
        values = forward_values(problem)
        saved = [rng.sample(values, rng.randint(0, len(values))) for _ in range(3)]
        schedules = [recomputing_schedule(problem), *(lazy_schedule(problem, x) for x in saved)]
        for schedule in schedules:
            peak, seconds = measure(problem, schedule).peak, schedule.seconds(problem)
            answer = exact.solve(program, peak, MANY)
            assert answer.bound <= seconds + 1e-12, seed
            assert answer.candidate is not None, seed
            assert answer.candidate.seconds <= seconds * (1 + 1e-4) + 1e-12, seed
            held += answer.bound > 0
    assert held > 100


def plainer(problem):
    """Return a problem without what rows do not know: sums in place, choices, copies.

    Nor what an op makes again that the forward has returned, beside what it is to make again.
    """
    ops = tuple(
        replace(op, inplace=False, phase=Phase.BACKWARD if back else Phase.FORWARD)
        for op, back in zip(problem.ops, problem.is_backward, strict=True)
    )
    values = tuple(replace(v, bytes=v.bytes * (v.producer >= 0)) for v in problem.values)
    alone = [
        v
        for v in problem.forward_made(problem.forward_outputs)
        if ops[values[v].producer].outputs == (v,)
    ]
    return replace(problem, ops=ops, values=values, forward_outputs=tuple(alone))


def test_it_starts_from_any_schedule():
    for seed in range(20):
        problem = small_chain(seed)
        planner = Planner(problem, CPU)
        budget = (planner.floor + planner.fastest_peak) // 2
        answers = [
            exact.solve(everything(problem, schedule), budget, MANY)
            for schedule in (
                planner.fastest,
                recomputing_schedule(problem),
                planner.lowest.schedule,
            )
        ]
        seconds = [answer.candidate.seconds for answer in answers]
        assert seconds == pytest.approx([seconds[0]] * 3, rel=1e-4)


def wide():
    """Return a chain in which each backward op reads a value of its own, made of one before."""
    net = Net()
    tangent = net.input("tangent")
    (x,) = net.op("x", (net.input(),), 1)
    made = []
    for k in range(6):
        (x,) = net.op(f"f{k}", (x,), 10, seconds=1.0)
        made.append(x)
    (grad,) = net.op("b", (tangent, x), 1, phase=Phase.BACKWARD)
    for k in reversed(range(6)):
        (grad,) = net.op(f"b{k}", (grad, made[k]), 1, phase=Phase.BACKWARD)
    return net.problem((x,), (grad,))


def test_candidates_are_what_stages_depend_on():
    problem = wide()
    stages = Stages(problem, Planner(problem, CPU).fastest)
    names = [
        {(problem.ops[o].name, problem.ops[stages.own[t]].name) for o, t in stages.within(depth)}
        for depth in (0, 1)
    ]
    # What the forward returns is there: nothing of it runs again.
    assert names[0] == {(f"f{k}", f"b{k}") for k in range(5)}
    assert names[1] == names[0] | {(f"f{k - 1}", f"b{k}") for k in range(1, 5)} | {("x", "b0")}
    for count in (0, 4, 5, 9, 10, 14, MANY):
        some = stages.some(count)
        assert len(some) <= count
        assert some in [set(), stages.everything] + [stages.within(depth) for depth in range(6)]
    assert stages.some(len(stages.everything)) == stages.everything


def test_what_a_later_stage_needs_may_run_at_an_earlier_one():
    """The first own op reads nothing of the forward, and there is room while it runs."""
    problem = wide()
    ops = (
        *problem.ops[:7],
        replace(problem.ops[7], inputs=problem.ops[7].inputs[:1]),
        *problem.ops[8:],
    )
    problem = replace(problem, ops=ops)
    stages = Stages(problem, Planner(problem, CPU).fastest)
    assert not any(t == 0 for _, t in stages.within(MANY))
    assert {o for o, t in stages.everything if t == 0} == {o for o, _ in stages.within(MANY)}


def test_only_the_whole_problem_gives_bounds():
    problem = wide()
    stages = Stages(problem, Planner(problem, CPU).fastest)
    assert StageProgram(stages, stages.everything).whole
    some = StageProgram(stages, stages.within(1))
    assert not some.whole
    assert exact.solve(some, Planner(problem, CPU).floor, MANY).bound == 0
    for change in ({"inplace": True}, {"phase": Phase.EITHER}):
        other = replace(
            problem, ops=(*problem.ops[:3], replace(problem.ops[3], **change), *problem.ops[4:])
        )
        assert not everything(other, Planner(other, CPU).fastest).whole
    assert not everything(layers(2), Planner(layers(2), CPU).fastest).whole


def test_a_sequence_without_a_forward_is_planned():
    """What only the backward needs, and may not save, runs there first and for nothing."""
    net = Net()
    pace = net.input("tangent")
    values = []
    # The first value is read at once and at the end: over the widest op it is in the way.
    for k, (reads, size) in enumerate((((), 40), ((0,), 10), ((1,), 90), ((2,), 10), ((3, 0), 10))):
        more = {"phase": Phase.EITHER, "rule": Rule.MUST_RECOMPUTE, "reason": "as it is"}
        (v,) = net.op(f"op{k}", tuple(values[r] for r in reads), size, seconds=1.0 + k, **more)
        values.append(v)
        (pace,) = net.op(f"pace{k}", (v, pace), 0, seconds=0.0, phase=Phase.BACKWARD)
    problem = net.problem((), (pace,))
    plain = Schedule((), tuple(range(len(problem.ops))))
    plain.check(problem)
    assert measure(problem, plain).peak == 140
    answer = exact.solve(everything(problem, plain), 110, MANY)
    assert answer.candidate is not None
    names = [problem.ops[i].name for i in answer.candidate.schedule.backward]
    assert [x for x in names if "pace" not in x] == ["op0", "op1", "op2", "op3", "op0", "op4"]
    assert answer.candidate.seconds == pytest.approx(1.0)
    assert answer.bound == pytest.approx(1.0, rel=1e-4)
    assert exact.solve(everything(problem, plain), 99, MANY).candidate is None


def test_with_more_effort_plans_of_small_problems_are_optimal():
    plans = optimal = before = named = 0
    for seed in range(10):
        problem = small_chain(seed, length=8)
        normal, high = (Planner(problem, CPU, effort=effort) for effort in (NORMAL, HIGH))
        optimum = Optimum(problem)
        for budget in budgets(problem, normal.floor)[:-1]:
            most = optimum.seconds(budget) * (1 + 1e-4) + 1e-12
            plan = high.plan(budget)
            assert plan.bound_seconds <= plan.added_seconds + 1e-12
            plans += 1
            optimal += plan.schedule.seconds(problem) <= most
            before += normal.plan(budget).schedule.seconds(problem) <= most
            named += plan.planner == "stages"
    assert optimal == plans
    assert before < plans
    assert named


def test_time_and_the_solver_may_fail(monkeypatch):
    problem = small_chain(3)
    planner = Planner(problem, CPU)
    budget = (planner.floor + planner.fastest_peak) // 2
    program = everything(problem, planner.fastest)
    answer = exact.solve(program, budget, MANY, seconds=0.0)
    assert answer.candidate is None or answer.candidate.peak <= budget
    assert answer.cut_short
    monkeypatch.setattr(LinearProgram, "whole", lambda *_: Answer(None, 0.0, "no"))
    answer = exact.solve(program, budget, MANY)
    assert (answer.candidate, answer.bound, answer.failed) == (None, 0.0, "no")
