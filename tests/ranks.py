"""Nets with collectives in them, and a script that trains them as one of two ranks.

``python tests/ranks.py STORE RANK`` compares two steps of each under the budget of the environment
with eager's, and prints what was planned. Both ranks have to print the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from nets import WIDTH, floor_expected
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

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


class Block(nn.Module):
    """A residual block with room to recompute."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.down(torch.sigmoid(torch.exp(torch.sin(self.up(x))))))


class Blocks(nn.Module):
    """Nothing of ranks in it: they come in by what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


Backend = Callable[..., Any] | None
Case = Callable[[nn.Module, Backend], Callable[..., Tensor]]


def whole(module: nn.Module, backend: Backend) -> Callable[..., Tensor]:
    """Compile a net as it is."""
    return torch.compile(module, backend=backend, fullgraph=True) if backend else module


def tensor_parallel(module: nn.Module, backend: Backend) -> Callable[..., Tensor]:
    """Shard weights as DTensors; activations are whole on each rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(module, mesh, {"*.up": ColwiseParallel(), "*.down": RowwiseParallel()})
    return whole(module, backend)


def fully_sharded(module: nn.Module, backend: Backend) -> Callable[..., Tensor]:
    """Shard parameters by FSDP2, whose hooks gather and free them around each compiled block."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in module.blocks:
        if backend:
            block.compile(backend=backend)
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def replicated(module: nn.Module, backend: Backend) -> Callable[..., Tensor]:
    """Average gradients over ranks as DDP does."""
    wrapped = DistributedDataParallel(module)
    return torch.compile(wrapped, backend=backend) if backend else wrapped


CASES: tuple[tuple[str, type[nn.Module], Case], ...] = (
    ("tensor parallel by hand", Sharded, whole),
    ("gathered parameters", Gathered, whole),
    ("expert parallel", Shuffled, whole),
    ("tensor parallel by DTensor", Blocks, tensor_parallel),
    ("FSDP2", Blocks, fully_sharded),
    ("DDP", Blocks, replicated),
)


def local(grad: Tensor | None) -> Tensor | None:
    """Return this rank's part of a gradient."""
    return grad.to_local() if isinstance(grad, DTensor) else grad


def main(store: str, rank: int) -> None:
    """Train each net as one of two ranks, compiled and not."""
    from steps import Graphs, assert_same, take_steps

    import recut

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, net, case in CASES:
        outcomes = []
        backend = aot_autograd(**Graphs().compilers(), partition_fn=recut.partition)
        for given in (None, backend):
            torch.manual_seed(0)
            module = net().double()
            call = case(module, given)
            # Tensor parallelism splits one batch's work; else each rank has a batch of its own.
            own = 0 if case is tensor_parallel else rank
            x = torch.randn(64, WIDTH, dtype=torch.float64) + own
            with floor_expected():
                outcome = take_steps(call, module, (x,), 2)
            outcomes.append(replace(outcome, grads={n: local(g) for n, g in outcome.grads.items()}))
        assert_same(outcomes[1], outcomes[0])
        report = recut.reports()[-1]
        print(f"{name}: {report.peak} of {report.fastest_peak}, {report.added_seconds}")
    dist.destroy_process_group()
    print("all as eager")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
