"""Collectives run once, where the model says, and what waits for them waits in the same graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from nets import WIDTH, floor_expected
from ranks import CASES, Gathered, Sharded, Shuffled
from steps import Graphs, by_dynamo, take_steps
from torch import distributed as dist

import recut
from recut.partitioners.problem import Problem

BUDGETS = ("0.5", "0.01")


@pytest.fixture
def two_pretended_ranks(monkeypatch):
    """A process group in which other ranks are only pretended: collectives return garbage."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # torch puts the rank into tracebacks
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def is_collective(target) -> bool:
    return getattr(target, "namespace", "") == "_c10d_functional"


def is_wait(target) -> bool:
    return target is torch.ops._c10d_functional.wait_tensor.default


@pytest.mark.usefixtures("two_pretended_ranks")
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("net", [Sharded, Gathered, Shuffled])
def test_none_is_issued_twice_or_waited_for_elsewhere(monkeypatch, net, budget):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1.0")
    x = torch.randn(64, WIDTH, dtype=torch.float64)
    plain = Graphs()
    take_steps(by_dynamo(module := net().double(), plain), module, (x,))
    torch._dynamo.reset()
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", budget)
    graphs = Graphs()
    with floor_expected():
        take_steps(by_dynamo(module := net().double(), graphs), module, (x,))
    for name in ("forward", "backward"):
        found = Counter(filter(is_collective, graphs.calls(name)))
        assert found == Counter(filter(is_collective, plain.calls(name)))
        assert found.total() >= 2
        waits = found[torch.ops._c10d_functional.wait_tensor.default]
        assert waits == found.total() - waits  # each has its own
    assert not [n for n in graphs.saved() if is_collective(n.target) and not is_wait(n.target)]
    report = recut.reports()[-1]
    assert budget != "0.01" or report.peak < report.fastest_peak


def test_two_ranks_train_as_eager_and_plan_the_same(tmp_path):
    script = Path(__file__).with_name("ranks.py")
    root = str(script.parent.parent)  # a script's own folder is all that Python looks in
    env = {**os.environ, "RECUT_MEMORY_BUDGET": "0.01", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, str(script), str(tmp_path / "store")]
    running = [
        subprocess.Popen(
            [*command, str(rank)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300) for process in running]
    assert [p.returncode for p in running] == [0, 0], "\n".join(err for _, err in said)
    one, two = (out.splitlines() for out, _ in said)
    assert one == two
    assert [line.split(":")[0] for line in one] == [*(c[0] for c in CASES), "all as eager"]


@pytest.mark.usefixtures("two_pretended_ranks")
def test_waiting_takes_no_memory_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("RECUT_DUMP", str(tmp_path))
    by_dynamo(Gathered().double())(torch.randn(64, WIDTH, dtype=torch.float64))
    (file,) = tmp_path.glob("*/problem.json")
    problem = Problem.from_json(json.loads(file.read_text()))
    waits = [i for i, op in enumerate(problem.ops) if "wait_tensor" in op.target]
    assert len(waits) == 6  # three gathered, three gradients scattered
    assert all(problem.ops[i].inplace for i in waits)
