"""What a plan does with each op and byte, and the planned graph as a value on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from planned import planned
from problems import Net, layers, random_problem, random_schedule

from recut.errors import SettingError
from recut.partitioners.decisions import Choice, Use, decisions, memory, use_of
from recut.partitioners.evaluator import evaluate
from recut.partitioners.problem import Kind, Phase, Rule
from recut.partitioners.schedule import Schedule
from recut.planned import load


def example():
    """``a`` saved, ``b`` run again, ``e`` for the backward only, ``d`` read by no backward."""
    net = Net()
    x, tangent = net.input("x"), net.input("tangent")
    (a,) = net.op("a", (x,), 2**20, seconds=2e-3)
    (b,) = net.op("b", (a,), 2**21, seconds=1e-3)
    (d,) = net.op("d", (b,), 2**19)
    (e,) = net.op("e", (b,), 2**18, phase=Phase.EITHER)
    (g,) = net.op("g", (tangent, b, e), 2**17, phase=Phase.BACKWARD, workspace=2**16)
    return net.problem((d,), (g,)), Schedule((0, 1, 2), (1, 3, 4))


def test_each_kind_of_decision():
    problem, schedule = example()
    schedule.check(problem)
    a, b, d, e, g = decisions(problem, schedule)
    assert (a.choice, a.runs, a.bytes) == (Choice.SAVED, 1, 2**20)
    assert a.reason == "running it again costs 2.00 ms for 1.00 MiB"
    assert (b.choice, b.runs, b.bytes) == (Choice.RECOMPUTED, 2, 0)
    assert b.reason == "once more, 1.00 ms for 2.00 MiB"
    assert [x.choice for x in (d, e, g)] == [Choice.DROPPED, Choice.DEFERRED, Choice.BACKWARD]


def test_a_rule_is_the_reason():
    problem, schedule = example()
    forced = replace(problem.ops[0], rule=Rule.MUST_SAVE, reason="a collective")
    region = replace(problem.ops[1], rule=Rule.MUST_RECOMPUTE, reason="inside a region")
    problem = replace(problem, ops=(forced, region, *problem.ops[2:]))
    found = decisions(problem, schedule)
    assert [x.reason for x in found[:2]] == ["a collective", "inside a region"]


def test_bytes_by_use_at_each_moment():
    problem, schedule = example()
    line = evaluate(problem, schedule)
    found = memory(problem, schedule, line)
    assert found[Use.SAVED] == [2**20] * 4 + [0, 0]
    assert found[Use.TEMPORARY] == [0, 2**21, 2**21, 0, 2**18, 2**18]
    assert found[Use.OUTPUT] == [0, 0, 2**19, 2**19, 2**19, 2**19]
    assert found[Use.RECOMPUTED] == [0, 0, 0, 2**21, 2**21, 2**21]
    assert found[Use.GRADIENT] == [0, 0, 0, 0, 0, 2**17]
    assert found[Use.WORKSPACE] == [0, 0, 0, 0, 0, 2**16]
    assert use_of(problem, line, line.instances[0]) is Use.SAVED


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_uses_add_up_to_what_is_alive(compiler):
    for seed in range(30):
        problem = random_problem(seed, compiler)
        schedule = random_schedule(problem, seed)
        line = evaluate(problem, schedule)
        series = memory(problem, schedule, line)
        sums = [sum(s) for s in zip(*series.values(), strict=True)] or [0] * len(line.live)
        assert sums == list(line.live)
        assert all(x >= 0 for s in series.values() for x in s)


def test_a_planned_graph_is_read_back(tmp_path):
    graph = planned(scheduled_peak=5, planning_seconds=0.25)
    for name, text in graph.files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert load(tmp_path) == graph
    assert graph.peak == graph.timeline.peak <= graph.plan.budget
    assert graph.seconds(graph.fastest) <= graph.time


def test_what_was_observed_is_read_back(tmp_path):
    problem = layers(4)
    op = next(i for i, o in enumerate(problem.ops) if o.kind is Kind.COMPUTE)
    graph = planned(problem.with_observed({op: 12345}))
    for name, text in graph.files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert load(tmp_path) == graph


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("graph.json", lambda x: {**x, "version": 99}),
        ("graph.json", lambda x: {**x, "machine": {}}),
        ("plan.json", lambda x: {**x, "digest": "0" * 64}),
        ("frontier.json", lambda x: [{**x[0], "peak": 1}]),
        ("problem.json", lambda x: {**x, "ops": x["ops"][:-1]}),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path, name, change):
    for file, text in planned(points=2).files().items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    load(tmp_path)
    path = tmp_path / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))), encoding="utf-8")
    with pytest.raises(SettingError, match="no dumped graph"):
        load(tmp_path)


def test_a_folder_of_no_dump_is_refused(tmp_path):
    with pytest.raises(SettingError, match="no dumped graph"):
        load(tmp_path / "missing")
