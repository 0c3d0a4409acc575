"""What a user decides by checkpoint regions and policies holds under every budget.

After torch's test/dynamo/test_activation_checkpointing.py; docs/upstream-tests.md has the table.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from nets import RELEASE, floor_expected
from steps import Graphs, assert_same, by_dynamo, take_steps
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import recut

aten = torch.ops.aten
BUDGETS = ("1.0", "0.5", "0.01")
MM = aten.mm.default
SAVE, RECOMPUTE = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE


class Call(torch.nn.Module):
    """A function as a module, which is what by_dynamo compiles."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def policy(table, default=CheckpointPolicy.PREFER_RECOMPUTE):
    """Contexts of a selective checkpoint that decides by op."""

    def decide(_context, op, *_args, **_kwargs):
        return table.get(op, default)

    return partial(create_selective_checkpoint_contexts, decide)


def region(function, context_fn=None):
    """A function whose body lies in a checkpoint region, after a sine outside."""
    more = {} if context_fn is None else {"context_fn": context_fn}
    return lambda x, y: checkpoint(function, torch.sin(x), y, use_reentrant=False, **more)


def both(function, budget, monkeypatch, make=None):
    """Run compiled under a budget and eager; compare and return the graphs."""
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", budget)

    def tensors():
        torch.manual_seed(0)
        made = [torch.randn(32, 32, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        return made if make is None else [make(t) for t in made]

    def run(call):
        x, y = tensors()
        torch.manual_seed(1)
        out = call(x, y)
        out.sum().backward()
        return out, x.grad, y.grad

    graphs = Graphs()
    with floor_expected():
        got = run(by_dynamo(Call(function), graphs))
    for a, b in zip(got, run(function), strict=True):
        if isinstance(a, TwoTensor):
            torch.testing.assert_close(a.a, b.a)
            torch.testing.assert_close(a.b, b.b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    return graphs


def two_matmuls(x, y):
    return torch.sigmoid(torch.matmul(torch.matmul(x, y), y)) * y


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("context_fn", "again"),
    [
        (None, 2),
        (policy({MM: SAVE}), 0),
        (policy({MM: RECOMPUTE}), 2),
        (policy({aten.sigmoid.default: SAVE}, RECOMPUTE), 2),
    ],
)
def test_matmuls_run_again_as_the_policy_says(monkeypatch, context_fn, again, budget):
    graphs = both(region(two_matmuls, context_fn), budget, monkeypatch)
    assert graphs.calls("forward").count(MM) == 2
    # Two gradients for each; what no gradient needs is not run again. In the least memory one of
    # them runs a third time.
    third = again > 0 and budget != "1.0"
    assert 4 <= graphs.calls("backward").count(MM) <= 4 + again + third
    if again == 0:
        assert graphs.calls("backward").count(MM) == 4


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_policy_may_tell_calls_of_one_op_apart(monkeypatch, budget):
    def contexts():
        seen = []

        def decide(context, op, *_args, **_kwargs):
            if op is not MM:
                return CheckpointPolicy.PREFER_RECOMPUTE
            seen.append(context.is_recompute)
            # The second matmul is left to whoever plans.
            second = seen.count(context.is_recompute) == 2
            return CheckpointPolicy.PREFER_RECOMPUTE if second else SAVE

        return create_selective_checkpoint_contexts(decide)

    graphs = both(region(two_matmuls, contexts), budget, monkeypatch)
    assert 4 <= graphs.calls("backward").count(MM) <= 5


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    "prefer", [CheckpointPolicy.PREFER_SAVE, CheckpointPolicy.PREFER_RECOMPUTE]
)
def test_preferences_give_right_gradients(monkeypatch, prefer, budget):
    both(region(two_matmuls, policy({}, prefer)), budget, monkeypatch)


@pytest.mark.parametrize("budget", BUDGETS)
def test_regions_of_tensor_subclasses(monkeypatch, budget):
    def make(t):
        return TwoTensor(t.detach(), t.detach() * 2).requires_grad_()

    graphs = both(region(two_matmuls, policy({MM: SAVE})), budget, monkeypatch, make)
    assert graphs.calls("forward").count(MM) == 4
    assert graphs.calls("backward").count(MM) == 8


@pytest.mark.parametrize("budget", BUDGETS)
def test_random_ops_and_attention_in_a_region(monkeypatch, budget):
    def body(x, y):
        heads = x.view(1, 4, 32, 8)
        mixed = F.scaled_dot_product_attention(heads, heads, y.view(1, 4, 32, 8), dropout_p=0.3)
        noisy = mixed.view(32, 32) * torch.rand_like(x) + F.dropout(y, 0.5)
        return torch.matmul(noisy, y)

    both(region(body), budget, monkeypatch)


@pytest.mark.parametrize("budget", BUDGETS)
def test_writes_in_a_region(monkeypatch, budget):
    def body(x, y):
        z = torch.matmul(x, y)
        z.mul_(2)
        z[0] = 1.0
        return torch.relu_(z) + torch.exp(z)

    both(region(body), budget, monkeypatch)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_named_stretch_of_a_profile_in_a_region(monkeypatch, budget):
    def body(x, y):
        with torch.profiler.record_function("a stretch"):
            return torch.sigmoid(torch.matmul(x, y))

    with torch._dynamo.config.patch(capture_profiler_record_function=True):
        graphs = both(region(body), budget, monkeypatch)
    enter = torch.ops.profiler._record_function_enter_new.default
    assert graphs.calls("forward").count(enter) == 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_a_region_does_to_python_is_done_once(monkeypatch, budget):
    kept = []

    def body(x, y):
        z = torch.matmul(x, y)
        kept.append(z)
        return torch.sin(z)

    def function(x, y):
        kept.clear()
        out = region(body)(x, y)
        return out + kept[0]

    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        both(function, budget, monkeypatch)


@pytest.mark.parametrize("budget", BUDGETS)
def test_regions_in_regions(monkeypatch, budget):
    def inner(x, y):
        return torch.exp(torch.sin(torch.matmul(x, y)))

    def outer(x, y):
        once = checkpoint(inner, x, y, use_reentrant=False)
        return torch.tanh(checkpoint(inner, once / 32, y, use_reentrant=False))

    graphs = both(region(outer), budget, monkeypatch)
    assert not [n for n in graphs.saved() if n.name.startswith(("mm", "exp"))]
    assert recut.reports()[-1].peak


class Product(torch.autograd.Function):
    """A matmul written by hand."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x @ y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad @ y.t(), x.t() @ grad


@pytest.mark.skipif(
    RELEASE < (2, 12), reason="torch before 2.12 does not mark what a hand-written function does"
)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_hand_written_function_in_a_region(monkeypatch, budget):
    def body(x, y):
        return torch.exp(torch.sin(Product.apply(torch.tanh(x), y)))

    graphs = both(region(body), budget, monkeypatch)
    assert graphs.calls("backward").count(MM) >= 3  # the product itself runs again
    assert not [n for n in graphs.saved() if n.target is MM]


class Squashed(torch.nn.Module):
    """A weight that is computed from another one, in a region."""

    def forward(self, weight):
        contexts = policy({aten.mul.Tensor: RECOMPUTE, aten.sigmoid.default: RECOMPUTE}, SAVE)
        body = lambda w: torch.sigmoid(w * w)  # noqa: E731 - it is called by checkpoint
        return checkpoint(body, weight, use_reentrant=False, context_fn=contexts)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_parametrised_weight_in_a_region(monkeypatch, budget):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", budget)

    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(32, 32, bias=False).double()
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Squashed())
        return layer, (torch.randn(8, 32, dtype=torch.float64, requires_grad=True),)

    module, inputs = make()
    want = take_steps(module, module, inputs)
    module, inputs = make()
    graphs = Graphs()
    with floor_expected():
        assert_same(take_steps(by_dynamo(module, graphs), module, inputs), want)
    assert aten.sigmoid.default in graphs.calls("backward")


@pytest.mark.skipif(
    not hasattr(torch.autograd.graph, "region_activation_memory_budget"),
    reason="torch has no annotation for budgets before 2.13",
)
@pytest.mark.parametrize(
    ("budget", "region", "asked"),
    [
        ("1.0", 0.0, "0.0001%"),
        ("0.5", 0.7, "50%"),
        ("1GiB", 1.0, "1073741824 bytes"),
        ("1GiB", 0.4, "40%"),
        ("1", 1.0, "100%"),
    ],
)
def test_of_two_budgets_the_tighter_holds(monkeypatch, budget, region, asked):
    def body(x, y):
        for _ in range(4):
            x = torch.sin(torch.exp(torch.tanh(torch.matmul(x, y))))
        return x

    def function(x, y):
        if not torch.compiler.is_compiling():  # torch refuses the annotation there
            return body(x, y)
        with torch.autograd.graph.region_activation_memory_budget(region):
            return body(x, y)

    both(function, budget, monkeypatch)
    (report,) = recut.reports()
    assert str(report.asked) == asked
    assert (report.peak < report.fastest_peak) == (asked != "100%" and "bytes" not in asked)
    x, y = (torch.randn(32, 32, requires_grad=True) for _ in range(2))
    assert recut.plan(function, x, y).asked == asked
