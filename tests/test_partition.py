"""Partitioned steps without Inductor: what a net computes is eager's, whatever the budget."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import aot_function, aot_module
from nets import NETS, WIDTH, Checkpointed, Net, Random, SharedMLP, floor_expected, rows
from steps import Graphs, assert_same, by_aot, by_dynamo, check, take_steps
from torch import fx, nn

import recut
from benchmarks.outcomes import SEED
from recut import pipeline

aten = torch.ops.aten
BUDGETS = ("1.0", "0.5", "0.01", "bytes")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NETS)
def test_a_step_is_eagers(monkeypatch, name, budget):
    check(monkeypatch, NETS[name], budget)


@pytest.mark.parametrize("budget", ["1.0", "0.01"])
@pytest.mark.parametrize("name", ["shared_mlp", "mutated_buffer", "batch_norm", "several"])
def test_a_step_behind_dynamo_is_eagers(monkeypatch, name, budget):
    check(monkeypatch, NETS[name], budget, by_dynamo)


@pytest.mark.parametrize("name", ["gpt", "batch_norm"])
def test_later_steps_are_eagers(monkeypatch, name):
    # The generator goes on from step to step, and running statistics add up.
    check(monkeypatch, NETS[name], "0.01", steps=3)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_net_is_eagers(monkeypatch, seed):
    check(monkeypatch, Net(f"random {seed}", partial(Random, seed), rows), "0.01")


def test_prices_of_another_kind_of_device_are_told_once(monkeypatch):
    pipeline._warn_of_foreign.cache_clear()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))

    def compiled(machine, width):
        monkeypatch.setenv("RECUT_MACHINE", machine)
        by_dynamo(model)(torch.randn(width, 8)).sum().backward()
        (report,) = recut.reports()
        assert report.budget
        torch._dynamo.reset()
        recut.clear_reports()

    with pytest.warns(UserWarning, match="describes a cuda device .*h200.* runs on cpu"):
        compiled("h200", 4)
    compiled("h200", 5)  # any further warning would be an error
    compiled("cpu", 4)


def test_aot_module(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    module, inputs = NETS["gpt"].make()
    want = take_steps(module, module, inputs)
    module, inputs = NETS["gpt"].make()
    compiled = aot_module(module, **Graphs().compilers(), partition_fn=recut.partition)
    with floor_expected():
        assert_same(take_steps(compiled, module, inputs), want)
    assert len(recut.reports()) == 1


def test_dropout_is_replayed_from_its_own_state(monkeypatch):
    net = Net("shared_mlp", partial(SharedMLP, times=12), partial(rows, grad=True))
    graphs = check(monkeypatch, net, "0.01")
    replays = [
        n
        for n in graphs.backward.graph.nodes
        if n.target is torch.ops.higher_order.run_with_rng_state
    ]
    assert replays
    # Each dropout reads a state of its own, however often it is replayed; nothing is drawn afresh.
    states = {n.args[0] for n in replays}
    assert len(states) > 1
    assert len(replays) > len(states)  # at this budget some of them run a third time
    assert graphs.calls("backward").count(aten.native_dropout.default) == len(replays)


def test_the_comparison_sees_another_mask():
    # What guards the tests above: one draw more, and the outcome counts as different.
    module, inputs = NETS["shared_mlp"].make()
    want = take_steps(module, module, inputs)
    module, inputs = NETS["shared_mlp"].make()

    def shifted(x):
        torch.rand(1)
        return module(x)

    with pytest.raises(AssertionError):
        assert_same(take_steps(shifted, module, inputs), want)


@pytest.mark.parametrize("budget", ["1.0", "0.01"])
def test_a_draw_that_nobody_reads_still_advances_the_generator(monkeypatch, budget):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            torch.rand_like(x)
            return F.dropout(torch.sin(torch.sin(self.layer(x))), 0.5).sum()

    check(monkeypatch, Net("idle", Idle, rows), budget)


def test_outputs_alias_what_eagers_alias(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")

    def aliases(compile_):
        module, inputs = NETS["several"].make()
        with floor_expected():
            found = [*inputs, *compile_(module)(*inputs)]
        where = [t.untyped_storage().data_ptr() for t in found]
        return [where.index(p) for p in where]

    eager = aliases(lambda module: module)
    assert len(set(eager)) < len(eager)
    assert aliases(by_aot) == eager


def test_a_graph_with_nothing_to_recompute(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    weight, x = torch.randn(WIDTH, requires_grad=True), torch.randn(WIDTH)
    compiled = aot_function(
        lambda w, x: (w * x).sum(), **Graphs().compilers(), partition_fn=recut.partition
    )
    with floor_expected():
        compiled(weight, x).backward()
    torch.testing.assert_close(weight.grad, x)


def test_a_written_input_is_written_once(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")

    def step(w, x):
        y = torch.sin(torch.sin(w) * x.clone())
        x.add_(y.detach())
        return (y * x.clone()).sum()

    torch.manual_seed(0)
    weight = torch.randn(64, 64, dtype=torch.float64, requires_grad=True)
    start = torch.randn(64, 64, dtype=torch.float64)
    eager_x = start.clone()
    step(weight, eager_x).backward()
    want, weight.grad = weight.grad, None
    x = start.clone()
    with floor_expected():
        compiled = aot_function(step, **Graphs().compilers(), partition_fn=recut.partition)
        compiled(weight, x).backward()
    torch.testing.assert_close(x, eager_x)
    torch.testing.assert_close(weight.grad, want)


REGION = {aten.sin.default, aten.addmm.default, aten.native_dropout.default}


def made_by(node: fx.Node) -> object:
    """Return the op behind a saved result, through getitems and generator states."""
    while node.target not in REGION and node.op == "call_function" and node.all_input_nodes:
        wrapped = [a for a in node.args[:2] if isinstance(a, torch._ops.OpOverload)]
        if wrapped:
            return wrapped[0] if node.meta["val"] is not None else None
        if "getitem" not in str(node.target):
            break
        if "rng_state" in str(node.args[0].target) and node.args[1] == 0:
            return "generator state"
        node = node.args[0]
    return node.target


def checkpointed(how: str, dropout: float = 0.2) -> Net:
    return Net(how, partial(Checkpointed, how, dropout), partial(rows, grad=True))


@pytest.mark.parametrize("dropout", [0.2, 0.0])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_checkpoint_region_is_recomputed_not_saved(monkeypatch, budget, dropout):
    graphs = check(monkeypatch, checkpointed("checkpoint", dropout), budget, by_dynamo)
    assert not REGION & {made_by(n) for n in graphs.saved()}
    # Each block's matmul runs again: its sine's gradient reads it.
    assert graphs.calls("backward").count(aten.addmm.default) >= 3


def test_without_a_region_the_same_net_saves(monkeypatch):
    # What guards the test above: the ops it looks for are saved where no region forbids it.
    graphs = check(monkeypatch, checkpointed("plain"), "1.0", by_dynamo)
    assert REGION & {made_by(n) for n in graphs.saved()}
    assert aten.addmm.default not in graphs.calls("backward")
    recut.clear_reports()
    graphs = check(monkeypatch, checkpointed("plain"), "0.01", by_dynamo)
    assert aten.addmm.default in graphs.calls("backward")


@pytest.mark.parametrize("dropout", [0.2, 0.0])
@pytest.mark.parametrize("budget", ["1.0", "0.01"])
def test_what_a_policy_must_save_is_never_recomputed(monkeypatch, budget, dropout):
    graphs = check(monkeypatch, checkpointed("selective", dropout), budget, by_dynamo)
    assert aten.addmm.default not in graphs.calls("backward")
    assert aten.addmm.default in {made_by(n) for n in graphs.saved()}
    # The rest of the region is recomputed: each block's inner sine at least.
    assert graphs.calls("backward").count(aten.sin.default) >= 3
    assert aten.sin.default not in {made_by(n) for n in graphs.saved()}


def test_the_same_graph_gives_the_same_graphs(monkeypatch):
    first = check(monkeypatch, NETS["gpt"], "0.9")
    recut.clear_reports()
    second = check(monkeypatch, NETS["gpt"], "0.9")
    assert first.forward.code == second.forward.code
    assert first.backward.code == second.backward.code


def test_symbolic_sizes_compile_once(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    graphs = Graphs()
    torch.manual_seed(0)
    module = SharedMLP(dropout=0.0).double()
    with floor_expected():
        compiled = by_dynamo(module, graphs, dynamic=True)
        for size in (200, 96):
            x = torch.randn(size, WIDTH, dtype=torch.float64, requires_grad=True)
            got = take_steps(compiled, module, (x,))
            module.zero_grad(set_to_none=True)
            x.grad = None
            assert_same(got, take_steps(module, module, (x,)))
            module.zero_grad(set_to_none=True)
    assert graphs.compilations == 2  # one forward and one backward for both sizes


def test_without_a_backward_there_is_nothing_to_report():
    module, inputs = NETS["gpt"].make()
    graphs = Graphs()
    with torch.no_grad():
        torch.manual_seed(SEED)
        want = module(*inputs)
        torch.manual_seed(SEED)
        torch.testing.assert_close(by_aot(module, graphs)(*inputs), want)
    assert graphs.backward is None
    assert recut.reports() == []
