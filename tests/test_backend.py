"""The backend under Inductor: few compilations, each checked in every respect at once."""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache

import pytest
import torch
from nets import NETS, WIDTH, SharedMLP, floor_expected
from torch import nn

import recut
from benchmarks import measure
from benchmarks.models import Transformer

BUILT = {"fullgraph": True, "dynamic": False}


@pytest.fixture
def passed_on(monkeypatch):
    """Inductor's entry replaced by a record of the options that reach it: nothing is compiled."""
    seen = []

    def compile_fx(gm, _inputs, *, config_patches, **_):
        seen.append(config_patches)
        return gm.forward

    # The package's attribute of this name is a function in some versions.
    module = importlib.import_module("torch._inductor.compile_fx")
    monkeypatch.setattr(module, "compile_fx", compile_fx)
    return seen


def step(call, module, inputs, seed=3):
    """One step from a seed; returns the loss and every gradient by name."""
    module.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = call(*inputs)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in module.named_parameters()}


@cache
def eager_step(name):
    module, inputs = NETS[name].make()
    return step(module, module, inputs)


@pytest.mark.parametrize("name", ["shared_mlp", "mutated_buffer"])
def test_eagers_random_numbers_and_buffers(name, caplog):
    # fallback_random takes eager's stream, so masks replayed by Inductor are compared with eager's.
    module, inputs = NETS[name].make()
    options = {"memory_budget": 0.01, "inductor": {"fallback_random": True}}
    compiled = torch.compile(module, backend=recut.ckpt_backend, options=options, **BUILT)
    with floor_expected(), caplog.at_level("INFO", logger="recut"):
        got = step(compiled, module, inputs)
    torch.testing.assert_close(got, eager_step(name), rtol=1e-9, atol=1e-12)
    (report,) = recut.reports()
    assert report.peak < report.fastest_peak
    assert [r.getMessage() for r in caplog.records if r.name == "recut"] == [report.line()]
    other, _ = NETS[name].make()
    step(other, other, inputs)
    torch.testing.assert_close(dict(module.named_buffers()), dict(other.named_buffers()))


def test_inductors_random_numbers(monkeypatch):
    # Inductor's own stream differs from eager's; at one seed stock draws what recut draws.
    def run(**kwargs):
        torch.manual_seed(0)
        module = SharedMLP(times=2)
        x = torch.randn(256, WIDTH)
        with floor_expected():
            return step(torch.compile(module, **BUILT, **kwargs), module, (x,))

    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    stock, ours = run(), run(backend=recut.ckpt_backend)
    assert len(recut.reports()) == 1
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-7)


# The demo's net, a sixth as deep.
LAYERS, GPT_WIDTH, LENGTH = 2, 128, 256


@pytest.mark.slow
@pytest.mark.parametrize(
    "fraction", [*(pytest.param(f, marks=pytest.mark.long) for f in (0.6, 1.0)), 0.01]
)
def test_the_measured_peak_keeps_the_budget(fraction):
    torch.manual_seed(0)
    model = Transformer(LAYERS, GPT_WIDTH, LENGTH)
    inputs = torch.randint(256, (4, LENGTH)), torch.randint(256, (4, LENGTH))
    want = step(model, model, inputs)
    compiled = torch.compile(
        model, backend=recut.ckpt_backend, options={"memory_budget": fraction}, **BUILT
    )
    with floor_expected():
        got = step(compiled, model, inputs)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    (report,) = recut.reports()
    limit = max(report.budget, report.floor or 0)
    # The loss's own gradient is made by autograd, outside the graph.
    peak = measure.peak_bytes(compiled, inputs) - got[0].nbytes
    print(f"{fraction}: budget {limit}, predicted {report.peak}, measured {peak}")
    assert peak <= limit
    assert abs(report.peak - peak) <= 0.1 * peak
    assert 0 <= report.scheduled_peak - peak - got[0].nbytes <= 1e-4 * peak
    if fraction < 1:
        assert report.peak < report.fastest_peak


