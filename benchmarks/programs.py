"""Training programs drawn from a seed: views, in-place ops, random numbers, buffers, decisions.

``benchmarks/fuzzing.py`` runs them under several budgets and compares with eager.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROWS, WIDTH, WORDS = 16, 8, 11

Step = Callable[["Program", Tensor, Tensor], Tensor]


class Square(torch.autograd.Function):
    """What a user writes by hand: it saves its input and a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x * x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 2 * ctx.scale * x * grad, None


def _write(p: Program, a: Tensor, b: Tensor) -> Tensor:
    y = torch.sin(a)
    y.mul_(torch.sigmoid(b)).add_(0.1)
    return y


def _write_view(p: Program, a: Tensor, b: Tensor) -> Tensor:
    y = a * 1.5
    y[:, : WIDTH // 2].add_(b[:, WIDTH // 2 :])
    y.t()[0].mul_(0.5)
    return y


def _batch_norm(p: Program, a: Tensor, b: Tensor) -> Tensor:
    return p.norm(a) + b


def _count(p: Program, a: Tensor, b: Tensor) -> Tensor:
    p.count.add_(1.0)
    return a * p.count.clone()  # what is saved may be written again


def _running_mean(p: Program, a: Tensor, b: Tensor) -> Tensor:
    before = a * p.mean.clone()
    p.mean.lerp_(b.detach().mean(0), 0.1)
    return before - p.mean


def _scratch(p: Program, a: Tensor, b: Tensor) -> Tensor:
    p.scratch.add_(b.detach())
    return torch.tanh(a) * p.scratch.clone()


def _argmax(p: Program, a: Tensor, b: Tensor) -> Tensor:
    return b.index_select(0, (a * 3).argmax(1) % ROWS)


def _topk(p: Program, a: Tensor, b: Tensor) -> Tensor:
    values, where = a.topk(3, 1)
    return torch.zeros_like(b).scatter_add(1, where, values) + b


def _experts(p: Program, a: Tensor, b: Tensor) -> Tensor:
    gates, which = torch.softmax(p.layers[0](a)[:, :3], 1).max(1)
    weights = torch.stack([layer.weight for layer in p.layers])[which]
    return torch.einsum("rw,rvw->rv", b, weights) * gates[:, None]


def _words(p: Program, a: Tensor, b: Tensor) -> Tensor:
    return p.words(p.text) * a


def _attention(p: Program, a: Tensor, b: Tensor) -> Tensor:
    q, k, v = (x.view(1, ROWS, 2, WIDTH // 2).transpose(1, 2) for x in (a, b, p.layers[1](a)))
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.2)
    return y.transpose(1, 2).reshape(ROWS, WIDTH)


def _region(p: Program, a: Tensor, b: Tensor) -> Tensor:
    def block(x: Tensor, y: Tensor) -> Tensor:
        return F.dropout(torch.tanh(p.layers[2](x)), 0.3) * y

    return checkpoint(block, a, b, use_reentrant=False)


def _complex(p: Program, a: Tensor, b: Tensor) -> Tensor:
    z = torch.complex(a, b)
    return (z * z.conj() + torch.fft.fft(z, dim=1)).real


def _without_gradient(p: Program, a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        most = b.abs().max() + 1.0
    return a / most


def _accumulate(p: Program, a: Tensor, b: Tensor) -> Tensor:
    return a.index_put((p.text % ROWS,), torch.exp(-b.abs()), accumulate=True)


def _convolve(p: Program, a: Tensor, b: Tensor) -> Tensor:
    return p.convolution(a.t()[None])[0].t() + b


def _statistics(p: Program, a: Tensor, b: Tensor) -> Tensor:
    spread, mean = torch.std_mean(a, 1, keepdim=True)
    return (b - mean) / (spread + 1.0)


def _classes(p: Program, a: Tensor, b: Tensor) -> Tensor:
    return F.cross_entropy(a, p.text % WIDTH, reduction="none")[:, None] * b


def _permutation(p: Program, a: Tensor, b: Tensor) -> Tensor:
    order = torch.randperm(ROWS, device=a.device)
    return a[order] + torch.randn(WIDTH, device=a.device) * b


def _fill(p: Program, a: Tensor, b: Tensor) -> Tensor:
    y = torch.empty_like(a)
    y.copy_(b)
    y.masked_fill_(a > 0.5, 0.25)
    return y


def _out(p: Program, a: Tensor, b: Tensor) -> Tensor:
    where = torch.empty(ROWS, dtype=torch.long, device=a.device)
    torch.argmin(a.detach(), 1, out=where)
    return b.gather(1, where[:, None]) + a


STEPS: dict[str, Step] = {
    "linear": lambda p, a, b: p.layers[0](a) + b,
    "linear again": lambda p, a, b: torch.sigmoid(p.layers[1](b)) * a,
    "matmul": lambda p, a, b: torch.tanh(a @ b.t() @ a / ROWS),
    "dropout": lambda p, a, b: F.dropout(a, 0.4) + b.flip(0),
    "noise": lambda p, a, b: F.relu(a) * torch.rand_like(b),
    "bernoulli": lambda p, a, b: torch.bernoulli(torch.full_like(a, 0.5)) * b,
    "permutation": _permutation,
    "write": _write,
    "write a view": _write_view,
    "write a sum": lambda p, a, b: (a + b).clamp_(-1.0, 1.0),
    "views": lambda p, a, b: a.view(ROWS // 2, 2, WIDTH).transpose(0, 1).reshape(ROWS, WIDTH) * b,
    "strides": lambda p, a, b: torch.as_strided(a * b, (ROWS, WIDTH), (1, ROWS)) + a,
    "batch norm": _batch_norm,
    "count": _count,
    "running mean": _running_mean,
    "scratch": _scratch,
    "detach": lambda p, a, b: a * b.detach(),
    "argmax": _argmax,
    "topk": _topk,
    "sort": lambda p, a, b: a.sort(1).values * b.sort(0, descending=True).values,
    "experts": _experts,
    "where": lambda p, a, b: torch.where(a > b, a, b * 0.5).unflatten(1, (2, -1)).flatten(1),
    "cumsum": lambda p, a, b: a.cumsum(1) / WIDTH + b,
    "softmax": lambda p, a, b: torch.softmax(a, 1) * b,
    "layer norm": lambda p, a, b: F.layer_norm(a, (WIDTH,)) - torch.tanh(b),
    "words": _words,
    "attention": _attention,
    "by hand": lambda p, a, b: Square.apply(torch.tanh(a), 0.5) + b,
    "region": _region,
    "complex": _complex,
    "halves": lambda p, a, b: torch.cat([*a.chunk(2, 1)[::-1]], 1) * b,
    "without gradient": _without_gradient,
    "accumulate": _accumulate,
    "convolution": _convolve,
    "statistics": _statistics,
    "classes": _classes,
    "positive": lambda p, a, b: a * (b > 0).sum() / (ROWS * WIDTH),
    "single": lambda p, a, b: (torch.exp(-(a.float() ** 2)) * 2).double() + b,
    "pool": lambda p, a, b: F.max_pool1d(a[None], 3, 1, 1)[0] * b,
    "fill": _fill,
    "out": _out,
    "norm": lambda p, a, b: F.normalize(a, dim=1) + b.norm(),
}


# Steps that read their first value only.
ALONE = {"count", "words"}


class Program(nn.Module):
    """A net drawn from a seed: each step reads two earlier values, not always the last ones."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(f"program {seed}")
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.layers[2].weight = self.layers[0].weight
        self.norm = nn.BatchNorm1d(WIDTH)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.register_buffer("count", torch.ones(1))
        self.register_buffer("mean", torch.zeros(WIDTH))
        length = draw.randint(4, 14)
        names = draw.sample(list(STEPS), draw.randint(3, 8))  # few kinds: they meet each other
        self.steps = [
            (draw.choice(names), *(draw.randrange(max(0, k - 4), k + 1) for _ in range(2)))
            for k in range(length)
        ]
        # torch drops random draws that nothing reads, which moves the generator: there are none.
        read = {k for name, *reads in self.steps for k in reads[: 1 if name in ALONE else 2]}
        self.ends = sorted(set(range(1, length + 1)) - read)
        kinds = ("tensor", "detached", "decision", "view of an input", "twice", "sum")
        self.returns = draw.sample(kinds, draw.randint(0, 3))
        self.middle = draw.randint(1, length)

    def forward(
        self, x: Tensor, unused: Tensor, text: Tensor, scratch: Tensor
    ) -> tuple[Tensor, ...]:
        self.text, self.scratch = text, scratch
        made = [x]
        for name, a, b in self.steps:
            made.append(STEPS[name](self, made[a], made[b]))
        loss = sum(made[k].square().mean() for k in self.ends)
        y = made[self.middle]
        outputs = {
            "tensor": lambda: (y,),
            "detached": lambda: (y.detach(),),
            "decision": lambda: (y.argmax(1),),
            "view of an input": lambda: (x.view(-1)[3:],),
            "twice": lambda: (loss, y.t()),
            "sum": lambda: (y.sum(0),),
        }
        return loss, *(t for kind in self.returns for t in outputs[kind]())


def make(seed: int, device: str = "cpu") -> tuple[Program, tuple[Tensor, ...]]:
    """Return a program and its inputs; two calls give equal ones."""
    torch.manual_seed(seed)
    module = Program(seed).double().train().to(device)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64).to(device).requires_grad_()
    unused = torch.randn(3, dtype=torch.float64).to(device).requires_grad_()
    text = torch.randint(WORDS, (ROWS,)).to(device)
    scratch = torch.zeros(ROWS, WIDTH, dtype=torch.float64, device=device)
    return module, (x, unused, text, scratch)
