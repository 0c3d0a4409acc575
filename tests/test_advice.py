"""What would help next: each rule speaks where its part is large, and is silent where it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned import planned
from problems import Net, layers

from recut.partitioners.advice import advise
from recut.partitioners.machine import CPU
from recut.partitioners.plan import make_plan
from recut.partitioners.problem import Kind, Phase, Rule
from recut.partitioners.schedule import Schedule

MIB = 2**20


def step(*, target="call", kept=0, logits=0, grad=0, output=0, **forward):
    """Plan a step of two ops: parts of its worst moment are as large as they are said to be."""
    net = Net()
    x, tangent = net.input("x"), net.input("tangent")
    (a,) = net.op("a", (x,), kept, source="net.py:3", **forward)
    (b,) = net.op("b", (a,), logits, source="net.py:4")
    (c,) = net.op("c", (b,), output, source="net.py:5")
    (g,) = net.op("g", (tangent, b), grad, phase=Phase.BACKWARD)
    (h,) = net.op("h", (g, a), grad, phase=Phase.BACKWARD)
    problem = net.problem((c,), (g, h))
    ops = [replace(op, target=target) if op.name == "c" else op for op in problem.ops]
    problem = replace(problem, ops=tuple(ops))
    return problem, make_plan(problem, Schedule((0, 1, 2), (3, 4)), 10**9, "by hand")


def about(problem, plan):
    return {a.about: a for a in advise(problem, plan)}


def test_logits_that_set_the_peak():
    problem, plan = step(target="aten._log_softmax.default", logits=8 * MIB, output=8 * MIB)
    advice = about(problem, plan)["the loss"]
    assert advice.bytes == 16 * MIB
    assert "16.0 MiB (100% of the peak)" in advice.text
    assert advice.source == "net.py:4"
    assert "the loss" not in about(*step(logits=8 * MIB, output=8 * MIB))


def test_gradients_and_outputs():
    found = about(*step(grad=5 * MIB, output=2 * MIB, kept=MIB))
    assert found["gradients"].bytes == 10 * MIB
    assert found["outputs"].bytes == 2 * MIB
    assert found["outputs"].source == "net.py:5"
    assert not {"gradients", "outputs"} & set(about(*step(kept=99 * MIB, grad=MIB, output=MIB)))


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("no cost is known for my.op", "recut.register_cost"),
        ("tagged MUST_SAVE at net.py:9", "PREFER_SAVE"),
        ("it reads an input that the step mutates", "Write to a copy"),
        ("a collective", "if the model allows it"),
    ],
)
def test_forced_saves_name_their_line_and_a_remedy(reason, remedy):
    problem, plan = step(kept=8 * MIB, grad=MIB, rule=Rule.MUST_SAVE, reason=reason)
    advice = about(problem, plan)["forced saves"]
    assert advice.bytes == 8 * MIB
    assert remedy in advice.text
    assert reason in advice.text
    assert advice.source == "net.py:3"
    assert "forced saves" not in about(*step(kept=8 * MIB, grad=MIB))


def test_the_line_that_holds_most():
    assert about(*step(kept=8 * MIB, grad=MIB))["saved tensors"].source == "net.py:3"
    assert "saved tensors" not in about(*step(kept=MIB, grad=8 * MIB))


def test_workspace_and_copies_of_inputs():
    problem, plan = step(kept=MIB, workspace=9 * MIB)
    assert about(problem, plan)["workspace"].bytes == 9 * MIB
    net = Net()
    x = net.input("x", copy=4 * MIB)
    (y,) = net.op("y", (x,), MIB)
    problem = net.problem((y,))
    plan = make_plan(problem, Schedule((0,), ()), 10**9, "by hand")
    assert about(problem, plan)["copies of inputs"].bytes == 4 * MIB


def test_regions_of_the_users_own():
    graph = planned(layers(6), share=0.0)
    again = graph.plan.schedule.recomputed(graph.problem)
    dear = [i for i in again if graph.problem.ops[i].kind is Kind.COMPUTE]
    ops = [
        replace(op, rule=Rule.MUST_RECOMPUTE, reason="a region") if i in dear else op
        for i, op in enumerate(graph.problem.ops)
    ]
    problem = replace(graph.problem, ops=tuple(ops))
    found = {a.about: a for a in advise(problem, graph.plan, (), CPU)}
    assert found["checkpoint regions"].seconds == pytest.approx(
        sum(again[i] * problem.ops[i].seconds for i in dear)
    )
    assert "checkpoint regions" not in {a.about for a in advise(problem, graph.plan)}


def test_neighbours_on_the_frontier():
    graph = planned(points=6)
    tight = {a.about: a for a in advise(graph.problem, graph.frontier[0], graph.frontier, CPU)}
    loose = {a.about: a for a in advise(graph.problem, graph.fastest, graph.frontier, CPU)}
    assert "a lower budget" not in tight
    assert "a higher budget" not in loose
    for plan in graph.frontier:
        for one in advise(graph.problem, plan, graph.frontier, CPU):
            if one.about == "a lower budget":
                # What it promises is one of the plans.
                extra = [graph.seconds(p) - graph.seconds(plan) for p in graph.frontier]
                assert any(one.seconds == pytest.approx(max(0.0, x)) for x in extra)


def test_time_that_ran_out():
    problem, plan = step(kept=MIB)
    cut = replace(plan, planner="segments (cut short by solver_seconds)", added_seconds=2.0)
    assert "RECUT_SOLVER_SECONDS" in about(problem, cut)["planning"].text
    assert "planning" not in about(problem, plan)


def test_the_largest_part_comes_first_and_an_empty_step_has_none():
    graph = planned()
    found = advise(graph.problem, graph.plan, graph.frontier, graph.machine)
    assert [a.bytes for a in found] == sorted((a.bytes for a in found), reverse=True)
    problem = Net().problem()
    assert advise(problem, make_plan(problem, Schedule((), ()), 1, "none")) == ()
