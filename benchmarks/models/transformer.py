"""Transformers of one stack: over tokens, with mixtures of experts, over patches of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.spec import Blocks, Checkpoint, Made


class TransformerBlock(nn.Module):
    """Pre-norm attention and GELU MLP; ``dropout`` acts on attention weights and both branches."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self._attend(self.norm1(x)))
        hidden = self._drop(F.gelu(self.up(self.norm2(x))))
        return x + self._drop(self.down(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def _drop(self, x: Tensor) -> Tensor:
        # A probability of zero leaves no random op in the graph.
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Experts(nn.Module):
    """Of some MLPs the two that a router weighs highest for each token.

    Every expert computes every token and the weight of most is zero: shapes are static, no token
    is dropped, and a step stays one graph.
    """

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * 0.02)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        weights, chosen = torch.topk(self.router(tokens).softmax(-1), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        share = torch.zeros_like(tokens[:, : self.up.shape[0]]).scatter(1, chosen, weights)
        hidden = F.gelu(torch.matmul(tokens, self.up))
        mixed = torch.matmul(hidden, self.down) * share.t().unsqueeze(-1)
        return mixed.sum(0).view_as(x)


class ExpertBlock(TransformerBlock):
    """A transformer block with a mixture of experts in the place of its MLP."""

    def __init__(self, width: int, heads: int, causal: bool, experts: int) -> None:
        super().__init__(width, heads, causal)
        del self.up, self.down
        self.experts = Experts(width, 2 * width, experts)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return x + self.experts(self.norm2(x))


class Transformer(nn.Module):
    """A transformer over tokens with cross entropy per position; causal for a GPT.

    With ``experts``, each block has so many MLPs and no dropout.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        length: int,
        *,
        heads: int = 8,
        vocab: int = 256,
        causal: bool = True,
        dropout: float = 0.0,
        experts: int = 0,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.token, self.place = nn.Embedding(vocab, width), nn.Embedding(length, width)
        blocks = (
            ExpertBlock(width, heads, causal, experts)
            if experts
            else TransformerBlock(width, heads, causal, dropout)
            for _ in range(layers)
        )
        self.blocks = Blocks(blocks, checkpoint)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.apply(init_small)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def init_small(module: nn.Module) -> None:
    """GPT-2's initialisation: torch's default embeddings of scale 1 slow the first steps down."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def transformer(
    layers: int,
    width: int,
    length: int,
    checkpoint: Checkpoint,
    *,
    batch: int = 4,
    vocab: int = 256,
    causal: bool = True,
    dropout: float = 0.0,
    experts: int = 0,
) -> Made:
    torch.manual_seed(0)
    model = Transformer(
        layers,
        width,
        length,
        vocab=vocab,
        causal=causal,
        dropout=dropout,
        experts=experts,
        checkpoint=checkpoint,
    )
    tokens = torch.randint(vocab, (batch, length + 1))
    return model, (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class ViT(nn.Module):
    """A vision transformer: patches and a class token through an encoder, then a classifier."""

    def __init__(
        self, layers: int, width: int, size: int, patch: int, classes: int, checkpoint: Checkpoint
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width) * 0.02)
        blocks = (TransformerBlock(width, 6, causal=False) for _ in range(layers))
        self.blocks = Blocks(blocks, checkpoint)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        self.apply(init_small)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.place
        x = self.norm(self.blocks(x))
        return F.cross_entropy(self.head(x[:, 0]), labels)


def vit(checkpoint: Checkpoint) -> Made:
    torch.manual_seed(0)
    model = ViT(8, 192, 112, 8, 100, checkpoint)
    return model, (torch.randn(4, 3, 112, 112), torch.randint(100, (4,)))
