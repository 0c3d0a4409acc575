"""What steps of training leave behind, compared with what eager leaves.

Graphs run op by op on a CPU in double precision, so "equal" means to a few last bits: a mask drawn
afresh or a statistic counted twice is off by orders of magnitude more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SEED = 7


@dataclass(frozen=True)
class Outcome:
    """Everything that one or more steps leave behind."""

    outputs: tuple[Tensor, ...]
    grads: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor]
    generator: Tensor = field(repr=False)


def take_steps(
    call: Callable[..., Any],
    module: nn.Module,
    inputs: Sequence[Tensor],
    steps: int = 1,
    backwards: int = 1,
) -> Outcome:
    """Run forward and backward from one seed; each element of the outputs weighs differently.

    Args:
        call: the module, or what was compiled of it.
        module: where the gradients are.
        inputs: what it is called with.
        steps: how many times all of it.
        backwards: how often each graph runs its backward; it is kept for all but the last.
    """
    torch.manual_seed(SEED)
    for _ in range(steps):
        outputs = call(*inputs)
        outputs = tuple(outputs) if isinstance(outputs, (list, tuple)) else (outputs,)
        losses = [
            (
                y
                * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
            ).sum()
            for y in outputs
            if y.requires_grad
        ]
        loss = sum(losses)
        for left in reversed(range(backwards)):
            loss.backward(retain_graph=left > 0)
    grads = {name: p.grad for name, p in module.named_parameters()}
    grads |= {f"input {k}": x.grad for k, x in enumerate(inputs)}
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    return Outcome(outputs, grads, buffers, torch.cat(generator_states()))


def generator_states() -> list[Tensor]:
    """Return the state of the CPU's generator, and of the GPU's where one is in use."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states.append(torch.cuda.get_rng_state())
    return states


def close(
    got: Tensor, want: Tensor, msg: Callable[[str], str], *, share: float = 0.0, **given: float
) -> None:
    """Hold a tensor to another one; what is no number in one has to be none in the other.

    Args:
        got: the one.
        want: the other.
        msg: given what differs, what to say.
        share: how far numbers may be off, as a share of the largest (kernels add up otherwise).
        given: ``rtol`` and ``atol`` of ``torch.testing.assert_close``.
    """
    tolerance = {"rtol": 1e-9, "atol": 1e-12} | given
    if share and want.numel():
        largest = float(want.detach().abs().nan_to_num().max())
        tolerance["atol"] = max(tolerance["atol"], share * largest)
    torch.testing.assert_close(got, want, equal_nan=True, msg=msg, **tolerance)


def assert_same(got: Outcome, want: Outcome, **tolerance: float) -> None:
    """Hold an outcome to another one; ``tolerance`` is of :func:`close`."""
    assert len(got.outputs) == len(want.outputs)
    for k, (a, b) in enumerate(zip(got.outputs, want.outputs, strict=True)):
        close(a, b, partial("output {}: {}".format, k), **tolerance)
    for what in ("grads", "buffers"):
        ours, theirs = getattr(got, what), getattr(want, what)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name] is None) == (value is None), f"{what} of {name}"
            if value is not None:
                told = partial("{}: {}".format, f"{what} of {name}")
                close(ours[name], value, told, **tolerance)
    assert torch.equal(got.generator, want.generator), "the generator stands elsewhere"
