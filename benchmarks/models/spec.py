"""What a benchmark model is, and how its blocks are checkpointed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)
from torch.utils.checkpoint import checkpoint as torch_checkpoint

Made = tuple[nn.Module, tuple[Tensor, ...]]
# Whole blocks or not, or selectively: keep attention and all matmuls, or every second matmul.
Checkpoint = bool | Literal["matmuls", "half"]

_ATEN = torch.ops.aten
_MATMULS = (_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default)
_CONVOLUTION = _ATEN.convolution.default
_ATTENTION = (
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
)


@dataclass(frozen=True)
class ModelSpec:
    """One training model.

    ``has_blocks`` says that the net repeats one block (what planners by block can exploit);
    ``random`` that it draws random numbers, so that gradients are comparable only within one
    random stream (Inductor's differs from eager's).
    """

    name: str
    make: Callable[[Checkpoint], Made]
    has_blocks: bool
    note: str
    random: bool = False


class Blocks(nn.Module):
    """Blocks run one after the other, each under ``torch.utils.checkpoint`` when asked.

    What is given beside the first input goes to every block.
    """

    def __init__(self, blocks: Iterable[nn.Module], checkpoint: Checkpoint) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for block in self.blocks:
            x = run_block(block, self.checkpoint, x, *others)
        return x


def run_block(block: Callable[..., Tensor], checkpoint: Checkpoint, *inputs: Tensor) -> Tensor:
    """``block(*inputs)``, under ``torch.utils.checkpoint`` when asked."""
    if not checkpoint:
        return block(*inputs)
    return torch_checkpoint(block, *inputs, use_reentrant=False, **contexts(checkpoint))


def contexts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The argument that makes ``torch.utils.checkpoint`` a selective one, where it is to be one."""
    if isinstance(checkpoint, bool):
        return {}
    return {"context_fn": _keep_matmuls if checkpoint == "matmuls" else _keep_half}


def _keep_matmuls() -> Any:
    """The contexts of a block that keeps what its matmuls, convolutions and attention give."""
    return create_selective_checkpoint_contexts([*_MATMULS, _CONVOLUTION, *_ATTENTION])


def _keep_half() -> Any:
    """The contexts of a block that keeps attention and every second matmul, as trainers do."""
    seen: Counter[bool] = Counter()

    def policy(
        context: SelectiveCheckpointContext, op: Any, *_args: Any, **_kwargs: Any
    ) -> CheckpointPolicy:
        if op in _MATMULS:
            seen[context.is_recompute] += 1
        odd = seen[context.is_recompute] % 2 == 1
        if op in _ATTENTION or (op in _MATMULS and odd):
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
