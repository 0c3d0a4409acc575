"""Small training nets for the tests, one per trait that a partitioner has to get right.

Everything floating is double precision: replaying an op gives the same bits, so a comparison with
eager can be tight enough that a wrong dropout mask or a statistic counted twice cannot hide in it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])  # torch's
ROWS, WIDTH = 256, 32


@contextmanager
def floor_expected() -> Iterator[None]:
    """Let the warning of a fraction below the floor pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*floor.*")
        yield


@dataclass(frozen=True)
class Net:
    """A net and its inputs; two calls of ``make`` give equal weights and inputs."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]

    def make(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        return self.module().double().train(), self.inputs()


def rows(*, grad: bool = False) -> tuple[Tensor, ...]:
    """One batch of rows."""
    return (torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=grad),)


def images() -> tuple[Tensor, ...]:
    return (torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True),)


def tokens() -> tuple[Tensor, ...]:
    return torch.randint(64, (4, 32)), torch.randint(64, (4, 32))


class SharedMLP(nn.Module):
    """Dropout after every layer, and one layer's weight used several times."""

    def __init__(self, dropout: float = 0.3, times: int = 4) -> None:
        super().__init__()
        self.dropout, self.times = dropout, times
        self.first, self.shared = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        for _ in range(self.times):
            x = F.dropout(F.gelu(self.shared(x)), self.dropout, self.training)
        return self.last(x).square().mean()


class Noise(nn.Module):
    """Draws of several kinds, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            noise = torch.randn_like(x)
            x = torch.tanh(self.layer(x) * noise) + 0.1 * noise
            x = x * torch.bernoulli(torch.sigmoid(x.detach()))
        return F.dropout(x, 0.5, self.training).sum()


class Views(nn.Module):
    """Views of views, writes through them, and gradients that come back through both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            gate, value = self.layer(x).chunk(2, dim=1)
            value = value.reshape(-1, 4, WIDTH // 4).transpose(1, 2)
            y = torch.sin(value).transpose(1, 2).reshape(-1, WIDTH) * torch.sigmoid(gate)
            y[:, ::2].mul_(0.5)
            y[1:].add_(x[:-1])
            x = torch.relu_(self.out(y)) + y.flip(0).clone()
        return x.as_strided((ROWS, WIDTH // 2), (WIDTH, 2)).exp().mean()


class MutatedBuffer(nn.Module):
    """Reads a buffer, writes it, reads it again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.ones(WIDTH))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        # Eager refuses to write to what it saved for the backward, so each read is of a copy.
        before = torch.sin(self.layer(x) * self.scale.clone())
        self.scale.mul_(0.5).add_(before.detach().mean(0))
        self.steps.add_(1)
        after = torch.cos(self.layer(before) * self.scale.clone()) / self.steps.clone()
        return (self.layer(after) * self.scale.clone()).square().sum()


class BatchNorm(nn.Module):
    """Batch norm in a residual net: running statistics that may be updated once only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + F.relu(norm(layer(x)))
        return x.square().mean()


class GPT(nn.Module):
    """Two causal blocks with dropout in attention and behind both branches."""

    def __init__(self, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.token, self.place = nn.Embedding(64, WIDTH), nn.Embedding(32, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * WIDTH, WIDTH) for _ in range(layers))

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        x = self.token(text) + self.place.weight[: text.shape[1]]
        for k, qkv in enumerate(self.qkv):
            x = x + F.dropout(self._attend(qkv, self.norms[2 * k](x)), self.dropout, self.training)
            hidden = F.gelu(self.up[k](self.norms[2 * k + 1](x)))
            x = x + F.dropout(self.down[k](hidden), self.dropout, self.training)
        logits = self.norms[-1](x) @ self.token.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _attend(self, qkv: nn.Linear, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (4, -1)).transpose(1, 2) for part in qkv(x).split(WIDTH, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


class Several(nn.Module):
    """Outputs of many kinds: twice the same, views of one another, an input, an integer, unused."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.idle = nn.Linear(WIDTH, WIDTH)  # a parameter that no output needs

    def forward(self, x: Tensor, unused: Tensor) -> tuple[Tensor, ...]:
        y = torch.tanh(self.a(x))
        z = torch.sin(self.b(y)) * y
        best = z.argmax(1)
        w = torch.exp(z).gather(1, best[:, None])
        return w, y, y, y.t(), z.view(-1), x, best, y.detach()


class Integers(nn.Module):
    """Integer inputs that index, mask and count; a frozen layer between trained ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(64, WIDTH, padding_idx=0), nn.Linear(WIDTH, 64)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        x = F.silu(self.frozen(self.table(text)))
        x = x.masked_fill((text % 3 == 0)[..., None], 0.0) * (targets + 1)[..., None]
        x = torch.cumsum(torch.tanh(x), dim=1)
        values, index = x.topk(8, dim=2)
        x = x.scatter(2, index, values.square())
        return F.cross_entropy(self.out(x).flatten(0, 1), targets.flatten(), label_smoothing=0.1)


class OneHot(nn.Module):
    """``one_hot`` checks its input by an op that returns nothing: an effect of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 64)

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        x = torch.tanh(torch.sin(self.table(text)))
        return -(self.out(x).log_softmax(2) * F.one_hot(targets, 64)).mean()


class ConvNet(nn.Module):
    """Convolutions, batch norm, ReLU in place, max and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2), nn.Dropout2d(0.2),
        )  # fmt: skip
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3))).logsumexp(1).sum()


