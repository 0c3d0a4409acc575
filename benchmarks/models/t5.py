"""T5: an encoder and a decoder, with relative positions and cross-attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.spec import Blocks, Checkpoint, Made

BUCKETS, FARTHEST = 32, 128


class RelativeBias(nn.Module):
    """What attention adds to its scores by the distance of query and key; a stack shares one.

    Near distances have a bucket each, farther ones share buckets of growing size.
    """

    def __init__(self, heads: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.weight = nn.Embedding(BUCKETS, heads)

    def forward(self, length: int) -> Tensor:
        places = torch.arange(length, device=self.weight.weight.device)
        ahead = places[None, :] - places[:, None]  # of the query, by key
        bias: Tensor = self.weight(self._bucket(ahead)).permute(2, 0, 1)[None]
        return bias.masked_fill(ahead > 0, -1e9) if self.causal else bias

    def _bucket(self, ahead: Tensor) -> Tensor:
        buckets = BUCKETS if self.causal else BUCKETS // 2
        side = 0 if self.causal else (ahead > 0) * buckets
        distance = (-ahead).clamp(min=0) if self.causal else ahead.abs()
        exact = buckets // 2
        steps = (distance.clamp(min=1) / exact).log() / math.log(FARTHEST / exact)
        far = (exact + steps * (buckets - exact)).long().clamp(max=buckets - 1)
        return side + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """T5's attention: no scale, no biases, scores and their softmax in full."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        nn.init.normal_(self.q.weight, std=1 / math.sqrt(width * width // heads))

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(memory)), self._split(self.v(memory))
        scores = q @ k.transpose(2, 3)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class T5Block(nn.Module):
    """Self-attention, with ``memory`` cross-attention, and a ReLU MLP, each behind an RMS norm."""

    def __init__(self, width: int, heads: int, crosses: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        if crosses:
            self.norm3, self.cross = nn.RMSNorm(width), Attention(width, heads)

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, bias)
        if memory is not None:
            x = x + self.cross(self.norm3(x), memory, None)
        return x + self.down(F.relu(self.up(self.norm2(x))))


class T5(nn.Module):
    """Reads ``source`` with the encoder, and predicts each next token of ``target``."""

    def __init__(
        self, layers: int, width: int, heads: int, vocab: int, checkpoint: Checkpoint
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, width)
        self.place, self.place_out = RelativeBias(heads, False), RelativeBias(heads, True)
        self.encoder = Blocks((T5Block(width, heads, False) for _ in range(layers)), checkpoint)
        self.decoder = Blocks((T5Block(width, heads, True) for _ in range(layers)), checkpoint)
        self.norm, self.norm_out = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        given, wanted = target[:, :-1], target[:, 1:]
        memory = self.norm(self.encoder(self.token(source), self.place(source.shape[1])))
        x = self.decoder(self.token(given), self.place_out(given.shape[1]), memory)
        # The embedding is the head too; T5 scales what it reads.
        logits = F.linear(self.norm_out(x) * x.shape[-1] ** -0.5, self.token.weight)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def t5(checkpoint: Checkpoint) -> Made:
    torch.manual_seed(0)
    model = T5(layers=4, width=192, heads=6, vocab=512, checkpoint=checkpoint)
    return model, (torch.randint(512, (4, 192)), torch.randint(512, (4, 129)))