@pytest.mark.parametrize("no_grad", [True, False])
def test_inference_compiles_and_reports_nothing(no_grad):
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()).eval()
    module.requires_grad_(no_grad)
    x = torch.randn(8, WIDTH)
    want = module(x).detach()
    options = {"memory_budget": "1KiB"}  # too little for any step, and no matter here
    compiled = torch.compile(module, backend=recut.ckpt_backend, options=options, **BUILT)
    with torch.set_grad_enabled(not no_grad):
        got = compiled(x)
    assert not got.requires_grad
    torch.testing.assert_close(got, want)
    assert recut.reports() == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"memry_budget": 0.5}, ["memry_budget", "memory_budget"]),
        ({"memory_budget": 1.5}, ["memory_budget=1.5", "did you mean"]),
        ({"memory_budget": "12G"}, ["memory_budget='12G'", "12GiB"]),
        ({"solver_seconds": -1}, ["solver_seconds=-1"]),
        ({"inductor": {"max_autotun": True}}, ["max_autotun", "max_autotune"]),
        ({"plan": "nowhere.json"}, ["plan='nowhere.json'", "does not exist"]),
    ],
)
def test_a_wrong_option_is_refused_before_the_first_step(options, parts):
    module, inputs = NETS["shared_mlp"].make()
    compiled = torch.compile(module, backend=recut.ckpt_backend, options=options)
    with pytest.raises(recut.SettingError) as caught:
        compiled(*inputs)
    for part in parts:
        assert part in str(caught.value)
    assert recut.reports() == []


def test_an_infeasible_budget_is_an_error_that_names_the_floor():
    module, inputs = NETS["shared_mlp"].make()
    options = {"memory_budget": "2KiB"}
    compiled = torch.compile(module, backend=recut.ckpt_backend, options=options)
    with pytest.raises(recut.InfeasibleBudget, match="cannot be met") as caught:
        compiled(*inputs)
    error = caught.value
    assert error.budget == 2048 < error.floor
    assert f"{error.floor} bytes" in str(error)
    assert "nets.py:" in str(error)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_a_mode_reaches_inductor(passed_on, mode):
    module, inputs = NETS["shared_mlp"].make()
    torch.compile(module, backend=recut.ckpt_backend, mode=mode)(*inputs)
    (patches,) = passed_on
    assert torch._inductor.list_mode_options(mode).items() <= patches.items()
    assert "custom_partitioner_fn" in patches


def test_an_unknown_mode_is_refused(passed_on):
    module, inputs = NETS["shared_mlp"].make()
    with pytest.raises(recut.SettingError, match="reduce-overheat") as caught:
        torch.compile(module, backend=recut.ckpt_backend, mode="reduce-overheat")(*inputs)
    assert "reduce-overhead" in str(caught.value)
    assert passed_on == []


def test_inductor_options_reach_inductor(passed_on):
    module, inputs = NETS["shared_mlp"].make()
    options = {"inductor": {"epilogue_fusion": False}}
    torch.compile(module, backend=recut.ckpt_backend, options=options)(*inputs)
    (patches,) = passed_on
    assert patches["epilogue_fusion"] is False


def test_options_win_over_the_environment(passed_on, monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.5")
    module, inputs = NETS["shared_mlp"].make()
    for options in ({}, {"memory_budget": "3GiB"}):
        torch._dynamo.reset()
        torch.compile(module, backend=recut.ckpt_backend, options=options)(*inputs)
    budgets = [p["custom_partitioner_fn"].settings.memory_budget for p in passed_on]
    assert budgets == [recut.parse_budget("0.5", ""), recut.parse_budget("3GiB", "")]


def test_the_entry_point_is_the_backend(passed_on):
    points = importlib.metadata.entry_points(group="torch_dynamo_backends")
    if "recut" not in points.names:
        pytest.skip("recut is not installed, so torch cannot know its name")
    assert "recut" in torch._dynamo.list_backends()
    module, inputs = NETS["shared_mlp"].make()
    torch.compile(module, backend="recut", options={"memory_budget": 0.5})(*inputs)
    (patches,) = passed_on
    assert patches["custom_partitioner_fn"].settings.memory_budget.value == 0.5


def test_a_kept_graph_runs_its_backward_twice():
    module, inputs = SharedMLP(times=2), (torch.randn(256, WIDTH),)
    options = {"memory_budget": 0.6}
    compiled = torch.compile(module, backend=recut.ckpt_backend, options=options, **BUILT)
    with floor_expected():
        torch.manual_seed(3)
        loss = compiled(*inputs)
    loss.backward(retain_graph=True)
    once = {n: p.grad.clone() for n, p in module.named_parameters()}
    loss.backward()
    twice = {n: p.grad / 2 for n, p in module.named_parameters()}
    torch.testing.assert_close(twice, once)
    compiled(*inputs).backward()
    compiled(*inputs).backward(retain_graph=True)
