"""Which kernels share a function, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from nets import floor_expected
from torch import nn
from torch._inductor.utils import run_and_get_code

import recut
from benchmarks import measure
from recut.passes._torch import NopKernelSchedulerNode
from recut.passes.buffers import Life, grouped, live_bytes


@dataclass(eq=False)
class Node:
    """A scheduler's node."""

    extern: bool = False
    device: str | None = "cpu"

    def get_device(self):
        return None if self.device is None else torch.device(self.device)

    def is_extern(self):
        return self.extern

    def is_template(self):
        return False

    is_foreach = is_template


def chain(count):
    """Each kernel reads what the one before makes: two buffers at a time."""
    return {f"b{k}": Life(k, k + 1, 10, 10) for k in range(count)}


def spans(nodes, found, limit, held=0):
    groups = grouped(nodes, found, held, limit)
    return [groups.span(k) for k in range(len(nodes))], groups


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (19, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (20, [(0, 1), (0, 1), (2, 2), (3, 3)]),  # no more than a kernel by itself
        (29, [(0, 1), (0, 1), (2, 2), (3, 3)]),
        (30, [(0, 2), (0, 2), (0, 2), (3, 3)]),
        (40, [(0, 3)] * 4),
        (0, [(0, 0), (1, 1), (2, 2), (3, 3)]),
    ],
)
def test_kernels_share_a_function_up_to_the_limit(limit, expected):
    nodes, found = [Node() for _ in range(4)], chain(4)
    got, groups = spans(nodes, found, limit)
    assert got == expected
    assert [groups.ends(n) for n in nodes] == [k == last for k, (_, last) in enumerate(got)]
    one_by_one = live_bytes(found, 4, 0, {})
    together = live_bytes(found, 4, 0, {}, groups.span)
    assert one_by_one == [10, 20, 20, 20, 10]
    assert max(together) <= max(limit, *one_by_one)
    # Behind the last kernel there is what is returned, and nothing else.
    assert together[-1] == 10


def test_what_lives_throughout_counts():
    assert spans([Node(), Node()], chain(2), 25, held=10)[0] == [(0, 0), (1, 1)]


@pytest.mark.parametrize("apart", [Node(extern=True), Node(device="cuda"), Node(device=None)])
def test_library_calls_and_other_devices_stay_apart(apart):
    nodes = [Node(), Node(), apart, Node(), Node()]
    assert spans(nodes, chain(5), 1000)[0] == [(0, 1), (0, 1), (2, 2), (3, 4), (3, 4)]


class Nop(Node, NopKernelSchedulerNode):
    """What no kernel makes: code is generated for it, and nobody asked whether a function ends."""

    def __init__(self):
        Node.__init__(self)


@pytest.mark.parametrize("kernel", [Node, Nop])
def test_a_function_ends_with_a_kernel(kernel):
    nodes = [Node(), kernel(), Node(), Node()]
    got, groups = spans(nodes, chain(4), 20)
    assert got == [(0, 1), (0, 1), (2, 2), (3, 3)]
    ends = [groups.ends(node) for node in nodes]
    assert ends == [kernel is Nop, kernel is Node, True, True]
    _, groups = spans([Nop(), Nop()], chain(2), 0)
    assert not any(map(groups.ends, groups.nodes))


def test_what_is_written_over_in_a_shared_function_is_there_once():
    found = {"a": Life(0, 1, 10, 10), "b": Life(1, 2, 10, 10)}
    _, groups = spans([Node(), Node()], found, 20)
    assert live_bytes(found, 2, 0, {"b": "a"}) == [10, 10, 10]
    assert live_bytes(found, 2, 0, {"b": "a"}, groups.span) == [10, 10, 10]


class Norms(nn.Module):
    """Beside a layer norm's gradient those of its weights run, over the other dimension."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(3))

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + torch.tanh(norm(layer(x)))
        return x.square().mean()


class Gathers(nn.Module):
    """Results that are made at once, gathered by twos, and the pairs again."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        made = []
        for k in range(6):
            x = self.layer(x)
            made.append(x.tanh() * k)
        pairs = [torch.stack(made[k : k + 2], 1) for k in range(0, 6, 2)]
        return self.head(torch.cat(pairs, 1)).square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1.0, 0.8])
def test_what_is_gathered_from_other_functions_is_counted(budget):
    torch._dynamo.reset()
    recut.clear_reports()
    x = torch.randn(256, 64)
    model = measure.compile_recut(Gathers(), budget)
    for _ in range(2):
        measure.step(model, [x])
    (report,) = recut.reports()
    assert measure.peak_bytes(model, [x]) == report.scheduled_peak


class Drops(nn.Module):
    """Masks that are drawn again from the generator's state, which is larger than they are."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = nn.functional.dropout(layer(x).tanh(), 0.25)
        return x.square().mean()


@pytest.mark.slow
def test_a_mode_for_cuda_graphs_leaves_a_cpus_graphs_in_their_order():
    def held(mode):
        torch._dynamo.reset()
        recut.clear_reports()
        torch.manual_seed(0)
        x, options = torch.randn(256, 64), torch._inductor.list_mode_options(mode)
        model = measure.compile_recut(Norms(), 0.01, inductor=options)
        with floor_expected():
            for _ in range(2):
                measure.step(model, [x])
        (report,) = recut.reports()
        peak = measure.peak_bytes(model, [x])
        assert peak <= report.budget
        return peak

    assert held("reduce-overhead") == held("default")


@pytest.mark.slow
def test_a_generators_state_is_counted_while_a_mask_is_drawn_again():
    torch._dynamo.reset()
    recut.clear_reports()
    x = torch.randn(32, 16)
    model = measure.compile_recut(Drops(), 0.01)
    with torch._inductor.config.patch(fallback_random=True), floor_expected():
        for _ in range(2):
            measure.step(model, [x])
        (report,) = recut.reports()
        peak = measure.peak_bytes(model, [x])
    assert peak <= report.scheduled_peak <= 1.03 * peak


@pytest.mark.slow
def test_under_inductor_fewer_functions_are_called_at_the_same_peak(monkeypatch):
    def run():
        torch._dynamo.reset()
        recut.clear_reports()
        torch.manual_seed(0)
        module, x = Norms(), torch.randn(96, 64)
        model = measure.compile_recut(module, 1.0)
        loss, codes = run_and_get_code(model, x)
        _, more = run_and_get_code(loss.backward)
        grads = [p.grad.clone() for p in module.parameters()]
        calls = "".join(codes + more).count("cpp_fused")
        (report,) = recut.reports()
        return grads, calls, measure.peak_bytes(model, [x]), report

    grads, calls, peak, report = run()
    assert peak <= report.scheduled_peak
    # No cache key knows of the patch.
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
        monkeypatch.context() as patch,
    ):
        patch.setattr("recut.passes.fusion.grouped", lambda nodes, *_: grouped(nodes, {}, 0, -1))
        alone, more, _, apart = run()
    assert calls < more
    assert report.scheduled_peak <= max(report.peak, apart.scheduled_peak)
    for one, other in zip(grads, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
