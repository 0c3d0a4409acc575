"""What a benchmark model is, and how its blocks are checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

Made = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class ModelSpec:
    """One training model.

    ``has_blocks`` says that the net repeats one block (what planners by block can exploit);
    ``random`` that it draws random numbers, so that gradients are comparable only within one
    random stream (Inductor's differs from eager's).
    """

    name: str
    make: Callable[[bool], Made]
    has_blocks: bool
    note: str
    random: bool = False


class Blocks(nn.Module):
    """Blocks run one after the other, each under ``torch.utils.checkpoint`` when asked.

    What is given beside the first input goes to every block.
    """

    def __init__(self, blocks: Iterable[nn.Module], checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for block in self.blocks:
            x = run_block(block, self.checkpoint, x, *others)
        return x


def run_block(block: Callable[..., Tensor], checkpoint: bool, *inputs: Tensor) -> Tensor:
    """``block(*inputs)``, under ``torch.utils.checkpoint`` when asked."""
    return torch_checkpoint(block, *inputs, use_reentrant=False) if checkpoint else block(*inputs)
