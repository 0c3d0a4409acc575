"""The closed loop under Inductor: what kernels hold is known; what is too much is planned again."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from nets import NETS, floor_expected
from problems import Net
from test_backend import BUILT, step
from torch import nn

import recut.backend
from benchmarks import measure
from benchmarks.models import Transformer, UNet
from recut.partitioners.evaluator import evaluate
from recut.partitioners.problem import Kind, Phase
from recut.partitioners.schedule import lazy_schedule
from recut.passes import _torch, capture, scheduled
from recut.passes.fusion import PlannedOrder


def transformer():
    torch.manual_seed(0)
    model = Transformer(2, 32, 32, vocab=64, causal=True, dropout=0.1)
    return model, (torch.randint(64, (4, 32)), torch.randint(64, (4, 32)))


def unet(levels=1):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    return UNet(checkpoint=False, width=8, levels=levels), (images, torch.randn_like(images))


class Convolutions(nn.Module):
    """Small images, so that copies of the weights in another layout set the peak."""

    def __init__(self, width=24):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = nn.functional.silu(layer(x))
        return x.square().mean()


def convolutions():
    torch.manual_seed(0)
    return Convolutions(), (torch.randn(2, 24, 8, 8),)


class Depthwise(nn.Module):
    """Blocks of ConvNeXt: a window over each channel, then a norm and a layer over channels."""

    def __init__(self, width=96, blocks=2):
        super().__init__()
        self.windows = nn.ModuleList(
            nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.stem = nn.Conv2d(3, width, 1)

    def forward(self, x):
        x = self.stem(x)
        for window, norm, layer in zip(self.windows, self.norms, self.layers, strict=True):
            x = x + layer(norm(window(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x.square().mean()


def depthwise():
    torch.manual_seed(0)
    return Depthwise(), (torch.randn(4, 3, 8, 8),)


class Dropped(nn.Module):
    """Layers with dropout inside and behind."""

    def __init__(self, width=32, layers=4):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))

    def forward(self, x):
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            y = nn.functional.dropout(nn.functional.gelu(up(norm(x))), 0.1)
            x = x + nn.functional.dropout(down(y), 0.1)
        return x.square().mean()


def dropped():
    torch.manual_seed(0)
    return Dropped(), (torch.randn(512, 32),)


class Biased(nn.Module):
    """Attention written out, with a bias by distance that all layers share, as T5 has it."""

    def __init__(self, width=32, layers=4, length=64):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.table = nn.Embedding(2 * length, 2)
        places = torch.arange(length)
        self.register_buffer("distance", places[:, None] - places + length)

    def forward(self, x):
        bias = self.table(self.distance).permute(2, 0, 1)
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            scores = torch.softmax(q @ k.transpose(-1, -2) + bias, -1)
            x = x + (scores @ v).transpose(1, 2).flatten(2)
        return x.square().mean()


def biased():
    torch.manual_seed(0)
    return Biased(), (torch.randn(4, 64, 32),)


MODELS = {
    "transformer": transformer,
    "unet": unet,
    "mlp": NETS["shared_mlp"].make,
    "convolutions": convolutions,
}
OTHERS = {
    "deep unet": partial(unet, 2),
    "depthwise": depthwise,
    "dropped": dropped,
    "biased": biased,
}


def train(name, budget, **options):
    """Two steps under a budget; returns the model, its inputs and the one report."""
    torch._dynamo.reset()
    recut.clear_reports()
    module, inputs = (MODELS | OTHERS)[name]()
    options |= {"memory_budget": budget}
    compiled = torch.compile(module, backend=recut.ckpt_backend, options=options, **BUILT)
    with torch._functorch.config.patch(enable_autograd_cache=False):
        got = step(compiled, module, inputs)
    (report,) = recut.reports()
    return compiled, inputs, got, report


def hide_layout_copies(monkeypatch):
    """Let the planner miss the copies of convolution weights that Inductor makes."""
    monkeypatch.setattr(capture._Builder, "_input_bytes", lambda *_: 0)


@pytest.mark.parametrize(
    "name",
    # A minute each; test_backend.py holds a transformer without dropout to the same.
    [pytest.param(n, marks=[pytest.mark.long] * (n in ("transformer", "unet"))) for n in MODELS],
)
def test_what_kernels_hold_is_what_is_allocated(name):
    with floor_expected():
        compiled, inputs, _, report = train(name, "0.75")
    peak = measure.peak_bytes(compiled, inputs)
    # Workspace of convolutions is an upper bound.
    spare = {"unet": 33 * 1024, "convolutions": 64}
    assert 0 <= report.scheduled_peak - peak <= spare.get(name, 0)


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param("0.6", marks=pytest.mark.long),
        "0.4",
        pytest.param("0.01", marks=pytest.mark.long),
    ],
)
def test_dropout_that_is_recomputed_is_planned_to_the_byte(budget):
    with floor_expected():
        compiled, inputs, _, report = train("dropped", budget)
    assert report.attempts == 1
    assert measure.peak_bytes(compiled, inputs) == report.peak


def test_a_sum_over_a_few_is_not_put_off():
    """Inductor would add up four of a batch where the sum is read, and hold all four until then."""
    with floor_expected():
        compiled, inputs, _, report = train("biased", "0.01")
    assert report.attempts == 1
    assert measure.peak_bytes(compiled, inputs) == report.peak


def test_a_backward_without_convolutions_keeps_images_channels_last():
    """Inductor would lay out what depthwise convolutions' gradients read after the weights."""
    compiled, inputs, _, report = train("depthwise", "1.0")
    peak = measure.peak_bytes(compiled, inputs)
    assert 0 <= report.scheduled_peak - peak <= 1024


