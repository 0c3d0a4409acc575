"""A Llama: RMS norms, rotary positions, grouped attention and a gated MLP, in one precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.spec import Blocks, Checkpoint
from benchmarks.models.transformer import init_small


@dataclass(frozen=True)
class Shape:
    """Sizes of one Llama; ``heads`` ask the queries, ``kv_heads`` hold the keys and values."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    length: int
    vocab: int

    @property
    def parameters(self) -> int:
        """How many numbers its weights are."""
        head = self.width // self.heads
        attention = 2 * self.width * (self.width + head * self.kv_heads)
        block = attention + 3 * self.width * self.hidden + 2 * self.width
        return self.layers * block + 2 * self.vocab * self.width + self.width

    def flops(self, batch: int) -> float:
        """FLOPs of a forward and backward without recomputation, by the matmuls' shapes.

        Attention is causal, and its backward takes 2.5 times its forward.
        """
        tokens = batch * self.length
        matmuls = 6.0 * tokens * (self.parameters - self.vocab * self.width)
        attention = 2.0 * tokens * self.length * self.width * self.layers  # half are masked
        return matmuls + 3.5 * attention


class RMSNorm(nn.Module):
    """Root mean square norm, computed in single precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return normed.to(x.dtype) * self.weight


class LlamaBlock(nn.Module):
    """Pre-norm attention with rotary positions, then a gated MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head = shape.width // shape.heads
        self.grouped = shape.kv_heads != shape.heads
        kv = self.head * shape.kv_heads
        self.norm1, self.norm2 = RMSNorm(shape.width), RMSNorm(shape.width)
        self.query, self.out = _linear(shape.width, shape.width), _linear(shape.width, shape.width)
        self.key, self.value = _linear(shape.width, kv), _linear(shape.width, kv)
        self.gate, self.up = (_linear(shape.width, shape.hidden) for _ in range(2))
        self.down = _linear(shape.hidden, shape.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x), cos, sin)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.grouped
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.head)).transpose(1, 2)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of numbers by the angle of their position.

    ``x`` is batch x heads x length x head, ``cos`` and ``sin`` are length x half a head.
    """
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Llama(nn.Module):
    """A Llama with an untied head and cross entropy per token, in single precision."""

    def __init__(self, shape: Shape, checkpoint: Checkpoint = False) -> None:
        super().__init__()
        self.token = nn.Embedding(shape.vocab, shape.width)
        self.blocks = Blocks((LlamaBlock(shape) for _ in range(shape.layers)), checkpoint)
        self.norm, self.lm_head = RMSNorm(shape.width), _linear(shape.width, shape.vocab)
        half = shape.width // shape.heads // 2
        speeds = 10_000.0 ** (-torch.arange(half) / half)
        angles = torch.arange(shape.length)[:, None] * speeds
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.apply(init_small)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.blocks(self.token(tokens), self.cos, self.sin)
        logits = self.lm_head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def llama(shape: Shape, device: torch.device, dtype: torch.dtype) -> Llama:
    """A Llama with random weights of ``dtype``; its tables of angles stay in single precision."""
    torch.manual_seed(0)
    with device:
        model = Llama(shape)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def sharing(model: Llama, shape: Shape, checkpoint: Checkpoint) -> Llama:
    """Another module over ``model``'s own parameters and buffers, so gradients are shared too."""
    with torch.device("meta"):
        other = Llama(shape, checkpoint)
    other.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return other


def tokens(shape: Shape, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random tokens and the ones after them, each batch x length."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(shape.vocab, (batch, shape.length + 1), generator=generator).to(device)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
