"""A model traced once for all sizes: what it is said to need, and why it cannot be traced so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recut.fit import Sizes
from recut.planning import read_settings, trace
from recut.symbolic import symbolic
from recut.trace import Call

SETTINGS = read_settings(machine="h200")


class Scorer(nn.Module):
    """Two inputs, of which one grows by two dimensions."""

    def __init__(self, places: int = 4) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.register_buffer("places", torch.zeros(places))

    def forward(self, x, mask, scale=1):
        y = x
        for _ in range(4):
            y = self.down(torch.tanh(self.up(y)))
        return ((y @ y.mT).masked_fill(mask, 0.0).softmax(-1) * scale).square().sum()


def made(size, **kwargs):
    return Call(Scorer(), (torch.empty(3, size, 32), torch.ones(size, size, dtype=bool)), kwargs)


def traced(call, dynamic=None):
    return trace(call, SETTINGS, dynamic)


SIZES = Sizes("length", 2, 500)


def test_its_need_is_that_of_the_graph_at_each_size():
    found = symbolic(SIZES, made, traced, float("inf"))
    budget = 2**20
    found.look(SIZES, budget)
    largest = max(size for size in range(2, 501) if found.expected(size) <= budget)
    assert 10 < largest < 400
    true = {size: traced(made(size)).planner().floor for size in (largest, largest + 1)}
    # What the plans so far hold is one that the graph can be given, at the least.
    assert true[largest] <= found.expected(largest) <= budget
    for size, need in true.items():
        assert found.need(size) == pytest.approx(need, rel=0.01)
    fits = {largest: true[largest]}
    assert (found.surely_over(largest + 40, budget, fits) or 0) > budget
    assert found.surely_over(largest, budget, fits) is None
    assert found.surely_over(largest + 40, budget, {}) is None
    # Where the two do not agree, the graph says nothing.
    assert found.surely_over(largest + 40, budget, {largest: 10 * budget}) is None


def test_inputs_keep_no_mark():
    call = made(20)
    before = [dict(t.__dict__) for t in call.args]
    found = traced(call, {0: (1,), 1: (0, 1)})
    assert [size.hint for size in found.problem.sizes] == [20]
    assert [dict(t.__dict__) for t in call.args] == before
    assert traced(call).problem.sizes == ()


def with_places(size):
    return Call(Scorer(size), made(9).args, {})


def both(size):
    """Dimensions that are equal in the middle (32) only."""
    return Call(Scorer(), (torch.empty(3, size, 32), torch.ones(64 - size, 1, dtype=bool)), {})


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda size: made(size, scale=size), "differ in more than dimensions"),
        (lambda size: made(5), "no dimension of its inputs changes"),
        (with_places, "its parameters or buffers differ"),
        (both, "equal at one size differ at another"),
    ],
)
def test_why_not(make, why):
    known = Sizes("length", 32, 33)
    taken = lambda call, dynamic: traced(made(32), {0: (1,)})  # noqa: E731
    assert why in symbolic(known, make, taken, 1.0)


def test_a_graph_that_takes_the_size_as_a_constant():
    def constant(call, dynamic):
        return traced(call)

    assert "as a constant" in symbolic(SIZES, made, constant, 1.0)
    assert "but one size" in symbolic(Sizes("length", 1, 1), made, traced, 1.0)
