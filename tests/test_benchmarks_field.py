"""The field's benchmark: one row for each graph, FLOPs beyond stock's, a table and a plot."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn

from benchmarks.contest import INFEASIBLE, Row
from benchmarks.field import Field, distinct, field, markdown, medians, plot
from benchmarks.models import ModelSpec
from benchmarks.models.spec import Blocks


class Small(nn.Module):
    def __init__(self, checkpoint):
        super().__init__()
        layers = (nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(3))
        self.blocks = Blocks(layers, checkpoint)

    def forward(self, x):
        return self.blocks(x).square().mean()


def small(checkpoint):
    torch.manual_seed(0)
    return Small(checkpoint), (torch.randn(16, 32),)


def test_settings_that_give_one_graph_are_one_row(monkeypatch):
    spec = ModelSpec("small", small, True, "three layers")
    some = [
        Field("checkpoint per block", checkpoint=True),
        Field("checkpoint that keeps matmuls", checkpoint="matmuls"),
        Field("all", config={"activation_memory_budget": 1.0}),
        Field("half", config={"activation_memory_budget": 0.5}),
        Field("half again", config={"activation_memory_budget": 0.5}),
    ]
    assert {member.label for member in some[:2]} < {member.label for member in field()}
    monkeypatch.setattr("benchmarks.field.field", lambda: some)
    stock, members = distinct(spec, lambda _: None)
    labels = [member.label for member, _ in members]
    # A budget of 1.0 is stock's graph, and half is one graph.
    assert "all" not in labels
    assert "half and others" in labels
    added = {member.label: graphs.flops - stock.flops for member, graphs in members}
    matmul = 2 * 16 * 32 * 32
    # The backward of each activation reads its matmul's output.
    assert added["checkpoint per block"] == 3 * matmul
    assert added["checkpoint that keeps matmuls"] == 0


def document():
    stock = asdict(Row("stock Inductor", "stock", measured=200 * 2**20))
    block = Row("checkpoint per block", "block", measured=50 * 2**20, ratio=1.3)
    budget = Row("budget", "torch budget", measured=2**20, ratio=1.2)
    ours = Row("recut", "recut", asked=50 * 2**20, measured=49 * 2**20, ratio=1.12)
    refused = Row("recut", "recut", asked=2**20, failure=INFEASIBLE)
    pairs = [(block, ours, 10**9, 4 * 10**8), (budget, refused, 10**9, None)]
    names = ("theirs", "ours", "their_flops", "our_flops")
    rows = [dict(zip(names, (asdict(a), asdict(b), c, d), strict=True)) for a, b, c, d in pairs]
    measured = dict.fromkeys(("date", "torch", "device", "command"), "x")
    return {
        "model": "gpt12",
        "note": "a note",
        "rounds": 7,
        "stock": stock,
        "pairs": rows,
        "measured": measured,
    }


def test_the_table_says_what_share_of_the_added_time_is_left():
    text = markdown([document()])
    row = "| checkpoint per block | 50.0 | 1.300 | 1.0 | 49.0 | 1.120 | 0.4 | 0.40 of theirs |"
    assert row in text
    assert "| budget | 1.0 | 1.200 | 1.0 | infeasible |  |  |  |" in text
    assert "200.0 MiB" in text


def test_races_of_one_plan_are_one_point():
    rows = [(3 * 2**20, 1.2), (2**20, 1.5), (3 * 2**20, 1.0), (3 * 2**20, 1.1)]
    pairs = [{"ours": {"failure": "", "measured": m, "ratio": r}} for m, r in rows]
    pairs.append({"ours": {"failure": "infeasible", "measured": 0, "ratio": 0.0}})
    assert medians(pairs) == [(1.0, 1.5), (3.0, 1.1)]


def test_the_plot_is_the_same_twice(tmp_path):
    plot([document()], tmp_path / "a.svg")
    plot([document()], tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
