"""Where prices are from: declared, measured on the device, or modelled; never nothing."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch
from functorch.compile import aot_module, nop
from nets import floor_expected
from torch import Tensor, nn

import recut.pipeline
from recut import measured
from recut.backend import Partitioner
from recut.files import cache_folder
from recut.partitioners.machine import CPU
from recut.partitioners.problem import Rule
from recut.passes import prices
from recut.passes.capture import Capture
from recut.passes.measured import is_measurable, measure, signature
from recut.settings import Settings


@torch.library.custom_op("recut_tests::squash", mutates_args=())
def squash(x: Tensor) -> Tensor:
    return torch.tanh(x)


@torch.library.custom_op("recut_tests::picky", mutates_args=())
def picky(x: Tensor) -> Tensor:
    if x.max() < 2:
        raise ValueError("made-up data")
    return torch.tanh(x)


for op in (squash, picky):  # both are tanh
    op.register_fake(torch.empty_like)
    op.register_autograd(
        lambda ctx, grad: grad * (1 - ctx.saved_tensors[0].square()),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
    )
SQUASH = torch.ops.recut_tests.squash
LAYERS = 6


class Net(nn.Module):
    """Layers with a custom op behind each."""

    def __init__(self, op=SQUASH):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(LAYERS))
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.op(layer(x)) + x
        return x.square().mean()


@pytest.fixture(autouse=True)
def _nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(prices, "_declared", {})
    measured.forget()
    yield
    measured.forget()


def step(net, monkeypatch, compiler="eager", **options):
    """Partition one step of a net, run it by eager; returns capture, report and gradients."""
    captured: list[Capture] = []
    capture = recut.pipeline.capture

    def spy(*args, **kwargs):
        captured.append(capture(*args, **kwargs))
        return captured[-1]

    monkeypatch.setattr("recut.pipeline.capture", spy)
    for key, value in options.items():
        monkeypatch.setenv(f"RECUT_{key.upper()}", str(value))
    compiled = aot_module(net, nop, nop, partition_fn=partial(recut.partition, compiler=compiler))
    torch.manual_seed(1)
    with floor_expected():
        compiled(torch.randn(64, 32)).backward()
    (report,) = recut.reports()
    return captured[-1], report, [p.grad.clone() for p in net.parameters()]


class Gate(nn.Module):
    """Numbers that a comparison of theirs gates."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        a = (x * self.scale).exp()
        return torch.where(a > 1, a * self.scale, 0.0).square().mean()


@pytest.mark.parametrize("compiler", ["inductor", "eager"])
def test_on_a_cpu_generated_kernels_pack_masks_one_by_one(monkeypatch, compiler):
    """And pay where they write one and where they read it; what runs by itself does not."""
    values = step(Gate(), monkeypatch, compiler)[0].problem.values
    (mask,) = (v for v in values if v.name.startswith("gt"))
    assert mask.bytes == 64 * 32
    rates = (CPU.functions[f"bool {way}"] for way in ("store", "load"))
    traffic = mask.bytes / CPU.bandwidth
    packing = tuple(traffic + mask.bytes / rate for rate in rates)
    assert (mask.store, mask.load) == (packing if compiler == "inductor" else (0.0, 0.0))
    for value in values:
        if value is not mask:
            traffic = value.bytes / CPU.bandwidth if compiler == "inductor" else 0.0
            assert value.store == value.load == traffic


def squashes(captured):
    ops = zip(captured.problem.ops, captured.bases, strict=True)
    found = [(op, basis) for op, basis in ops if op.target.startswith("recut_tests.")]
    assert len(found) == LAYERS
    return found


def eager(net):
    torch.manual_seed(1)
    net(torch.randn(64, 32)).backward()
    return [p.grad.clone() for p in net.parameters()]


def test_an_op_of_unknown_cost_is_saved_and_named(monkeypatch):
    captured, report, got = step(Net(), monkeypatch, memory_budget=0.01)
    for op, basis in squashes(captured):
        assert (op.rule, basis) == (Rule.MUST_SAVE, "unknown")
        assert op.reason == "no cost is known for recut_tests.squash.default"
    assert report.unpriced == ("recut_tests.squash.default",)
    assert "no cost is known: recut_tests.squash.default" in report.line()
    torch.testing.assert_close(got, eager(Net()))


