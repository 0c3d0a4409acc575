"""A plan in words: the figures are the plan's, and each piece of advice stands where it helps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from problems import layers

from recut.partitioners.advice import advise
from recut.partitioners.decisions import Choice, Use
from recut.partitioners.evaluator import evaluate
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Rule
from recut.partitioners.units import size
from recut.planned import PlannedGraph


def planned(problem, share=0.5, points=0):
    planner = Planner(problem, CPU)
    budget = int(planner.floor + (planner.fastest_peak - planner.floor) * share)
    frontier = planner.sweep(points) if points else (planner.plan(planner.fastest_peak),)
    return PlannedGraph(problem, planner.plan(budget), frontier, CPU, "Net", f"{budget} bytes")


@pytest.fixture(scope="module")
def lean():
    return planned(layers(6))


def changed(problem, name, **what):
    ops = tuple(replace(op, **what) if op.name.startswith(name) else op for op in problem.ops)
    return replace(problem, ops=ops)


def test_the_figures_are_the_plans(lean):
    found, line = lean.explain(), lean.timeline
    assert found.peak == lean.peak == sum(found.live.values())
    assert found.held == tuple(sorted(found.held, key=lambda h: (-h.bytes, h.name)))
    order = lean.plan.schedule.forward + lean.plan.schedule.backward
    assert found.moment == lean.problem.ops[order[line.worst]]
    assert found.in_backward == (line.worst >= line.split)
    assert found.step_seconds == lean.time
    assert {g.choice for g in found.saved} == {Choice.SAVED}
    assert sum(g.ops for g in found.recomputed) == len(lean.plan.schedule.recomputed(lean.problem))
    text = str(found)
    for part in ("Net: ", size(lean.peak), size(lean.plan.budget), "saved for the backward", "ms"):
        assert part in text
    assert text.startswith("\n".join(found.summary()[:5]))
    assert json.loads(json.dumps(found.to_json()))["peak"] == lean.peak


def test_the_fastest_plan_needs_no_proof():
    found = planned(layers(4), 1.0).explain()
    assert found.added == 0
    assert "no plan is faster" in str(found)


def test_advice_is_that_of_the_report():
    problem = changed(layers(6), "act", rule=Rule.MUST_SAVE, reason="tagged MUST_SAVE at net.py:3")
    graph = planned(problem, 0.2, 8)
    found = graph.explain()
    assert found.advice == advise(problem, graph.plan, graph.frontier, CPU)
    assert any("MUST_SAVE at net.py:3" in advice.text for advice in found.advice)
    lines = str(found).splitlines()
    assert lines[-len(found.advice) - 1] == "what would help:"
    assert lines[-1] == f"  - {found.advice[-1].text}"
    assert any(held.why == "tagged MUST_SAVE at net.py:3" for held in found.held)
    assert json.loads(json.dumps(found.to_json()))["advice"][0]["text"] == found.advice[0].text


def test_workspace_at_the_peak_is_told():
    problem = changed(layers(3), "g_act", workspace=2**26)
    found = planned(problem).explain()
    assert evaluate(problem, planned(problem).plan.schedule).peak == found.peak
    assert found.live[Use.WORKSPACE] == 2**26
