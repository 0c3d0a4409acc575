"""Steps of training without Inductor: compile a net under a budget, run it, compare with eager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from functorch.compile import aot_function, make_boxed_func
from nets import Net, floor_expected
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch.func import functional_call

import recut
from benchmarks.outcomes import assert_same, take_steps


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