@pytest.mark.long  # three minutes; of its kind the attempts at a fraction are quicker
def test_what_the_plan_misses_is_planned_again_and_replayed(monkeypatch, tmp_path):
    hide_layout_copies(monkeypatch)
    _, _, want, fastest = train("deep unet", "1.0")
    assert fastest.scheduled_peak > fastest.peak
    compiled, inputs, got, report = train("deep unet", f"{fastest.peak}B", dump=str(tmp_path))
    assert report.attempts > 1
    assert report.peak <= report.budget == fastest.peak
    assert measure.peak_bytes(compiled, inputs) <= report.budget
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    (plan,) = tmp_path.rglob("plan.json")
    replayed = train("deep unet", "1.0", plan=str(plan))[-1]
    assert (replayed.peak, replayed.attempts) == (report.peak, 1)


def refused(budget):
    """Return the floor that an error names under a budget in bytes; None where it is met."""
    try:
        compiled, inputs, _, _ = train("convolutions", f"{budget}B")
    except recut.InfeasibleBudget as error:
        return error.floor
    assert measure.peak_bytes(compiled, inputs) <= budget
    return None


def test_a_floor_that_kernels_exceed_is_not_called_feasible_twice(monkeypatch):
    hide_layout_copies(monkeypatch)
    budgets = [1000]
    while (floor := refused(budgets[-1])) is not None:
        assert floor > budgets[-1]
        budgets.append(floor)
        assert len(budgets) < 5
    assert len(budgets) > 1


def test_a_refusal_names_no_higher_floor_than_a_fraction_gets(monkeypatch):
    """What a floor plan's kernels hold beyond it is planned with before a budget is refused."""
    hide_layout_copies(monkeypatch)
    with floor_expected():
        report = train("convolutions", "0.01")[-1]
    assert report.attempts > 1
    assert refused(1000) <= report.budget


def test_attempts_at_a_fraction_end_with_the_best_that_is_known(monkeypatch):
    hide_layout_copies(monkeypatch)
    monkeypatch.setattr(recut.backend, "_ATTEMPTS", 2)
    with floor_expected():
        _, _, got, report = train("convolutions", "0.01")
    assert report.attempts == 2
    torch.testing.assert_close(got, train("convolutions", "1.0")[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "attempts", [*(pytest.param(n, marks=pytest.mark.long) for n in (1, 2)), 3]
)
def test_attempts_at_bytes_end_with_a_plan_or_a_refusal(monkeypatch, attempts):
    hide_layout_copies(monkeypatch)
    fastest = train("convolutions", "1.0")[-1].fastest_peak
    monkeypatch.setattr(recut.backend, "_ATTEMPTS", attempts)
    for budget in (1000, fastest // 2, fastest):
        floor = refused(budget)
        assert floor is not None
        assert floor > budget
        assert refused(floor) is None


def test_the_users_own_pass_runs_first():
    class Users(_torch.CustomSchedulerPass):
        seen = 0

        def __call__(self, nodes):
            self.seen += len(nodes)
            return nodes

        def uuid(self):
            return "users"

    users = Users()
    assert PlannedOrder(users).uuid() != PlannedOrder().uuid()
    train("mlp", "1.0", inductor={"_post_fusion_custom_pass": users})
    assert users.seen


def test_what_a_library_call_makes_and_nothing_reads_is_counted():
    """Inductor has no buffer for it: a dropout is drawn again for its mask and makes the rest."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    _, mask = net.op("draw", (x,), 100, 10)
    (y,) = net.op("norm", (mask,), 20, kind=Kind.POINTWISE)
    _, z = net.op("moments", (y,), 40, 30, kind=Kind.REDUCTION)
    (loss,) = net.op("loss", (z,), 1)
    (gradient,) = net.op("back", (tangent, mask), 10, phase=Phase.BACKWARD)
    problem = net.problem((loss,), (gradient,), "inductor")
    line = evaluate(problem, lazy_schedule(problem, ()))
    assert scheduled._unread(problem, line) == {0: 100, line.split: 100}
