"""What the forward saved may be written over by the backward, and a graph still be kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional

import recut
from benchmarks import measure
from recut.passes import donation

pytestmark = pytest.mark.slow
ROWS, WORDS = 512, 2048
LOGITS = 4 * ROWS * WORDS  # bytes


class Head(nn.Module):
    """A language model's end: the gradient of its logits can lie where the logits were."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, WORDS)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(functional.silu(self.inner(x)))

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.logits(x), targets)


class Shown(Head):
    """The user gets the logits too, and they have to stay what they are."""

    def forward(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        return functional.cross_entropy(logits, targets), logits


@pytest.fixture
def made():
    def make(kind):
        torch.manual_seed(0)
        return kind(), (torch.randn(ROWS, 64), torch.randint(WORDS, (ROWS,)))

    return make


def grads(module):
    return {n: p.grad.clone() for n, p in module.named_parameters()}


def by_eager(module, inputs):
    loss = module(*inputs)
    (loss if isinstance(loss, Tensor) else loss[0]).backward()
    found = grads(module)
    module.zero_grad()
    return found


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_logits_takes_their_place(made):
    module, inputs = made(Head)
    expected = by_eager(module, inputs)
    model = measure.compile_recut(module, 1.0)
    _, codes = run_and_get_code(measure.step, model, inputs)
    assert any(donation._KEPT in code for code in codes)
    (report,) = recut.reports()
    assert report.peak < 2 * LOGITS
    assert report.scheduled_peak <= report.peak
    close(grads(module), expected)
    assert measure.peak_bytes(model, inputs) <= report.peak
    # Stock donates too, and holds as much.
    torch._dynamo.reset()
    assert measure.peak_bytes(measure.compile_stock(module), inputs) < 2 * LOGITS


def test_a_kept_graph_runs_again(made):
    module, inputs = made(Head)
    expected = by_eager(module, inputs)
    model = measure.compile_recut(module, 1.0)
    for times in (1, 3, 2):  # kept never, then twice, then once
        module.zero_grad()
        loss = model(*inputs)
        for left in reversed(range(times)):
            loss.backward(retain_graph=left > 0)
        close({n: g / times for n, g in grads(module).items()}, expected)


def test_a_kept_graph_runs_again_by_cached_code(made, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module, inputs = made(Head)
    expected = by_eager(module, inputs)
    for hits in (0, 1):
        measure.prepare(cache=True)
        torch._dynamo.utils.counters.clear()
        module.zero_grad()
        loss = measure.compile_recut(module, 1.0)(*inputs)
        loss.backward(retain_graph=True)
        loss.backward()
        close({n: g / 2 for n, g in grads(module).items()}, expected)
        assert torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"] == hits


def test_what_the_user_holds_is_left_alone(made):
    module, inputs = made(Shown)
    expected = by_eager(module, inputs)
    loss, logits = measure.compile_recut(module, 1.0)(*inputs)
    before = logits.detach().clone()
    loss.backward()
    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    close(grads(module), expected)
    (report,) = recut.reports()
    assert report.peak >= 2 * LOGITS


def test_torchs_setting_is_heeded(made):
    module, inputs = made(Head)
    with torch._functorch.config.patch(donated_buffer=False):
        _, codes = run_and_get_code(measure.step, measure.compile_recut(module, 1.0), inputs)
    assert not any(donation._KEPT in code for code in codes)


def test_what_shares_a_storage_is_not_given_away():
    graph = torch.fx.Graph()
    whole = torch.empty(8, 4)
    for name, val in (("a", whole), ("b", whole[2:]), ("c", torch.empty(3)), ("n", 3)):
        graph.placeholder(name).meta["val"] = val
    graph.output(())
    assert donation._alone(torch.fx.GraphModule(nn.Module(), graph)) == [2]
