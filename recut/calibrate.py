"""Measure a machine: what its matmuls, attention, convolutions and memory reach.

Each figure is the best of many short runs (``torch.utils.benchmark``): the machine's own limit, and
the least disturbed by whatever else runs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
from torch.nn import functional

from recut.machines import Host
from recut.partitioners.machine import Machine, described
from recut.passes.measured import best_seconds

_SECONDS = 0.4  # for one figure, warm-up aside
_DTYPES = ("float32", "float64", "bfloat16", "float16")

Step = tuple[str, Callable[[], None]]


def _activation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return functional.gelu(a * 0.5 + b) + a


# Of numbers and a mask of as many.
_FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "uniform": lambda a, _: torch.rand_like(a) + a,
    "normal": lambda a, _: torch.randn_like(a) + a,
    "exp": lambda a, _: torch.exp(a),
    "log": lambda a, _: torch.log(a.abs()),
    "tanh": lambda a, _: torch.tanh(a),
    "sigmoid": lambda a, _: torch.sigmoid(a),
    "erf": lambda a, _: torch.erf(a),
    "sin": lambda a, _: torch.sin(a),
    "pow": lambda a, _: torch.pow(a.abs(), a),
    "bool store": lambda a, _: (-a, a > 0),
    "bool load": lambda a, mask: torch.where(mask, a, 0.0),
}
# Channels in and out, window and size of the images of the convolutions that are measured.
_CONVOLUTIONS = (
    *((64, 64, 3, 56), (256, 64, 1, 32), (64, 256, 1, 32)),
    *((128, 128, 3, 16), (512, 128, 1, 8), (256, 256, 3, 4)),
)
# A function that takes less than this share of reading and writing its numbers is free.
_NOTICED = 0.1


class Calibration:
    """The measurements of one device.

    Args:
        host: what is measured.
        scale: factor on the sizes of the operands; tests measure small ones.
    """

    def __init__(self, host: Host, scale: float = 1.0) -> None:
        self.host = host
        self.device = torch.device(host.device)
        self.cuda = host.device == "cuda"
        self.scale = scale * (4 if self.cuda else 1)
        self.main = torch.bfloat16 if self.cuda else torch.float32
        self.flops: dict[str, float] = {}
        self.rates: dict[str, float] = {}
        self.functions: dict[str, float] = {}
        self.bandwidth = self.launch = self.link = 0.0

    def steps(self) -> Iterator[Step]:
        """Yield what to measure: a label, and the call that measures it."""
        for name in _DTYPES:
            yield f"matmul, {name}", partial(self._matmul, name)
        yield "batched matmul", self._batched_matmul
        yield "attention", self._attention
        yield "convolution", self._convolution
        yield "memory bandwidth", self._bandwidth
        for name in _FUNCTIONS:
            yield name, partial(self._function, name)
        yield "starting a kernel", self._launch
        if self.cuda:
            yield "host link", self._link

    def machine(self) -> Machine:
        """Return what was measured as a description."""
        return Machine(
            self.host.product,
            {"default": self.flops["float32"], **self.flops},
            self.bandwidth,
            self.launch,
            described(self.host.device, self.host.product).fused,
            self.host.device,
            self.rates,
            self.functions,
            self.link,
            f"recut calibrate, torch {self.host.torch}, {self.host.threads} threads",
        )

    def _seconds(self, run: Callable[[], Any]) -> float:
        return best_seconds(run, _SECONDS)

    def _size(self, size: int) -> int:
        return max(16, int(size * self.scale) // 16 * 16)

    def _random(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        made = torch.randn(*shape, device=self.device, dtype=torch.float32)
        return made.to(dtype or self.main)

    def _matmul(self, name: str) -> None:
        n = self._size(1024)
        a, b = (self._random(n, n, dtype=getattr(torch, name)) for _ in range(2))
        out = torch.empty_like(a)
        self.flops[name] = 2 * n**3 / self._seconds(lambda: torch.mm(a, b, out=out))

    def _attention(self) -> None:
        length = self._size(512)
        width = 128 if self.cuda else 64  # of a head; a GPU's kernels reach half as much with 64
        inputs = [self._random(4, 8, length, width).requires_grad_() for _ in range(3)]
        query, key, value = inputs
        flops = 2.0 * 4 * 8 * length * length * width  # half of them are masked

        def run() -> torch.Tensor:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)

        forward, backward = self._both(run, inputs)
        self.rates["attention"] = flops / forward / self._rate()
        self.rates["attention backward"] = 2.5 * flops / backward / self._rate()

    def _batched_matmul(self) -> None:
        # The products of attention that is written out.
        length = self._size(256)
        a, b = self._random(32, length, 64), self._random(32, 64, length)
        seconds = self._seconds(lambda: torch.bmm(a, b)) + self._seconds(lambda: torch.bmm(b, a))
        flops = 2 * 2.0 * 32 * length * length * 64
        self.rates["batched matmul"] = flops / seconds / self._rate()

    def _convolution(self) -> None:
        last = torch.channels_last
        rates: list[tuple[float, float]] = []
        # One reaches twice as much as another: the mean rate of some common ones.
        for channels, out, kernel, size in _CONVOLUTIONS:
            extent = max(4, int(size * self.scale))
            image = self._random(8, channels, extent, extent).contiguous(memory_format=last)
            weight = self._random(out, channels, kernel, kernel).contiguous(memory_format=last)
            run = partial(functional.conv2d, image, weight, padding=kernel // 2)
            one, other = self._both(run, [image.requires_grad_(), weight.requires_grad_()])
            flops = 2.0 * 8 * out * channels * kernel**2 * extent**2 / self._rate()
            rates.append((flops / one, 2 * flops / other))
        forward, backward = zip(*rates, strict=True)
        self.rates["convolution"] = geometric_mean(forward)
        self.rates["convolution backward"] = geometric_mean(backward)

    def _rate(self) -> float:
        """Return a matmul's FLOP/s in the dtype that families are measured in."""
        return self.flops[str(self.main).removeprefix("torch.")]

    def _both(
        self, run: Callable[[], torch.Tensor], inputs: list[torch.Tensor]
    ) -> tuple[float, float]:
        """Return the seconds of a call and of its backward."""
        out = run()
        gradient = torch.randn_like(out)
        with torch.no_grad():
            forward = self._seconds(run)
        backward = self._seconds(
            lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)
        )
        return forward, backward

    def _bandwidth(self) -> None:
        # Of the size of activations, and by a kernel that Inductor writes: it computes as well.
        n = self._activations()
        a, b = (self._random(n, dtype=torch.float32) for _ in range(2))
        kernel = torch.compile(_activation, dynamic=False)
        with torch.no_grad():
            seconds = self._seconds(lambda: kernel(a, b))
        self.bandwidth = 3 * 4 * n / seconds

    def _function(self, name: str) -> None:
        """Measure what a function takes on top of a kernel that only reads and writes."""
        a = self._random(self._activations(), dtype=torch.float32)
        mask = a > 0
        plain, kernel = (torch.compile(f, dynamic=False) for f in (torch.neg, _FUNCTIONS[name]))
        with torch.no_grad():
            moving = self._seconds(lambda: plain(a))
            seconds = self._seconds(lambda: kernel(a, mask)) - moving
        if seconds > _NOTICED * moving:
            self.functions[name] = a.numel() / seconds

    def _activations(self) -> int:
        """Return how many numbers a tensor of the size of activations has."""
        return self._size(2**20 * (16 if self.cuda else 1))

    def _launch(self) -> None:
        a = self._random(16, dtype=torch.float32)
        out = torch.empty_like(a)
        self.launch = self._seconds(lambda: torch.add(a, a, out=out))

    def _link(self) -> None:
        n = 64 * 2**20
        host = torch.empty(n, dtype=torch.uint8, pin_memory=True)
        here = torch.empty(n, dtype=torch.uint8, device=self.device)
        self.link = n / self._seconds(lambda: here.copy_(host, non_blocking=True))
