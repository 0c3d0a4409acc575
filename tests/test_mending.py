"""Programs that Inductor gets wrong or would, right under a plan."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from nets import RELEASE, floor_expected
from torch import Tensor

import recut
from benchmarks.outcomes import assert_same, take_steps
from benchmarks.programs import Program, make

Steps = Sequence[tuple[str, int, int]]

WRITTEN_OVER = [
    ("sort", 0, 0), ("sort", 1, 0), ("linear", 1, 2), ("strides", 0, 1),
    ("sort", 2, 1), ("strides", 4, 2), ("norm", 3, 6),
]  # fmt: skip

ROWS_OF_A_VECTOR = [
    ("linear", 0, 0), ("accumulate", 1, 0), ("softmax", 2, 0), ("accumulate", 2, 1),
    ("complex", 2, 2), ("softmax", 4, 1), ("softmax", 3, 3), ("complex", 7, 3),
]  # fmt: skip


# Each draws in the order of memory of what strides have laid out.
DRAWN = [("strides", 0, 0), ("write", 1, 0), ("noise", 1, 2)]
DRAWN_TWICE = [
    ("scratch", 0, 0), ("noise", 1, 1), ("noise", 1, 1), ("detach", 2, 3), ("strides", 3, 1),
    ("scratch", 5, 3), ("strides", 5, 5), ("write", 5, 6), ("detach", 4, 6), ("write", 6, 7),
    ("noise", 9, 10), ("detach", 10, 7), ("noise", 8, 10), ("region", 11, 11),
]  # fmt: skip


def _assert_as_eager(
    seed: int, steps: Steps, ends: Sequence[int], budget: str | None = None
) -> None:
    def made() -> tuple[Program, tuple[Tensor, ...]]:
        module, inputs = make(seed)
        module.steps, module.ends, module.returns, module.middle = list(steps), ends, [], 1
        return module, inputs

    module, inputs = made()
    want = take_steps(module, module, inputs)
    module, inputs = made()
    options = {"memory_budget": budget} if budget else None
    backend = recut.ckpt_backend
    compiled = torch.compile(module, backend=backend, options=options, fullgraph=True)
    with floor_expected():
        assert_same(take_steps(compiled, module, inputs), want)


def test_what_was_written_over_is_read_behind_its_writer():
    """Two views by strides whose gradients are scattered and read by rows: one kernel would err."""
    _assert_as_eager(4, WRITTEN_OVER, [5, 7])


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_rows_of_a_vector_do_not_share_a_buffer():
    """Gradients of softmaxes that read complex numbers' halves: kernels vectorised over rows."""
    _assert_as_eager(102, ROWS_OF_A_VECTOR, [5, 6, 8])


@pytest.mark.skipif(
    RELEASE < (2, 13),
    reason="torch before 2.13 fails on this program: its C++ backend fuses loops that it cannot "
    "make alike, and asserts that it has",
)
@pytest.mark.parametrize("budget", ["1.0", "0.01"])
def test_random_numbers_are_drawn_in_eagers_order_of_memory(budget):
    with torch._inductor.config.patch(fallback_random=True):
        _assert_as_eager(373, DRAWN, [3], budget)


def test_random_numbers_are_drawn_again_for_the_same_places():
    """Kernels of forward and backward lay out differently what the draw is made like."""
    with torch._inductor.config.patch(fallback_random=True):
        _assert_as_eager(373, DRAWN_TWICE, [12, 13, 14], "0.01")


def test_a_draw_at_a_symbolic_size_does_not_fix_it():
    def net(x: Tensor) -> Tensor:
        y = torch.nn.functional.dropout(torch.sin(x).t(), 0.5)
        return torch.sin(y * y).sum()

    options = {"memory_budget": 0.01}
    compiled = torch.compile(net, backend=recut.ckpt_backend, options=options, dynamic=True)

    def step(rows: int) -> None:
        got = torch.randn(rows, 16, requires_grad=True)
        want = got.detach().clone().requires_grad_()
        for f, x in ((compiled, got), (net, want)):
            torch.manual_seed(1)
            f(x).backward()
        torch.testing.assert_close(got.grad, want.grad)

    with torch._inductor.config.patch(fallback_random=True), floor_expected():
        step(12)
        with torch.compiler.set_stance("fail_on_recompile"):
            step(20)
            step(28)


def test_graphs_without_a_plan_are_left_alone():
    from recut.passes import mending

    class Node:
        def method(self, by: int) -> int:
            return by

    planned = []
    mending._wrap(Node, "method", lambda: bool(planned), lambda own, *given: -own(*given))
    mending._wrap(Node, "method", lambda: True, lambda own, *given: 0)  # wrapped once
    assert Node().method(3) == 3
    planned.append(True)
    assert Node().method(3) == -3
