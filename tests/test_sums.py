"""Sums of gradients are written down where they are made, if evaluated later they cost memory."""

from __future__ import annotations

import pytest
import torch
from problems import Net
from reference import Reference
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import recut
from benchmarks import measure
from recut.partitioners.evaluator import evaluate
from recut.partitioners.problem import Kind, Phase
from recut.partitioners.schedule import lazy_schedule
from recut.passes.capture import capture

BACKWARD = {"phase": Phase.BACKWARD}
SUM = {**BACKWARD, "kind": Kind.POINTWISE, "inplace": True}
TABLE = 100


def lookups(between=Kind.COMPUTE, *, read=False, sizes=(TABLE, TABLE)):
    """The gradients of a head and of two look-ups in one table, and their sum."""
    net = Net()
    tangent = net.input("tangent")
    (head,) = net.op("head", (tangent,), sizes[0], **BACKWARD)
    (first,) = net.op("first", (tangent,), sizes[1], **BACKWARD)
    (some,) = net.op("some", (head, first), TABLE, **SUM)
    (dx,) = net.op("dx", (tangent,), 10, kind=between, **BACKWARD)
    (second,) = net.op("second", (dx,), TABLE, **BACKWARD)
    (total,) = net.op("total", (some, second), TABLE, **SUM)
    more = net.op("more", (head, second), 1, **BACKWARD) if read else ()
    return net.problem((), (total, *more), compiler="inductor")


def written(problem):
    return [problem.ops[i].name for i in sorted(problem.written)]


def test_a_sum_is_written_down_that_the_next_sum_reads():
    problem = lookups()
    assert written(problem) == ["some"]
    # Two tables at a time, and what the second look-up reads; with all three gradients alive: 310.
    assert evaluate(problem, lazy_schedule(problem, ())).peak == 2 * TABLE + 10


def test_a_kernel_of_its_own_is_not_made_for_what_one_kernel_can_sum_up():
    net = Net()
    tangent = net.input("tangent")
    gradients = [net.op(f"g{k}", (tangent,), TABLE, **BACKWARD)[0] for k in range(3)]
    (some,) = net.op("some", (gradients[0], gradients[1]), TABLE, **SUM)
    (total,) = net.op("total", (some, gradients[2]), TABLE, **SUM)
    assert not net.problem((), (total,), compiler="inductor").written


@pytest.mark.parametrize("problem", [lookups(read=True), lookups(sizes=(40, 60))])
def test_what_frees_no_more_than_it_takes_is_evaluated_later(problem):
    assert not problem.written


def casts():
    """Three gradients in half precision, summed up in single."""
    net = Net()
    tangent = net.input("tangent")
    total = None
    for k in range(3):
        (half,) = net.op(f"g{k}", (tangent,), 60, **BACKWARD)
        (full,) = net.op(f"cast{k}", (half,), TABLE, kind=Kind.POINTWISE, **BACKWARD)
        total = full if total is None else net.op(f"sum{k}", (total, full), TABLE, **SUM)[0]
    return net.problem((), (total,), compiler="inductor")


def test_a_cast_between_a_gradient_and_its_sum_is_looked_through():
    assert written(casts()) == ["sum1"]


def test_a_sum_that_more_than_sums_read_is_left_to_inductor():
    net = Net()
    tangent = net.input("tangent")
    gradients = [net.op(f"g{k}", (tangent,), TABLE, **BACKWARD)[0] for k in range(2)]
    (dx,) = net.op("dx", tuple(gradients), TABLE, **SUM)
    (dw,) = net.op("dw", (tangent,), TABLE, **BACKWARD)
    (dy,) = net.op("dy", (dx,), TABLE, **BACKWARD)
    assert not net.problem((), (dw, dy), compiler="inductor").written


def test_long_sums_are_looked_at_once():
    net = Net()
    tangent = net.input("tangent")
    (total,) = net.op("g", (tangent,), TABLE, kind=Kind.POINTWISE, **BACKWARD)
    for k in range(3000):
        (total,) = net.op(f"sum{k}", (total,), TABLE, **SUM)
    (out,) = net.op("out", (total,), TABLE, **BACKWARD)
    assert not net.problem((), (out,), compiler="inductor").written


@pytest.mark.parametrize("problem", [lookups(), lookups(Kind.OTHER), lookups(read=True), casts()])
def test_the_slow_reading_of_the_model_agrees(problem):
    schedule = lazy_schedule(problem, ())
    reference = Reference(problem, schedule)
    assert evaluate(problem, schedule).live == tuple(map(reference.total, range(reference.end)))


class Tied(nn.Module):
    """A table that is looked up at each layer's end and is the head's weight."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3000, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x)
        for layer in self.layers:
            y = torch.tanh(layer(y)) + self.table(x.flip(1))
        return nn.functional.cross_entropy((y @ self.table.weight.T).flatten(0, 1), x.flatten())


def test_the_zeros_that_gradients_of_a_table_are_written_into_are_no_tensors():
    def gradients(index, grad):
        zeros = torch.full((9, 4), 0.0)
        return tuple(zeros.index_put((index + k,), grad, accumulate=True) for k in range(2))

    graph = make_fx(gradients)(torch.arange(3), torch.ones(3, 4))
    ops = {op.name: op for op in capture(graph, num_fwd_outputs=0).problem.ops}
    assert "full" not in ops
    # Each is written into zeros of its own, over no input of its size.
    assert not ops["index_put"].inplace
    # Of a constant that another op reads too there is one tensor.
    graph = make_fx(
        lambda i, g: (torch.full((9, 4), 0.0).index_put((i,), g), torch.full((9, 4), 0.0))
    )(torch.arange(3), torch.ones(3, 4))
    assert "full_1" in {op.name for op in capture(graph, num_fwd_outputs=0).problem.ops}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:recut.*lies under the floor")
@pytest.mark.parametrize("budget", [1.0, 0.01])
def test_a_tied_table_takes_two_gradients_at_a_time(budget):
    torch.manual_seed(0)
    module, x = Tied(), torch.randint(3000, (2, 12))
    double = Tied().double()
    double.load_state_dict(module.state_dict())
    double(x).backward()
    model = measure.compile_recut(module, budget)
    measure.step(model, [x])
    for parameter, exact in zip(module.parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)
    (report,) = recut.reports()
    peak = measure.peak_bytes(model, [x])
    assert peak <= report.scheduled_peak <= 1.02 * report.peak <= 1.05 * peak
    assert 2 * module.table.weight.nbytes < peak < 2.5 * module.table.weight.nbytes
