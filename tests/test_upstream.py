"""Ideas of torch's own tests of its memory budget, and its known defects, held against recut.

docs/upstream-tests.md says which upstream test each stands for.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import Net, floor_expected
from steps import Graphs, assert_same, by_dynamo, take_steps
from torch import nn

import recut

aten = torch.ops.aten
SIDE = 64


class Chain(nn.Module):
    """Matmuls of one size with a cosine behind each."""

    def __init__(self, count: int = 5) -> None:
        super().__init__()
        weights = (torch.randn(SIDE, SIDE) / SIDE**0.5 for _ in range(count))
        self.weights = nn.ParameterList(weights)

    def forward(self, x):
        x = x.cos()
        for w in self.weights:
            x = torch.mm(x, w).cos()
        return x.sum()


ROWS = 512


class Mixed(nn.Module):
    """Attention among neighbouring rows and matmuls by turns, with results of one size.

    The more rows attend to each other, the more FLOPs attention takes of the same tensors.
    """

    def __init__(self, neighbours: int, count: int = 4) -> None:
        super().__init__()
        self.neighbours = neighbours
        weights = (torch.randn(SIDE, SIDE) / SIDE**0.5 for _ in range(count))
        self.weights = nn.ParameterList(weights)

    def forward(self, x):
        for w in self.weights:
            rows = x.view(1, -1, self.neighbours, SIDE)
            x = F.scaled_dot_product_attention(rows, rows, rows).view_as(x).cos()
            x = torch.mm(x, w).cos()
        return x.sum()


def planned(monkeypatch, net, budget):
    """Compile under a budget, compare a step with eager's; return the graphs and the report."""
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", budget)
    torch._dynamo.reset()
    recut.clear_reports()
    module, inputs = net.make()
    want = take_steps(module, module, inputs)
    module, inputs = net.make()
    graphs = Graphs()
    with floor_expected():
        assert_same(take_steps(by_dynamo(module, graphs), module, inputs), want)
    (report,) = recut.reports()
    assert report.peak <= max(report.budget, report.floor or 0)
    return graphs, report


def matmuls(graphs, name):
    """A graph's matmuls."""
    return getattr(graphs, name).graph.find_nodes(op="call_function", target=aten.mm.default)


def square(rows, columns):
    """One input of so many rows and columns."""
    return lambda: (torch.randn(rows, columns, dtype=torch.float64, requires_grad=True),)


def test_what_is_cheap_runs_again_and_no_matmul_does(monkeypatch):
    net = Net("", lambda: Chain(1), square(SIDE, SIDE))
    _, report = planned(monkeypatch, net, "1.0")
    graphs, low = planned(monkeypatch, net, f"{report.fastest_peak}B")
    assert low.peak <= report.fastest_peak
    assert len(matmuls(graphs, "backward")) == 2  # the two gradients


def test_a_chain_recomputes_more_matmuls_the_less_it_may_keep(monkeypatch):
    net = Net("", Chain, square(512, SIDE))
    _, fastest = planned(monkeypatch, net, "1.0")
    _, floor = planned(monkeypatch, net, "0.01")
    again, peaks = [], []
    for k in range(6):
        budget = fastest.peak - (fastest.peak - floor.peak) * k // 5
        graphs, report = planned(monkeypatch, net, f"{budget}B")
        again.append(len(matmuls(graphs, "backward")) - 10)
        peaks.append(report.peak)
    assert peaks == sorted(peaks, reverse=True)
    assert again == sorted(again)
    assert again[0] == 0
    assert again[-1] >= 2


@pytest.mark.parametrize("neighbours", [4, 512])
def test_attention_and_matmuls_are_weighed_by_their_flops(monkeypatch, neighbours):
    net = Net("", lambda: Mixed(neighbours), square(512, SIDE))
    _, fastest = planned(monkeypatch, net, "1.0")
    _, floor = planned(monkeypatch, net, "0.01")
    attends, multiplies = 0, 0
    for k in range(1, 6):
        budget = fastest.peak - (fastest.peak - floor.peak) * k // 6
        graphs, _ = planned(monkeypatch, net, f"{budget}B")
        names = [str(call) for call in graphs.calls("backward")]
        attends += sum("attention" in name and "backward" not in name for name in names)
        multiplies += len(matmuls(graphs, "backward")) - 2 * 4
    assert attends + multiplies > 0
    assert (attends > multiplies) == (neighbours == 4)


class BigTable(nn.Module):
    """A table that outweighs all activations, and that the backward does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20000, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))

    def forward(self, text):
        x = self.table(text)
        for layer in self.layers:
            x = x + torch.sin(torch.exp(torch.tanh(layer(x))))
        return x.sum()


def test_a_budget_bounds_what_the_step_adds_however_large_its_inputs_are(monkeypatch):
    net = Net("", BigTable, lambda: (torch.randint(20000, (8192,)),))
    kept = []
    for budget in ("1.0", "0.01"):
        graphs, report = planned(monkeypatch, net, budget)
        kept.append(sum(n.meta["val"].nbytes for n in graphs.saved()))
    assert kept[1] < 0.5 * kept[0]
    assert report.peak < report.fastest_peak


def test_recomputing_a_value_counts_the_chain_behind_it(monkeypatch):
    """A cosine of a matmul is cheap by itself and dear where the matmul has to run with it."""
    net = Net("", lambda: Chain(6), square(512, SIDE))
    _, fastest = planned(monkeypatch, net, "1.0")
    _, floor = planned(monkeypatch, net, "0.01")
    graphs, report = planned(monkeypatch, net, f"{(floor.peak + fastest.peak) // 2}B")
    again = graphs.calls("backward")
    products = len(matmuls(graphs, "backward")) - 12
    # Each matmul that runs again is worth it for what reads it, and sines and cosines alone do not
    # drag any along: there are at least as many of the latter.
    assert again.count(aten.cos.default) >= products
    one_matmul = report.step_seconds / (3 * 6)
    assert report.added_seconds <= (products + 0.5) * one_matmul
