"""Matmuls add to what they are the last to read, and to nothing that is read later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import recut
from benchmarks import measure

pytestmark = pytest.mark.slow
STEPS, WIDTH = 6, 192
IN_PLACE = "added to in place"


class Cell(nn.Module):
    """One weight, used at every step: its gradient is summed up over them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(STEPS):
            x = torch.tanh(x @ self.weight)
        return x.square().sum()


class Residual(nn.Module):
    """Sums of a matmul and what other ops read as well: behind it, and in the backward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.a
        z = y + torch.tanh(y) @ self.b
        both = y.mul(z).cumsum(0)
        return (both + both.sin() @ self.a).square().sum() + (z + z @ self.b).exp().sum() / 1e3


@pytest.fixture
def run():
    def run(kind, budget=1.0, **config):
        torch.manual_seed(0)
        module, x = kind().double(), torch.randn(8, WIDTH, dtype=torch.float64) / 4
        module(x).backward()
        expected = [p.grad.clone() for p in module.parameters()]
        module.zero_grad()
        model = measure.compile_recut(module, budget)
        with torch._inductor.config.patch(config):
            loss, codes = run_and_get_code(model, x)
            _, more = run_and_get_code(loss.backward, retain_graph=True)
        loss.backward()
        for parameter, grad in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, 2 * grad, rtol=1e-12, atol=1e-12)
        return model, x, "".join(codes + more)

    return run


def test_a_weights_gradient_is_summed_up_in_place(run):
    model, x, code = run(Cell)
    # The first use of the weight has nothing to add to yet.
    assert code.count(IN_PLACE) == STEPS - 1
    (report,) = recut.reports()
    assert report.scheduled_peak < report.peak
    assert measure.peak_bytes(model, [x]) <= report.scheduled_peak


@pytest.mark.filterwarnings("ignore:recut.*lies under the floor")
@pytest.mark.parametrize("budget", [1.0, 0.01])
def test_what_is_read_later_is_not_written_over(run, budget):
    run(Residual, budget)


def test_inductors_setting_is_heeded(run):
    assert IN_PLACE not in run(Cell, inplace_buffers=False)[2]
