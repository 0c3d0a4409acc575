"""Steps at sizes beyond a budget in bytes warn, once for each graph."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import recut

WIDTH = 32


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))


def warned(call):
    """Return the texts of the warnings about larger sizes that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call().sum().backward()
    return [str(w.message) for w in caught if "a graph was planned for" in str(w.message)]


def compiled(budget, dynamic=True):
    torch._dynamo.reset()
    options = {"memory_budget": budget}
    return torch.compile(net(), backend=recut.ckpt_backend, options=options, dynamic=dynamic)


@pytest.fixture(scope="module")
def budget():
    """What the fastest plan needs for 64 rows, and a tenth."""
    compiled(1.0)(torch.randn(64, WIDTH)).sum().backward()
    return recut.reports()[-1].peak * 11 // 10


def test_a_step_beyond_the_budget_warns_once(budget):
    step = compiled(budget)
    assert warned(lambda: step(torch.randn(64, WIDTH))) == []
    report = recut.reports()[-1]
    (symbol,) = report.formula.hints
    most = report.formula.largest(symbol, report.budget)
    assert 64 < most < 256
    assert warned(lambda: step(torch.randn(most, WIDTH))) == []
    (text,) = warned(lambda: step(torch.randn(most + 1, WIDTH)))
    assert f"{symbol} = {most + 1} (64)" in text
    assert warned(lambda: step(torch.randn(256, WIDTH))) == []
    assert len(recut.reports()) == 1, "nothing was compiled again"


def test_a_fraction_and_fixed_sizes_promise_nothing_at_other_sizes(budget):
    step = compiled("60%")
    assert warned(lambda: step(torch.randn(64, WIDTH))) == []
    assert warned(lambda: step(torch.randn(256, WIDTH))) == []
    step = compiled(budget, dynamic=False)
    assert warned(lambda: step(torch.randn(64, WIDTH))) == []
