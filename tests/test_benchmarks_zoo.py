"""What is said of an architecture's row, and one small module looked at as a whole."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import floor_expected
from torch import nn

from benchmarks import zoo
from benchmarks.models.architectures import architectures

GRAPH = {"held": 90, "counted": 95, "planned": 80, "asked": 100, "added": 0.0}
ROW = {"name": "net", "budgets": [{"budget": 0.6, "off": 1e-7, "where": "x", "graphs": [GRAPH]}]}


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ({}, []),
        ({"held": 96}, ["budget 0.6: 96 bytes held, 95 counted, 100 asked"]),
        ({"counted": 101}, ["budget 0.6: 90 bytes held, 101 counted, 100 asked"]),
        ({"held": None}, ["budget 0.6: a graph was not measured"]),
    ],
)
def test_what_is_over_its_count_or_its_budget_is_wrong(graph, said):
    row = copy.deepcopy(ROW)
    row["budgets"][0]["graphs"][0].update(graph)
    assert zoo.wrong(row) == said


def test_other_gradients_and_failures_are_wrong():
    row = copy.deepcopy(ROW)
    row["budgets"][0].update(off=0.5, where="gradient of w", graphs=[])
    assert zoo.wrong(row) == [
        "budget 0.6: nothing was planned",
        "budget 0.6: gradient of w is 5.0e-01 off stock's",
    ]
    assert zoo.wrong({"name": "net", "error": "TypeError: no"}) == ["TypeError: no"]
    made = dict.fromkeys(("date", "torch", "libraries", "device", "command"), "?")
    table = zoo.markdown([{"name": "net", "error": "TypeError: no"}], made)
    assert "TypeError: no" in table


def test_the_worst_tensor_is_named():
    want = {"loss": torch.ones(()), "gradient of a": torch.ones(2), "buffer b": torch.zeros(0)}
    assert zoo.difference(want, want) == (0.0, "")
    got = want | {"gradient of a": torch.tensor([1.0, 1.25])}
    assert zoo.difference(got, want) == (0.25, "gradient of a")
    got = want | {"gradient of a": torch.tensor([1.0, float("nan")])}
    assert zoo.difference(got, want) == (float("inf"), "gradient of a")
    # Rounded zeros are as good as zeros.
    small = want | {"gradient of b": torch.tensor([1e-9])}
    share, _ = zoo.difference(small | {"gradient of b": torch.tensor([2e-9])}, small)
    assert share < 1e-3
    with pytest.raises(ValueError, match="gradient of a"):
        zoo.difference({"loss": torch.ones(())}, {**want, "buffer b": torch.zeros(0)})


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return nn.functional.dropout(self.second(self.first(x).tanh()), 0.5).square().mean()


@pytest.mark.slow
def test_one_module_is_looked_at():
    with floor_expected():
        row = zoo.look(lambda: (Small(), {"x": torch.randn(64, 16)}), (0.01,))
    assert zoo.wrong(row) == []
    (graph,) = row["budgets"][0]["graphs"]
    assert 0 < graph["held"] <= graph["counted"]


def test_every_architecture_of_transformers_is_made():
    pytest.importorskip("transformers")
    for name, make in architectures().items():
        if name[0].isupper():  # timm's are lower case
            model, inputs = make()
            assert any(p.requires_grad for p in model.parameters()), name
            assert inputs
