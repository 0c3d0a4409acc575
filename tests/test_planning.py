"""Planning without running: the backend's plan, nothing changed, another machine's memory."""

from __future__ import annotations

import copy
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from nets import NETS, WIDTH, SharedMLP, floor_expected
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import recut.choosing
from benchmarks.models import Transformer
from recut import planning
from recut import trace as tracing
from recut.partitioners.machine import MACHINES
from recut.passes import measured, prices, workspace


class Attention(nn.Module):
    """Attention and a convolution: what allocates for itself on a CPU."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, width, 4, stride=4)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.image(x).flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(2, (4, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.gelu(self.out(y) + x).square().mean()


class Enough(Exception):  # noqa: N818 - an answer, not a failure
    pass


def first_attempt(model, inputs, budget, monkeypatch):
    """What the backend plans first for a real step: digest, peak and budget."""
    seen = []
    plan = recut.choosing.plan_under

    def spy(*args):
        seen.append(plan(*args))
        raise Enough  # its code would take a minute

    monkeypatch.setattr("recut.choosing.plan_under", spy)
    options = {"memory_budget": budget}
    compiled = torch.compile(model, backend=recut.ckpt_backend, options=options)
    with floor_expected(), pytest.raises(Exception, match="Enough"):
        compiled(*inputs)
    return seen[0].digest, seen[0].peak, seen[0].budget


@pytest.mark.parametrize("budget", ["70%", "0.01"])
def test_it_is_the_backends_plan_and_leaves_all_as_it_was(budget, monkeypatch):
    torch.manual_seed(0)
    model = Transformer(2, 64, 64)
    inputs = torch.randint(256, (4, 64)), torch.randint(256, (4, 64))
    model(*inputs).backward()
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters()}
    random = torch.get_rng_state()
    planned = recut.plan(model, *inputs, budget=budget)
    assert torch.equal(torch.get_rng_state(), random)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert torch.equal(p.grad, before[name][1])
    assert recut.reports() == []
    got = planned.plan.digest, planned.plan.peak, planned.plan.budget
    assert got == first_attempt(model, inputs, budget, monkeypatch)
    assert planned.name == "Transformer"
    assert planned.fastest.peak >= planned.peak
    assert planned.time >= planned.seconds(planned.fastest)


def test_what_was_compiled_before_stays_compiled():
    model, (x,) = NETS["shared_mlp"].make()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    # By what sizes Dynamo has seen, it would take those that change for dynamic the next time.
    sizes = copy.deepcopy(dict(torch._dynamo.pgo.get_code_state()))
    assert sizes
    recut.plan(model, x)
    recut.plan(model, x[:100])
    assert torch._dynamo.pgo.get_code_state() == sizes
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(x)


@pytest.mark.parametrize("kind", ["real", "meta", "fake", "mixed"])
def test_tensors_need_no_data(kind):
    def make():
        return Attention(), torch.empty(2, 3, 32, 32)

    want = recut.plan(*make(), budget="0.01")
    if kind == "meta":
        with torch.device("meta"):
            model, x = make()
    elif kind in ("fake", "mixed"):
        with FakeTensorMode():
            model, x = make()
        x = torch.empty(2, 3, 32, 32) if kind == "mixed" else x
    else:
        model, x = make()
    got = recut.plan(model, x, budget="0.01")
    assert (got.plan.digest, got.plan.schedule) == (want.plan.digest, want.plan.schedule)
    kinds = {p.device.type for p in model.parameters()}
    assert kinds == ({"meta"} if kind == "meta" else {"cpu"})


def _in_place(net):
    net.compile(backend="eager")
    return net


@pytest.mark.parametrize(
    ("wrap", "around"),
    [
        (lambda net: torch.compile(net, backend="eager"), nullcontext),
        (_in_place, nullcontext),
        (lambda net: net, FakeTensorMode),
        (lambda net: net, lambda: torch.device("meta")),
        (lambda net: net, torch.no_grad),
        (lambda net: net, lambda: torch.compiler.set_stance("force_eager")),
    ],
    ids=["compiled", "in place", "fake mode", "meta", "no grad", "eager"],
)
def test_the_plan_is_the_same_in_any_state(wrap, around):
    def make():
        net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
        return net, torch.empty(512, 64)

    want = recut.plan(*make())
    with around():
        net, x = make()
        got = recut.plan(wrap(net), x)
    assert (got.plan.digest, got.name) == (want.plan.digest, "Sequential")


def test_tied_parameters_stay_tied():
    def make():
        return SharedMLP(0.0).double(), torch.empty(64, WIDTH, dtype=torch.float64)

    want = recut.plan(*make())
    with torch.device("meta"):
        model, x = make()
    assert recut.plan(model, x).plan.digest == want.plan.digest


def test_a_fake_model_takes_no_memory():
    with FakeTensorMode():
        model = nn.Sequential(*(nn.Linear(2**15, 2**15, bias=False) for _ in range(8)))  # 32 GiB
        x = torch.empty(64, 2**15)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    planned = recut.plan(model, x)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert planned.peak > 32 * 2**30
    assert grown < 2**20  # KiB


def test_another_machine_has_its_own_memory_and_nothing_is_run(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("something was run")

    model, x = Attention().bfloat16(), torch.empty(2, 3, 32, 32, dtype=torch.bfloat16)
    here = recut.plan(model, x)
    workspace._allocated.clear()
    monkeypatch.setattr(workspace, "extra_bytes", refuse)
    monkeypatch.setattr(measured, "measure", refuse)
    monkeypatch.setenv("RECUT_COSTS", "measure")
    there = recut.plan(model, x, machine="h200")
    assert there.machine == MACHINES["h200"]
    assert any(op.workspace for op in here.problem.ops)
    assert not any(op.heavy for op in there.problem.ops)
    held = {op.target: op.workspace for op in there.problem.ops if op.workspace}
    # Two heads' rows of 64 by sums in single precision of 8 numbers, padded to 32, and one.
    assert held == {
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": 4
        * (2 * 4 * 128)
        * (32 + 1)
    }


def test_a_description_prices_and_the_environment_counts(monkeypatch):
    model, x = Attention(), torch.empty(2, 3, 32, 32)
    slow = replace(MACHINES["cpu"], name="slow", bandwidth=1e9)
    assert recut.plan(model, x, machine=slow).time > recut.plan(model, x, machine="cpu").time
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    monkeypatch.setenv("RECUT_MACHINE", "a100")
    # More layers than the fastest plan can recompute for nothing: the floor is under its peak.
    deep = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.Tanh())))
    planned = recut.plan(deep, torch.empty(4096, 32))
    assert (planned.asked, planned.machine.name) == ("1%", "a100")
    assert planned.peak == planned.floor < planned.fastest.peak


def test_an_infeasible_budget_and_auto():
    model, (x,) = NETS["shared_mlp"].make()
    with pytest.raises(recut.InfeasibleBudget, match="cannot be met") as caught:
        recut.plan(model, x, budget="2KiB")
    assert recut.plan(model, x, budget=caught.value.floor).peak <= caught.value.floor
    assert recut.plan(model, x, budget="auto").plan.budget > 2**20
    with pytest.raises(recut.SettingError, match="does not report"):
        recut.plan(model, x, budget="auto", machine="h200")


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.layer(x)
        torch._dynamo.graph_break()
        return self.layer(x).sum()


def test_a_graph_break_is_named_by_its_line():
    with pytest.raises(recut.TraceError, match=r"graph breaks at test_planning.py:\d+") as caught:
        recut.plan(Broken(), torch.empty(4, WIDTH))
    assert "Broken" in str(caught.value)


def test_disabled_compilation_is_told(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(recut.TraceError, match="TORCHDYNAMO_DISABLE"):
        recut.plan(nn.Linear(8, 8), torch.empty(4, 8))


@pytest.mark.parametrize("model", [nn.Linear(8, 8).requires_grad_(False), lambda _: 3])
def test_a_model_that_trains_nothing_is_refused(model):
    with pytest.raises(recut.TraceError, match="no training graph"):
        recut.plan(model, torch.empty(4, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has a GPU here")
def test_a_model_on_a_gpu_that_is_not_there_is_refused():
    with FakeTensorMode():
        x = torch.empty(2, 4, device="cuda")
    with pytest.raises(recut.TraceError, match="this machine has none; make it without a device"):
        recut.plan(nn.Linear(4, 4), x)


def test_errors_of_the_model_are_told():
    with pytest.raises(recut.TraceError, match="Linear cannot be planned: tracing it failed"):
        recut.plan(nn.Linear(8, 8), torch.empty(4, 9))
    recut.register_cost(torch.ops.aten.mm, seconds=lambda *_, **__: "a lot")
    try:
        with pytest.raises(TypeError, match="register_cost"):
            recut.plan(nn.Linear(8, 8, bias=False), torch.empty(4, 8))
    finally:
        prices._declared.clear()


def test_two_threads_plan_one_behind_the_other(monkeypatch):
    aside, inside, most = tracing._put_aside, 0, 0

    @contextmanager
    def counted():
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.2)  # long enough for another thread to come in
        with aside():
            yield
        inside -= 1

    monkeypatch.setattr(tracing, "_put_aside", counted)
    nets = [NETS[name].make() for name in ("shared_mlp", "views")]
    alone = [recut.plan(model, *inputs).plan for model, inputs in nets]
    start = Barrier(2)

    def planned(net):
        start.wait()
        return recut.plan(net[0], *net[1]).plan

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(planned, nets)) == alone
    assert most == 1


def test_a_sweep_is_a_frontier():
    model, (x,) = NETS["shared_mlp"].make()
    swept = recut.sweep(model, x, points=5)
    peaks, times = [p.peak for p in swept], [p.seconds for p in swept]
    assert len(swept) == 5
    assert peaks == sorted(peaks)
    assert times == sorted(times, reverse=True)
    assert swept[-1].added == 0 < swept[0].added
    assert swept.at(0).peak == swept[0].peak == swept.fastest.floor
    assert swept.at(0).frontier == swept.fastest.frontier
    assert len(str(swept).splitlines()) == 6
    assert [p["peak"] for p in swept.to_json()["points"]] == peaks
    with pytest.raises(recut.SettingError, match="at least 2 points"):
        recut.sweep(model, x, points=1)


def test_measured_costs_are_of_this_machine_only(monkeypatch):
    asked = []
    monkeypatch.setattr(planning, "measured_costs", lambda *_: asked.append(1) or {})
    monkeypatch.setenv("RECUT_COSTS", "measure")
    model, (x,) = NETS["shared_mlp"].make()
    recut.plan(model, x, machine="h200")
    assert not asked
    recut.plan(model, x, machine="cpu")
    assert asked
