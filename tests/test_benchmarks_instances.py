"""Published instances: read as they are written, counted twice, refused where they are others."""

from __future__ import annotations

import json

import pytest
from problems import random_schedule

from benchmarks import instances
from recut.partitioners.evaluator import measure
from recut.partitioners.problem import Phase
from recut.partitioners.schedule import Schedule

LAYERS = 12


def chain(path):
    """Write a training graph of a chain: each layer's gradient reads its input and the gradient."""
    nodes = [
        {"name": f"f{k}", "backward": False, "cost_cpu": 5, "cost_ram": 100} for k in range(LAYERS)
    ]
    nodes += [
        {"name": f"b{k}", "backward": True, "cost_cpu": 10, "cost_ram": 50} for k in range(LAYERS)
    ]
    links = [(k - 1, k) for k in range(1, 2 * LAYERS)]
    links += [(LAYERS - 1 - k, LAYERS + k) for k in range(1, LAYERS)]
    graph = {
        "directed": True,
        "multigraph": False,
        "graph": {},
        "nodes": [{"id": k, **node} for k, node in enumerate(nodes)],
        "links": [{"source": a, "target": b} for a, b in links],
    }
    path.write_text(json.dumps(graph))
    return path


def test_an_instance_becomes_a_problem(tmp_path):
    problem = instances.to_problem(instances.read(chain(tmp_path / "chain.json")))
    phases = [op.phase for op in problem.ops]
    assert phases == [Phase.FORWARD] * LAYERS + [Phase.BACKWARD] * LAYERS
    assert [v.bytes for v in problem.values] == [100] * LAYERS + [50] * LAYERS
    for seed in range(50):
        schedule = random_schedule(problem, seed)
        runs = schedule.forward + schedule.backward
        assert instances.peak(problem, runs) == measure(problem, schedule).peak


def test_the_table_says_what_is_added_and_what_does_not_fit(tmp_path, tmp_path_factory, capsys):
    chain(tmp_path / "chain (test)_train_nx.json")
    output = tmp_path_factory.mktemp("results")
    assert instances.main([str(tmp_path), "--output", str(output)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "chain" in line]
    assert len(rows) == len(instances.PERCENTS)
    assert all("%" in row for row in rows)
    page = (output / "instances.md").read_text()
    assert page.count("| chain |") == len(rows)
    assert "| optimal |" in page
    assert (output / "instances.svg").read_text().count("<svg") == 1
    problem = instances.to_problem(instances.read(*tmp_path.iterdir()))
    row = instances.solve("chain", problem, 20)
    assert row.added is None
    assert row.floor > 0.2
    assert row.figures()[2] == ""
    assert instances.solve("chain", problem, 10).figures()[2] == "proven"


def layered(path):
    """Write a random layered graph in its authors' form; it runs in an order of its own."""
    nodes = [{"id": k, "name": k, "out_cost": 10, "duration": 5} for k in range(8)]
    nodes[7]["out_cost"] = 40
    # The first is read at once and at the end, and in between something wide runs.
    links = [{"0": 7, "1": 0}, *({"0": k, "1": k + 1} for k in range(6)), {"0": 7, "1": 6}]
    nodes[2]["out_cost"] = 60
    graph = {
        "directed": True,
        "multigraph": False,
        "graph": {"order": [7, 0, 1, 2, 3, 4, 5, 6]},
        "nodes": nodes,
        "links": links,
    }
    path.write_text(json.dumps(graph))
    return path


def test_a_random_graph_becomes_a_sequence(tmp_path):
    path = layered(tmp_path / "random_layered_n8_w0.1.json")
    problem = instances.to_sequence(instances.read(path))
    order = tuple(range(len(problem.ops)))
    plain = Schedule((), order)
    plain.check(problem)
    assert instances.peak(problem, order) == measure(problem, plain).peak == 110
    assert sum(op.seconds for op in problem.ops) == 40
    row = instances.solve_sequence("random 8", problem, 75)
    assert row.added == 5 / 40  # the first runs again behind what is wide
    assert row.nodes == 8
    assert instances.solve_sequence("random 8", problem, 50).figures()[0] == "none found"


def test_random_graphs_are_in_the_table(tmp_path, tmp_path_factory, capsys):
    layered(tmp_path / "random_layered_n8_w0.1.json")
    output = tmp_path_factory.mktemp("results")
    assert instances.main([str(tmp_path), "--output", str(output)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "random 8" in line]
    assert len(rows) == 2
    assert all("12.500 %" in row for row in rows)
    assert (output / "instances.md").read_text().count("| random 8 |") == 2


def test_graphs_without_a_backward_are_refused(tmp_path):
    path = chain(tmp_path / "chain.json")
    path.write_text(path.read_text().replace('"backward": ', '"other": '))
    with pytest.raises(ValueError, match=r"chain\.json does not say"):
        instances.read(path)
    with pytest.raises(SystemExit):
        instances.main([str(tmp_path)])