@pytest.mark.parametrize(
    ("price", "seconds"),
    [
        ({"seconds": 2e-3}, 2e-3),
        ({"seconds": lambda x, out_val: x.numel() * 1e-6 + out_val.numel() * 1e-6}, 4096e-6),
        ({"flops": 1e9}, CPU.launch + 1e9 / CPU.flops["default"]),
        ({"flops": 0}, CPU.launch + 2 * 64 * 32 * 4 / CPU.bandwidth),
        ({"flops": lambda x, **_: 1e6 * x.shape[0]}, CPU.launch + 64e6 / CPU.flops["default"]),
    ],
)
def test_a_declared_op_is_priced_as_declared_and_recomputed(monkeypatch, price, seconds):
    recut.register_cost(SQUASH, **price)
    unknown = 64 * 32 * 4 * LAYERS  # what stays where the op has no price
    captured, report, got = step(Net(), monkeypatch, memory_budget=0.01)
    for op, basis in squashes(captured):
        assert (op.rule, basis) == (Rule.MAY_RECOMPUTE, "declared")
        assert op.seconds == pytest.approx(seconds)
    assert report.unpriced == ()
    assert report.bases["declared"] == LAYERS
    saved = [v for v in captured.problem.values if v.producer >= 0]
    assert report.peak < sum(v.bytes for v in saved) - unknown
    torch.testing.assert_close(got, eager(Net()))


def test_an_overload_declares_its_packet_and_the_last_declaration_holds(monkeypatch):
    recut.register_cost(SQUASH.default, seconds=1.0)
    recut.register_cost(SQUASH, seconds=2.0)
    captured, _, _ = step(Net(), monkeypatch)
    assert {op.seconds for op, _ in squashes(captured)} == {2.0}


@pytest.mark.parametrize("price", [{}, {"seconds": 1.0, "flops": 1.0}])
def test_one_price_is_declared(price):
    with pytest.raises(TypeError, match=r"either seconds= or flops="):
        recut.register_cost(SQUASH, **price)


def test_what_is_no_op_is_refused():
    with pytest.raises(TypeError, match=r"torch\.ops\.mylib\.myop"):
        recut.register_cost(torch.tanh, seconds=1.0)


@pytest.mark.parametrize("price", [-1.0, float("nan"), "soon"])
def test_a_price_that_is_none_is_refused_by_name(monkeypatch, price):
    recut.register_cost(SQUASH, seconds=lambda *_, **__: price)
    with pytest.raises(Exception, match=rf"registered for recut_tests\.squash is {price!r}"):
        step(Net(), monkeypatch)


def test_the_cache_key_covers_declarations():
    def uuid():
        return Partitioner(Settings()).uuid()

    def priced(factor):
        return lambda x, **_: factor * x.numel()

    seen = [uuid()]
    for price in (1.0, 2.0, priced(1), priced(2), lambda x, **_: 1.0, lambda x, **_: 2.0):
        recut.register_cost(SQUASH, seconds=price)
        seen.append(uuid())
    assert len(set(seen)) == len(seen)
    for price in (1.0, priced(1)):
        recut.register_cost(SQUASH, seconds=price)
        assert uuid() in seen
    assert "0x" not in str(uuid()), "an address is another in every process"


def test_measured_ops_are_recomputed_and_kept_on_disk(monkeypatch):
    captured, report, got = step(Net(), monkeypatch, memory_budget=0.01, costs="measure")
    for op, basis in squashes(captured):
        assert (op.rule, basis) == (Rule.MAY_RECOMPUTE, "measured")
        assert 0 < op.seconds < 1
    assert report.unpriced == ()
    assert report.bases.keys() == {"measured"}, "eager runs every op as a call"
    torch.testing.assert_close(got, eager(Net()))
    (file,) = (cache_folder() / "costs").iterdir()
    kept = json.loads(file.read_text())["seconds"]
    assert [text for text in kept if "squash" in text] == [
        "recut_tests.squash.default((float32[64, 32][32, 1]@cpu), {})"
    ]

    # Another process: everything is known, nothing is measured.
    measured.forget()
    monkeypatch.setattr(measured, "measure", lambda *_: pytest.fail("measured again"))
    torch._dynamo.reset()
    recut.clear_reports()
    again, _, _ = step(Net(), monkeypatch, memory_budget=0.01, costs="measure")
    assert again.problem == captured.problem


