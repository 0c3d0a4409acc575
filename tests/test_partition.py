"""Partitioned steps without Inductor: what a net computes is eager's, whatever the budget.

Graphs run op by op on a CPU in double precision, so "equal" means to a few last bits: a mask drawn
afresh or a statistic counted twice is off by orders of magnitude more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import aot_function, aot_module, make_boxed_func
from nets import NETS, WIDTH, Checkpointed, Net, Random, SharedMLP, floor_expected, rows
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch.func import functional_call

import recut

aten = torch.ops.aten
SEED = 7
BUDGETS = ("1.0", "0.5", "0.01", "bytes")


@dataclass
class Graphs:
    """The two graphs of one compilation, as the compilers saw them."""

    forward: fx.GraphModule | None = None
    backward: fx.GraphModule | None = None
    compilations: int = 0

    def compilers(self) -> dict[str, Callable[..., object]]:
        def keep(name, gm, _inputs):
            setattr(self, name, gm)
            self.compilations += 1
            return make_boxed_func(gm.forward)

        return {"fw_compiler": partial(keep, "forward"), "bw_compiler": partial(keep, "backward")}

    def calls(self, name: str) -> list[object]:
        """What a graph calls, with random ops seen through the wrapper that replays them."""
        found = []
        for node in getattr(self, name).graph.nodes:
            if node.op == "call_function":
                wrapped = [a for a in node.args[:2] if isinstance(a, torch._ops.OpOverload)]
                found.append(wrapped[0] if wrapped else node.target)
        return found

    def saved(self) -> list[fx.Node]:
        """What the forward makes for the backward: no inputs, and no outputs of the user."""
        names = {n.name for n in self.backward.graph.find_nodes(op="placeholder")}
        outputs = self.forward.graph.output_node().args[0]
        return [n for n in outputs if isinstance(n, fx.Node) and n.name in names]


@dataclass(frozen=True)
class Outcome:
    """Everything that one or more steps leave behind."""

    outputs: tuple[torch.Tensor, ...]
    grads: Mapping[str, torch.Tensor | None]
    buffers: Mapping[str, torch.Tensor]
    generator: torch.Tensor = field(repr=False)


def take_steps(call, module, inputs, steps=1) -> Outcome:
    """Run forward and backward from one seed; each element of the outputs weighs differently."""
    torch.manual_seed(SEED)
    for _ in range(steps):
        outputs = call(*inputs)
        outputs = tuple(outputs) if isinstance(outputs, (list, tuple)) else (outputs,)
        losses = [
            (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)).sum()
            for y in outputs
            if y.requires_grad
        ]
        sum(losses).backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    grads |= {f"input {k}": x.grad for k, x in enumerate(inputs)}
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    return Outcome(outputs, grads, buffers, torch.get_rng_state())


def assert_same(got: Outcome, want: Outcome) -> None:
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    assert len(got.outputs) == len(want.outputs)
    for k, (a, b) in enumerate(zip(got.outputs, want.outputs, strict=True)):
        close(a, b, msg=lambda text, k=k: f"output {k}: {text}")
    for what in ("grads", "buffers"):
        ours, theirs = getattr(got, what), getattr(want, what)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name] is None) == (value is None), f"{what} of {name}"
            if value is not None:
                label = f"{what} of {name}"
                close(ours[name], value, msg=lambda text, label=label: f"{label}: {text}")
    assert torch.equal(got.generator, want.generator), "the generator stands elsewhere"


def by_aot(module: nn.Module, graphs: Graphs | None = None):
    """Compile with functorch; unlike ``aot_module`` it takes tied parameters."""
    compiled = aot_function(
        lambda params, buffers, *inputs: functional_call(module, {**params, **buffers}, inputs),
        **(graphs or Graphs()).compilers(),
        partition_fn=recut.partition,
    )
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    return lambda *inputs: compiled(params, buffers, *inputs)


def by_dynamo(module: nn.Module, graphs: Graphs | None = None, **kwargs):
    """Compile with Dynamo in front: checkpoint regions become tags, and sources are known."""
    compilers = (graphs or Graphs()).compilers()
    backend = aot_autograd(**compilers, partition_fn=recut.partition)
    return torch.compile(module, backend=backend, fullgraph=True, **kwargs)


def planned(monkeypatch, net: Net, budget: str, compile_=by_aot) -> recut.GraphReport:
    """Compile a net under a budget and return the report."""
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", budget)
    module, inputs = net.make()
    before = len(recut.reports())
    with floor_expected():
        compile_(module)(*inputs)
    assert len(recut.reports()) == before + 1
    return recut.reports()[-1]


def between(monkeypatch, net: Net, compile_=by_aot) -> str:
    """Return a budget in bytes halfway between the floor and the fastest plan."""
    report = planned(monkeypatch, net, "0.01", compile_)
    recut.clear_reports()
    return f"{(report.peak + report.fastest_peak) // 2}B"


def check(monkeypatch, net: Net, budget: str, compile_=by_aot, steps: int = 1) -> Graphs:
    """Compare some steps under a budget with eager's; return the graphs."""
    if budget == "bytes":
        budget = between(monkeypatch, net, compile_)
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", budget)
    module, inputs = net.make()
    want = take_steps(module, module, inputs, steps)
    module, inputs = net.make()
    graphs = Graphs()
    torch._dynamo.reset()
    with floor_expected():
        got = take_steps(compile_(module, graphs), module, inputs, steps)
    assert_same(got, want)
    (report,) = recut.reports()
    assert report.peak <= max(report.budget, report.floor or 0)
    return graphs


