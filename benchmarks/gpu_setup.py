"""What the GPU benchmark compares, and at which sizes: a Llama, and ways to spend its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.contest import Kind
from benchmarks.models.llama import Llama, Shape, llama, sharing, tokens
from benchmarks.models.spec import Checkpoint

MIB, GIB = 2**20, 2**30

Tell = Callable[[str, float], object]  # what begins now, and how many rows are still to come


@dataclass(frozen=True)
class Method:
    """One way to compile the model; ``ratio`` is an ``activation_memory_budget``."""

    label: str
    kind: Kind
    checkpoint: Checkpoint = False
    ratio: float = 1.0


STOCK = Method("stock Inductor", "stock")
BLOCK = Method("checkpoint per block", "block", True)
MATMULS = Method("selective checkpoint, all matmuls saved", "selective", "matmuls")
HALF = Method("selective checkpoint, every second matmul", "selective", "half")
RECUT = Method("recut", "recut")


def torch_budget(ratio: float) -> Method:
    """Torch's own budget, a ratio of what it would save."""
    return Method(f"activation_memory_budget {ratio}", "torch budget", ratio=ratio)


@dataclass(frozen=True)
class Size:
    """One scale of the whole benchmark.

    Attributes:
        name: how it is asked for.
        shape: the model.
        batch: batch size of the table.
        rounds: rounds of each race in the table, and at least two timed steps of each probe.
        percents: budgets to ask recut for, per cent of stock's measured peak.
        factors: the same, of what per-block checkpointing was measured to take.
        ratios: torch's own budgets in the table.
        fixed: what has no budget in the table.
        methods: what is compared at fixed memory; checkpointing per block before recut.
        caps: bytes that a whole training step may take.
        first_batch: where the search for the largest batch begins.
        row_seconds: what the first row may take, before any was measured.
        calibration_scale: factor on the operands of the calibration.
    """

    name: str
    shape: Shape
    batch: int
    rounds: int
    percents: tuple[int, ...]
    factors: tuple[float, ...]
    ratios: tuple[float, ...]
    fixed: tuple[Method, ...]
    methods: tuple[Method, ...]
    caps: tuple[int, ...]
    first_batch: int
    row_seconds: float
    calibration_scale: float = 1.0


# Full: 748 M parameters, 1.39 GiB in bf16 and as much of gradients. What stock saves for the
# backward, in bf16 numbers by token and layer: the residual stream twice, query, key, value and
# attention's result, each of the width, then gate and up, 6 * 2048 + 2 * 5632 = 23.5 k numbers or
# 47 kB. Over 12 layers and 16 * 4096 tokens that is 34.5 GiB; the logits of 32,000 tokens take
# 3.9 GiB, and their gradient as much. With the last layers' gradients some 43 GiB at the peak.
# Shape.flops(16) is 3.1e14: 0.8 s at 400 TFLOP/s.
# A training step holds weights, gradients and both moments beside it, all in bf16: 5.6 GiB.
_FULL = Size(
    "full",
    Shape(12, 2048, 5632, 16, 16, 4096, 32_000),
    batch=16,
    rounds=7,
    percents=(90, 80, 70, 60, 50, 40, 30, 20),
    factors=(1.5, 1.2, 1.0, 0.9),
    ratios=(0.9, 0.7, 0.5, 0.3, 0.1),
    fixed=(STOCK, BLOCK, MATMULS, HALF),
    methods=(STOCK, BLOCK, HALF, RECUT, torch_budget(0.1), torch_budget(0.5)),
    caps=(40 * GIB, 80 * GIB),
    first_batch=8,
    row_seconds=100.0,
)
# Lent: all of it within one command of eight minutes, by processes that take turns.
_LENT = replace(
    _FULL,
    name="lent",
    shape=Shape(8, 2048, 5632, 16, 16, 4096, 32_000),
    rounds=5,
    percents=(80, 65, 50, 35),
    factors=(1.2, 1.0, 0.9),
    ratios=(0.7, 0.5, 0.3, 0.1),
    methods=(STOCK, BLOCK, RECUT, HALF, torch_budget(0.5)),
    first_batch=16,
    row_seconds=50.0,
)
# Small: two layers of the same kind, to see within two or three minutes that all parts run.
_SMALL = Size(
    "small",
    Shape(2, 1024, 2816, 8, 8, 1024, 8_000),
    batch=8,
    rounds=5,
    percents=(60,),
    factors=(1.0,),
    ratios=(0.5,),
    fixed=(STOCK, BLOCK, HALF),
    methods=(STOCK, BLOCK, RECUT),
    caps=(2 * GIB,),
    first_batch=8,
    row_seconds=60.0,
)
# Tiny: the same code on a CPU.
_TINY = Size(
    "tiny",
    Shape(1, 32, 64, 2, 2, 32, 64),
    batch=4,
    rounds=2,
    percents=(80,),
    factors=(),
    ratios=(),
    fixed=(STOCK, BLOCK),
    methods=(STOCK, RECUT),
    caps=(MIB,),
    first_batch=4,
    row_seconds=20.0,
    calibration_scale=0.1,
)
SIZES = {size.name: size for size in (_FULL, _LENT, _SMALL, _TINY)}


@dataclass(frozen=True)
class Bench:
    """One size on one device; the weights are made once and every contestant runs on them.

    Attributes:
        size: the size.
        device: where everything runs.
        machine: file or name of the description that prices recut's plans; None for the best known.
    """

    size: Size
    device: torch.device
    machine: str | None = None

    @cached_property
    def base(self) -> Llama:
        """The module that owns the weights."""
        return llama(self.size.shape, self.device, torch.bfloat16)

    def inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets."""
        return tokens(self.size.shape, batch, self.device)

    def compiled(self, method: Method, budget: int | float = 1.0) -> nn.Module:
        """A new module over the same weights, to be compiled at its first call."""
        model = sharing(self.base, self.size.shape, method.checkpoint)
        if method.kind == "torch budget":
            return measure.compile_budget(model, method.ratio)
        if method.kind == "recut":
            options = {} if self.machine is None else {"machine": self.machine}
            return measure.compile_recut(model, budget, **options)
        return measure.compile_stock(model)

    def allocated(self, held: Iterable[Tensor]) -> int:
        """Bytes that are alive; on a CPU, which does not tell, those of ``held``."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.memory_allocated(self.device)
        return sum(tensor.nbytes for tensor in held)

    def free(self) -> int | None:
        """Bytes that a step may fill on the device; None where there is no such limit.

        Less than what is free now: blocks of other sizes leave gaps.
        """
        if self.device.type != "cuda":
            return None
        return int(0.95 * torch.cuda.mem_get_info(self.device)[0]) // GIB * GIB


def out_of_memory(failure: str) -> bool:
    """Whether an error's text says that the device was full."""
    text = failure.lower().replace(" ", "")
    return "outofmemory" in text or "alloc_failed" in text
