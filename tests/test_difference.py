"""Decisions, differences of plans and graphs, and the strictness of what is read from files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from problems import layers, random_problem

from recut.errors import SettingError
from recut.files import read_plan, read_problem
from recut.partitioners.decisions import Choice, Use, decisions, groups, memory, pattern
from recut.partitioners.difference import graph_difference, plan_difference
from recut.partitioners.errors import InvalidSchedule
from recut.partitioners.evaluator import evaluate
from recut.partitioners.machine import CPU
from recut.partitioners.plan import Plan
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Phase, Problem, Rule
from recut.planned import PlannedGraph, load


@pytest.fixture(scope="module")
def planned():
    problem = layers(6)
    named = tuple(
        replace(op, module=f"blocks.{op.name[-1]}.mlp" if op.name[-1].isdigit() else "head")
        for op in problem.ops
    )
    problem = replace(problem, ops=named)
    planner = Planner(problem, CPU)
    budget = (planner.floor + planner.fastest_peak) // 2
    fastest = planner.plan(planner.fastest_peak)
    return PlannedGraph(problem, planner.plan(budget), (fastest,), CPU, "Net", "50%", 1, 0.5, None)


def test_decisions_are_what_the_schedule_does(planned):
    problem, schedule = planned.problem, planned.plan.schedule
    runs = Counter(schedule.forward + schedule.backward)
    saved = set(schedule.saved(problem))
    for i, (op, made) in enumerate(zip(problem.ops, planned.decisions, strict=True)):
        assert made.runs == runs[i]
        kept = sum(problem.values[v].bytes for v in op.outputs if v in saved)
        assert made.bytes == (0 if op.phase is Phase.BACKWARD else kept)
        if op.phase is Phase.BACKWARD:
            assert made.choice is Choice.BACKWARD
        elif i in schedule.backward:
            assert made.choice is Choice.RECOMPUTED
        else:
            assert made.choice is (Choice.SAVED if kept else Choice.DROPPED)
        assert made.reason
    found = groups(problem, decisions(problem, schedule), Choice.RECOMPUTED)
    assert sum(g.again for g in found) == sum(schedule.recomputed(problem).values()) > 0
    assert all(g.module in ("blocks.*.mlp", "head") for g in found)


def test_a_forced_save_gives_its_reason(planned):
    problem = changed(planned.problem, 2, rule=Rule.MUST_SAVE, reason="a collective")
    made = decisions(problem, Planner(problem, CPU).lowest.schedule)[2]
    assert (made.choice, made.reason) == (Choice.SAVED, "a collective")


@pytest.mark.parametrize("compiler", ["inductor", "eager"])
def test_the_uses_of_memory_add_up(compiler):
    for seed in range(40):
        problem = random_problem(seed, compiler)
        for schedule in (Planner(problem, CPU).fastest, Planner(problem, CPU).lowest.schedule):
            line = evaluate(problem, schedule)
            by_use = memory(problem, schedule, line)
            for t, live in enumerate(line.live):
                held = [series[t] for series in by_use.values()]
                assert min(held, default=0) >= 0
                assert sum(held) == live, (seed, t)
            assert all(isinstance(use, Use) for use in by_use)


def test_a_pattern_keeps_what_modules_share():
    assert pattern("blocks.3.attn") == pattern("blocks.12.attn") == "blocks.*.attn"
    assert pattern("3") == "*"
    assert pattern("conv2.x1") == "conv2.x1"
    assert pattern("") == ""


def test_plans_are_told_apart(planned):
    one, other = planned.fastest, planned.plan
    assert not plan_difference(planned.problem, one, one)
    found = plan_difference(planned.problem, one, other)
    assert found.peak == (one.peak, other.peak)
    more = sum(d.bytes for d in decisions(planned.problem, other.schedule)) - sum(
        d.bytes for d in decisions(planned.problem, one.schedule)
    )
    assert sum(m.bytes for m in found.moved) == more < 0
    text = "\n".join(found.lines())
    assert "blocks.*.mlp" in text
    assert "saved -> recomputed" in text
    backward = plan_difference(planned.problem, other, one)
    assert sum(m.bytes for m in backward.moved) == -more


def test_an_order_is_a_difference(planned):
    order = list(planned.plan.schedule.forward)
    # The first two ops of one layer's backward in another order would do as well.
    last = planned.plan.schedule.backward
    swapped = (*last[:-2], last[-1], last[-2])
    schedule = replace(planned.plan.schedule, forward=tuple(order), backward=swapped)
    found = plan_difference(planned.problem, planned.plan, replace(planned.plan, schedule=schedule))
    assert found.reordered
    assert "another order" in found.lines()[-1]


def changed(problem, i, **what):
    ops = list(problem.ops)
    ops[i] = replace(ops[i], **what)
    return replace(problem, ops=tuple(ops))


def test_graphs_are_told_apart(planned):
    one = planned.problem
    assert not graph_difference(one, changed(one, 0, seconds=3.0, source="elsewhere.py:1"))
    wide = replace(
        one,
        values=tuple(replace(v, bytes=2 * v.bytes) if v.name == "act2" else v for v in one.values),
    )
    (change,) = graph_difference(one, wide).changes
    assert (change.what, change.target, change.count) == ("other size", "call act2", 1)
    assert change.after == 2 * change.before
    found = graph_difference(one, layers(7))
    assert {c.what for c in graph_difference(layers(6), layers(7)).changes} == {"added"}
    assert {c.what for c in graph_difference(layers(7), layers(6)).changes} == {"removed"}
    assert "following from these" in found.lines()[-1]
    (tagged,) = graph_difference(one, changed(one, 3, rule=Rule.MUST_SAVE)).changes
    assert tagged.what == "may be saved or recomputed otherwise"
    eager = graph_difference(one, replace(one, compiler="eager"))
    assert eager.lines() == ["compiled by eager, not by inductor"]
    rewired = graph_difference(one, changed(one, 5, inputs=(0, 1)))
    assert (rewired.changes, rewired.rewired) == ((), one.ops[5].name)
    assert rewired.lines()


def test_a_folder_gives_back_what_was_written(planned, tmp_path):
    for name, text in planned.files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    back = load(tmp_path)
    assert back == planned
    assert str(back.explain()) == str(planned.explain())


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("graph.json", '"version": 1', '"version": 2'),
        ("graph.json", '"name": "Net"', '"name": 3'),
        ("graph.json", '"floor": 1', '"floor": "low"'),
        ("graph.json", '"measured_peak": null', '"measured_peak": "high"'),
        ("graph.json", '"machine": {', '"machine": {"more": 1, '),
        ("frontier.json", "[", "[1, "),
        ("problem.json", '"inputs": [', '"inputs": [999999, '),
        ("problem.json", '"kind": "compute"', '"kind": "magic"'),
        ("problem.json", '"bytes": 4,', '"bytes": -4,'),
        ("problem.json", '"name": "up0"', '"name": 3'),
        ("problem.json", '"seconds": 0.004', '"seconds": 1e999'),
        ("problem.json", '"seconds": 0.004', '"seconds": "long"'),
        ("problem.json", '"seconds": 0.004', '"seconds": -1'),
        ("problem.json", '"workspace": 0', '"workspace": 0.5'),
        ("problem.json", '"observed": 0', '"observed": 9'),
        ("problem.json", '"heavy": false', '"heavy": 0'),
        ("problem.json", '"producer": -1', '"producer": 999999'),
        ("plan.json", '"digest":"', '"digest":"0'),
        ("plan.json", '"peak":', '"peak":1'),
    ],
)
def test_a_folder_with_a_wrong_file_is_refused(file, old, new, planned, tmp_path):
    files = planned.files()
    if file == "problem.json":  # it is written without spaces
        old, new = old.replace(": ", ":"), new.replace(": ", ":")
    assert old in files[file]
    files[file] = files[file].replace(old, new, 1)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peak", "NaN"), ("peak", "1e3"), ("peak", "-1"), ("peak", str(2**62)), ("budget", "true"),
        ("added_seconds", "Infinity"), ("added_seconds", "1" + "0" * 400), ("planner", "{}"),
        ("added_seconds", "-0.5"), ("forward", "[0.0]"), ("forward", "[-1]"), ("forward", "[[0]]"),
        ("forward", "[" * 10**5), ("observed", "[[0, 1], [0, 2]]"), ("observed", "[[0, -1]]"),
        ("observed", "[[0]]"), ("digest", "7"), ("more", "1"), ("version", "2"),
        ("forward", "[1" + "0" * 5000 + "]"),
    ],
)  # fmt: skip
def test_junk_in_a_plan_is_refused(field, value, planned, tmp_path):
    fields = {**planned.plan.to_json(), field: "HERE"}
    text = json.dumps(fields).replace('"HERE"', value)
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match="no readable plan"):
        read_plan(tmp_path / "plan.json")


def test_a_key_that_is_given_twice_is_refused(planned, tmp_path):
    text = planned.plan.dumps().replace('"peak":', '"peak":1,"peak":')
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match="peak is given twice"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "problem.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SettingError, match="problem"):
        read_problem(tmp_path / "problem.json")


def test_an_observation_of_no_op_is_refused(planned):
    plan = replace(planned.plan, observed=((10**6, 4),))
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(InvalidSchedule, match="op 1000000"):
        plan.check(planned.problem)


def test_a_problem_points_somewhere(planned):
    data = planned.problem.to_json()
    assert Problem.from_json(data) == planned.problem
    data["forward_outputs"] = [len(planned.problem.values)]
    with pytest.raises(ValueError, match="the forward names value"):
        Problem.from_json(data)