def checkpointed(how: str, dropout: float = 0.2) -> Net:
    return Net(how, partial(Checkpointed, how, dropout), partial(rows, grad=True))


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


def test_aot_module(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    module, inputs = NETS["gpt"].make()
    want = take_steps(module, module, inputs)
    module, inputs = NETS["gpt"].make()
    compiled = aot_module(module, **Graphs().compilers(), partition_fn=recut.partition)
    with floor_expected():
        assert_same(take_steps(compiled, module, inputs), want)
    assert len(recut.reports()) == 1


@pytest.mark.parametrize("name", NETS)
def test_less_budget_never_plans_a_higher_peak(monkeypatch, name):
    budgets = ("1.0", "0.85", "0.7", "0.01")
    reports = [planned(monkeypatch, NETS[name], budget) for budget in budgets]
    peaks = [report.peak for report in reports]
    assert peaks == sorted(peaks, reverse=True)
    # What one_hot allocates is needed by the forward itself: its fastest plan is its floor.
    assert peaks[-1] < peaks[0] or name == "one_hot"


def test_dropout_is_replayed_from_its_own_state(monkeypatch):
    graphs = check(monkeypatch, NETS["shared_mlp"], "0.01")
    replays = [
        n
        for n in graphs.backward.graph.nodes
        if n.target is torch.ops.higher_order.run_with_rng_state
    ]
    assert replays
    # Each replay reads a state of its own, and nothing is drawn afresh.
    assert len({n.args[0] for n in replays}) == len(replays)
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


def test_the_floor_is_feasible_and_a_byte_less_is_not(monkeypatch):
    net = NETS["shared_mlp"]
    floor = planned(monkeypatch, net, "0.01").peak
    recut.clear_reports()  # or the second byte budget of the process would warn
    report = planned(monkeypatch, net, f"{floor}B")
    assert report.peak <= floor == report.budget
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", f"{floor - 1}B")
    module, inputs = net.make()
    with pytest.raises(recut.InfeasibleBudget) as caught:
        by_aot(module)(*inputs)
    assert caught.value.floor == floor
    assert caught.value.budget == floor - 1
    assert f"{floor} bytes" in str(caught.value)
    assert "RECUT_MEMORY_BUDGET" in str(caught.value)
    assert len(recut.reports()) == 1


def test_an_infeasible_budget_names_source_lines(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "2KiB")
    module, inputs = NETS["shared_mlp"].make()
    with pytest.raises(Exception, match="cannot be met") as caught:
        by_dynamo(module)(*inputs)
    error = caught.value
    while not isinstance(error, recut.InfeasibleBudget):
        error = getattr(error, "inner_exception", None) or error.__cause__
    sizes = [c.bytes for c in error.culprits]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= error.floor
    assert any(c.source.startswith("nets.py:") for c in error.culprits)
    assert "nets.py:" in str(caught.value)
    assert all(p.grad is None for p in module.parameters())


def test_a_fraction_below_the_floor_gives_the_floor_and_one_warning(monkeypatch):
    net = NETS["shared_mlp"]
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    module, inputs = net.make()
    with pytest.warns(UserWarning, match="floor") as caught:
        by_aot(module)(*inputs)
    assert len(caught) == 1
    (report,) = recut.reports()
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1KiB")
    module, inputs = net.make()
    with pytest.raises(recut.InfeasibleBudget) as refused:
        by_aot(module)(*inputs)
    assert report.peak == refused.value.floor


def test_an_unreadable_budget_is_refused(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1.5")
    module, inputs = NETS["shared_mlp"].make()
    with pytest.raises(recut.SettingError, match="RECUT_MEMORY_BUDGET"):
        by_aot(module)(*inputs)
    assert recut.reports() == []


def test_the_second_graph_under_a_byte_budget_warns_once(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1GiB")
    messages = []
    for _ in range(3):
        module, inputs = NETS["shared_mlp"].make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            by_aot(module)(*inputs)
        messages.append([str(w.message) for w in caught if "recut" in str(w.message)])
    assert [len(m) for m in messages] == [0, 1, 0]
    assert "each compiled graph by itself" in messages[1][0]


def test_graphs_under_fractions_do_not_warn(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "100%")
    for _ in range(2):
        module, inputs = NETS["shared_mlp"].make()
        by_aot(module)(*inputs)  # pytest makes an error of any warning
    assert len(recut.reports()) == 2


def test_the_same_graph_gives_the_same_graphs(monkeypatch):
    first = check(monkeypatch, NETS["gpt"], "0.9")
    recut.clear_reports()
    second = check(monkeypatch, NETS["gpt"], "0.9")
    assert first.forward.code == second.forward.code
    assert first.backward.code == second.backward.code


def test_less_budget_recomputes_more(monkeypatch):
    rich = check(monkeypatch, NETS["gpt"], "1.0")
    recut.clear_reports()
    poor = check(monkeypatch, NETS["gpt"], "0.01")
    assert len(poor.calls("backward")) > len(rich.calls("backward"))


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


def test_the_log_says_what_was_planned(monkeypatch, caplog):
    with caplog.at_level("INFO", logger="recut"):
        report = planned(monkeypatch, NETS["shared_mlp"], "90%")
    (line,) = [r.getMessage() for r in caplog.records if r.name == "recut"]
    assert line == report.line()
    assert "90%" in line
    assert f"{report.peak / 2**20:.1f} MiB" in line
    assert f"{report.ops} ops" in line
