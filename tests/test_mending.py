"""Programs that Inductor's C++ backend gets wrong, right under a plan."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
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


def _assert_as_eager(seed: int, steps: Steps, ends: Sequence[int]) -> None:
    def made() -> tuple[Program, tuple[Tensor, ...]]:
        module, inputs = make(seed)
        module.steps, module.ends, module.returns, module.middle = list(steps), ends, [], 1
        return module, inputs

    module, inputs = made()
    want = take_steps(module, module, inputs)
    module, inputs = made()
    compiled = torch.compile(module, backend=recut.ckpt_backend, fullgraph=True)
    assert_same(take_steps(compiled, module, inputs), want)


def test_what_was_written_over_is_read_behind_its_writer():
    """Two views by strides whose gradients are scattered and read by rows: one kernel would err."""
    _assert_as_eager(4, WRITTEN_OVER, [5, 7])


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_rows_of_a_vector_do_not_share_a_buffer():
    """Gradients of softmaxes that read complex numbers' halves: kernels vectorised over rows."""
    _assert_as_eager(102, ROWS_OF_A_VECTOR, [5, 6, 8])


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