def _block(layer: nn.Linear, x: Tensor, dropout: float) -> Tensor:
    y = torch.sin(layer(torch.sin(x)))
    return (F.dropout(y, dropout, True) if dropout else y) + x


def save_matmuls(_context: object, op: object, *_: object, **__: object) -> CheckpointPolicy:
    """Selective checkpointing: matmuls are saved, the rest is run again."""
    saved = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.MUST_RECOMPUTE


class Checkpointed(nn.Module):
    """Blocks that the user put into ``checkpoint``, in one of three ways."""

    def __init__(self, how: str, dropout: float = 0.2, layers: int = 3) -> None:
        super().__init__()
        self.how, self.dropout = how, dropout
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.head = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self._run(layer, x)
        return torch.exp(x @ self.head).mean()

    def _run(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if self.how == "plain":
            return _block(layer, x, self.dropout)
        if self.how == "checkpoint":
            return checkpoint(_block, layer, x, self.dropout, use_reentrant=False)
        contexts = partial(create_selective_checkpoint_contexts, save_matmuls)
        return checkpoint(_block, layer, x, self.dropout, use_reentrant=False, context_fn=contexts)


class Random(nn.Module):
    """A net drawn from a seed: its ops read any earlier value, so lifetimes cross in every way."""

    def __init__(self, seed: int, length: int = 14) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.steps = [
            (draw.randrange(10), *(draw.randrange(max(0, k - 4), k + 1) for _ in range(2)))
            for k in range(length)
        ]
        # Nothing is dead: every value that no later step reads counts in the loss.
        self.ends = set(range(1, length + 1)) - {k for _, *reads in self.steps for k in reads}

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for kind, a, b in self.steps:
            made.append(self._step(kind, made[a], made[b]))
        return sum(made[k].square().mean() for k in sorted(self.ends))

    def _step(self, kind: int, a: Tensor, b: Tensor) -> Tensor:
        if kind < 3:
            return self.layers[kind](a) + b
        if kind == 3:
            return F.dropout(a, 0.4, self.training) + b.flip(0)
        if kind == 4:
            return torch.softmax(a, 1) * b
        if kind == 5:
            return torch.cat([a, b], 1).view(ROWS, 2, WIDTH).transpose(1, 2).amax(2)
        if kind == 6:
            y = torch.sin(a)
            y[: ROWS // 2].add_(b[ROWS // 2 :])
            return y
        if kind == 7:
            return F.layer_norm(a, (WIDTH,)) - torch.tanh(b)
        if kind == 8:
            return torch.where(a > b, a, b).unflatten(1, (2, -1)).cumsum(1).flatten(1)
        return F.relu(a) * torch.rand_like(b)


def _several_inputs() -> tuple[Tensor, ...]:
    return rows(grad=True) + rows(grad=True)


NETS = {
    net.name: net
    for net in (
        Net("shared_mlp", SharedMLP, partial(rows, grad=True)),
        Net("noise", Noise, rows),
        Net("views", Views, partial(rows, grad=True)),
        Net("mutated_buffer", MutatedBuffer, rows),
        Net("batch_norm", BatchNorm, rows),
        Net("gpt", GPT, tokens),
        Net("several", Several, _several_inputs),
        Net("integers", Integers, tokens),
        Net("one_hot", OneHot, tokens),
        Net("conv", ConvNet, images),
    )
}
