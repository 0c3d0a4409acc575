"""A plan in words: the figures are the plan's, and each piece of advice stands where it helps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from problems import layers

from recut.explain import size, time
from recut.partitioners.decisions import Choice
from recut.partitioners.evaluator import evaluate
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Rule
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
    assert not [text for text in found.advice if "a step takes" in text]


def test_more_memory_is_offered_where_it_helps(lean):
    (text,) = (t for t in lean.explain().advice if "a step takes" in t)
    assert size(lean.fastest.peak) in text
    (text,) = (t for t in planned(layers(6), 0.1, 8).explain().advice if "a step takes" in t)
    assert text.count("MiB") == 2


def test_one_large_tensor_is_named():
    problem = layers(4)
    values = tuple(
        replace(v, bytes=20 * v.bytes) if v.name == "act3" else v for v in problem.values
    )
    problem = changed(replace(problem, values=values), "act3", source="loss.py:7")
    found = planned(problem).explain()
    assert any("loss.py:7" in text and "chunks" in text for text in found.advice)


def test_gradients_that_fill_the_memory_are_named():
    problem = layers(2)
    values = tuple(
        replace(v, bytes=2**24) if v.name.startswith(("g_down", "g_weight")) else v
        for v in problem.values
    )
    found = planned(replace(problem, values=values)).explain()
    assert any(text.startswith("gradients are") for text in found.advice)


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("tagged MUST_SAVE at net.py:3", "your own policies"),
        ("no cost is known for lib.op", "register_cost"),
    ],
)
def test_what_must_be_saved_is_named(reason, part, lean):
    assert not any(part in text for text in lean.explain().advice)
    found = planned(changed(layers(6), "act", rule=Rule.MUST_SAVE, reason=reason), 0.2).explain()
    assert any(part in text for text in found.advice)
    assert any(held.why == reason for held in found.held)


def test_checkpoint_regions_are_named():
    problem = changed(
        layers(4), "up", rule=Rule.MUST_RECOMPUTE, reason="inside a checkpoint region"
    )
    problem = changed(problem, "bias", rule=Rule.MUST_RECOMPUTE, reason="of a region")
    problem = changed(problem, "act", rule=Rule.MUST_RECOMPUTE, reason="of a region")
    found = planned(problem, 1.0).explain()
    assert any("checkpoint regions recompute" in text for text in found.advice)


def test_workspace_that_fills_the_memory_is_named():
    problem = changed(layers(3), "g_act", workspace=2**26)
    found = planned(problem).explain()
    assert evaluate(problem, planned(problem).plan.schedule).peak == found.peak
    assert any("a library's own" in text for text in found.advice)


def test_sizes_and_times_are_readable():
    assert [size(n) for n in (3, 2048, 3 * 2**20, 5 * 2**30)] == [
        "3 B", "2.00 KiB", "3.00 MiB", "5.00 GiB",
    ]  # fmt: skip
    assert [time(s) for s in (2e-6, 1.5e-3, 2.0)] == ["2.0 us", "1.50 ms", "2.00 s"]
