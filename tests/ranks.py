"""Nets with collectives in them, and a script that trains them as one of two ranks.

``python tests/ranks.py STORE RANK`` compares two steps of each under the budget of the environment
with eager's, and prints what was planned. Both ranks have to print the same.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import torch.distributed._functional_collectives as funcol
from nets import WIDTH, floor_expected
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

HIDDEN = 4 * WIDTH


class _SumForward(torch.autograd.Function):
    """Sums over ranks forwards; every rank has the gradient already."""

    @staticmethod
    def forward(_ctx, x):
        return funcol.all_reduce(x, "sum", dist.group.WORLD)

    @staticmethod
    def backward(_ctx, grad):
        return grad


class _SumBackward(torch.autograd.Function):
    """Sums gradients over ranks backwards."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, grad):
        return funcol.all_reduce(grad.contiguous(), "sum", dist.group.WORLD)


class Sharded(nn.Module):
    """Tensor parallelism: each rank has half of every hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, HIDDEN) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            hidden = torch.exp(torch.sin(up(_SumBackward.apply(x))))
            x = x + torch.tanh(_SumForward.apply(down(torch.sigmoid(hidden))))
        return x.square().mean()


class Gathered(nn.Module):
    """Sharded parameters: each rank gathers a layer's rows, and scatters their gradients."""

    def __init__(self) -> None:
        super().__init__()
        shards = [torch.randn(HIDDEN // 2, WIDTH) / WIDTH for _ in range(3)]
        self.shards = nn.ParameterList(shards)

    def forward(self, x: Tensor) -> Tensor:
        for shard in self.shards:
            whole = funcol.all_gather_tensor_autograd(shard, 0, dist.group.WORLD)
            x = x + torch.tanh(torch.sin(torch.exp(x @ whole.t())) @ whole)
        return x.square().mean()


class Shuffled(nn.Module):
    """Expert parallelism: rows travel to the rank that has their expert, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for expert in self.experts:
            sent = funcol.all_to_all_single_autograd(x, None, None, dist.group.WORLD)
            done = torch.sin(torch.exp(torch.tanh(expert(sent))))
            x = x + funcol.all_to_all_single_autograd(done, None, None, dist.group.WORLD)
        return x.square().mean()


class Distributed(nn.Module):
    """Tensor parallelism by torch's own DTensor: weights are sharded, activations are not."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, HIDDEN) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, WIDTH) for _ in range(2))

    def sharded(self) -> Distributed:
        """Shard the weights over all ranks."""
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        plan = {"up.*": ColwiseParallel(), "down.*": RowwiseParallel()}
        parallelize_module(self, mesh, plan)
        return self

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + torch.tanh(down(torch.sigmoid(torch.exp(torch.sin(up(x))))))
        return x.square().mean()


def local(grad: Tensor | None) -> Tensor | None:
    """Return this rank's part of a gradient."""
    return grad.to_local() if isinstance(grad, DTensor) else grad


def main(store: str, rank: int) -> None:
    """Train each net as one of two ranks, compiled and not."""
    from steps import Graphs, assert_same, by_dynamo, take_steps

    import recut

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for net in (Sharded, Gathered, Shuffled, Distributed):
        outcomes = []
        for compile_ in (lambda module: module, lambda module: by_dynamo(module, Graphs())):
            torch.manual_seed(0)
            module = net().double()
            if isinstance(module, Distributed):
                module.sharded()
            x = torch.randn(64, WIDTH, dtype=torch.float64) + rank * (net is not Distributed)
            with floor_expected():
                outcome = take_steps(compile_(module), module, (x,), 2)
            outcomes.append(replace(outcome, grads={n: local(g) for n, g in outcome.grads.items()}))
        assert_same(outcomes[1], outcomes[0])
        report = recut.reports()[-1]
        print(net.__name__, report.peak, report.budget, report.ops, report.added_seconds)
    dist.destroy_process_group()
    print("all as eager")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