def test_measuring_draws_no_random_numbers(monkeypatch):
    states = []
    for costs in ("model", "measure"):
        torch._dynamo.reset()
        recut.clear_reports()
        step(Net(), monkeypatch, costs=costs)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_an_op_that_refuses_made_up_data_stays_unknown(monkeypatch):
    net = Net(torch.ops.recut_tests.picky)
    with torch.no_grad():
        net.layers[0].bias.fill_(50.0)
    captured, report, _ = step(net, monkeypatch, costs="measure")
    assert {basis for _, basis in squashes(captured)} == {"unknown"}
    assert report.unpriced == ("recut_tests.picky.default",)


def test_a_file_that_cannot_be_read_is_measured_again(monkeypatch, caplog):
    step(Net(), monkeypatch, costs="measure")
    (file,) = (cache_folder() / "costs").iterdir()
    whole = json.loads(file.read_text())["seconds"].keys()
    file.write_text("{")
    measured.forget()
    torch._dynamo.reset()
    recut.clear_reports()
    with caplog.at_level("WARNING", logger="recut"):
        step(Net(), monkeypatch, costs="measure")
    assert re.search("cannot be read .*measured again", caplog.text)
    assert json.loads(file.read_text())["seconds"].keys() == whole


def node(function, *inputs):
    """The last call of a function's graph, with example values."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    for n in graph.nodes:
        if "val" not in n.meta and "tensor_meta" in n.meta:
            n.meta["val"] = n.meta["tensor_meta"]
    return list(graph.nodes)[-2]


def test_a_signature_tells_layouts_dtypes_and_numbers_apart():
    a, b = torch.randn(8, 4), torch.randn(4, 8)
    calls = [
        node(torch.mm, a, b),
        node(torch.mm, a, b.double().float().t().contiguous().t()),
        node(torch.mm, a.double(), b.double()),
        node(torch.mm, a[:4], b),
        node(lambda x: torch.cat([x, x], 0), a),
        node(lambda x: torch.cat([x, x], 1), a),
    ]
    texts = [signature(n) for n in calls]
    assert len(set(texts)) == len(texts)
    assert texts[0] == signature(node(torch.mm, a + 1, b + 1))
    image, weight = torch.randn(2, 8, 5, 5), torch.randn(4, 8, 3, 3)
    convolution = node(torch.conv2d, image, weight)
    assert "[200, 1, 40, 8]" in signature(convolution, channels_last=True)
    assert "[200, 25, 5, 1]" in signature(convolution)


def test_made_up_indices_are_valid():
    table, index = torch.randn(10, 4), torch.tensor([3, 9])
    for call in (
        node(torch.embedding, table, index),
        node(lambda t, i: t[i], table, index),
        node(lambda t, i: t.index_put((i,), t[:2]), table, index),
        node(lambda t: t.expand(3, 10, 4).sum(0), table),
    ):
        assert is_measurable(call, inductor=False)
        assert measure(call) > 0


def test_what_has_effects_or_is_fused_is_not_measured():
    x = torch.randn(8, 8)
    assert not is_measurable(node(torch.relu, x), inductor=True)
    assert is_measurable(node(torch.mm, x, x), inductor=True)
    assert not is_measurable(node(lambda x: x.add_(1), x.clone()), inductor=False)
    assert not is_measurable(node(torch.nonzero, x), inductor=False)


def test_inductor_measures_calls_only(monkeypatch):
    net = Net()
    compiled = torch.compile(net, backend=recut.ckpt_backend, options={"costs": "measure"})
    torch.manual_seed(1)
    compiled(torch.randn(64, 32)).backward()
    (report,) = recut.reports()
    assert report.bases["measured"] >= 3 * LAYERS
    assert report.bases["modelled"] > 0
    (file,) = (cache_folder() / "costs").iterdir()
    assert {t.split("(")[0] for t in json.loads(file.read_text())["seconds"]} <= {
        "aten.addmm.default",
        "aten.mm.default",
        "recut_tests.squash.default",
    }
