"""What library calls allocate for themselves while they run, which no node of a graph shows.

The formulas are of libraries on a CPU: oneDNN's layouts and scratchpads, and the threads of flash
attention. Each was held against the allocator (``tests/test_odd_nets.py``); where they err, it is
upwards. Other calls that are left to eager are run once to see, and so is each distinct call of a
library on a GPU; without the GPU only flash attention's own sums are known, by its source.
"""

from __future__ import annotations

import math
import re
from functools import cache, partial
from typing import Any

import torch
from torch import fx

from recut.passes import _torch
from recut.passes.bodies import bodies, held
from recut.passes.costs import OWN_FLOPS, hint, nbytes, packet, tensors
from recut.passes.measured import extra_bytes, is_measurable, signature
from recut.passes.rules import is_random

aten = torch.ops.aten

# Where the left operand stands among a matmul's arguments.
_MATMULS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}

# Flash attention's backward; a graph that is traced on a CPU for a GPU has the CPU's.
_FLASH_BACKWARDS = {
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}

# What oneDNN takes beside copies: at most 22 KiB were measured of narrow convolutions.
_SCRATCHPAD = 32 * 1024
# Channels in a block of oneDNN's layouts: as many as a vector register holds single numbers.
_WIDE = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
_BLOCK = 16 if _WIDE else 8
_HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# A scalar or two that are alive beside a convolution in a step, and not in a run of it alone.
_SPARE = 64
# What calls were seen to allocate, by signature and number of threads.
_allocated: dict[tuple[str, int], int | None] = {}


@cache
def _is_onednn(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes with a dtype on this processor.

    Half precision it does with the instructions for it (AVX-512); torch's own kernels do otherwise.
    """
    if dtype not in _HALF:
        return dtype is torch.float32
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{_HALF[dtype]}_supported", None)
    return supported is not None and bool(supported())


def workspace_of(node: fx.Node, channels_last: bool, device: str) -> int:
    """Return the bytes that a node's library call allocates while it runs, beside its outputs.

    Attention on a CPU has blocks of scores for each thread, and a convolution there copies of what
    it reads. Eager's random ops make a mask or a number for each element. A condition or a loop
    allocates what the largest of its bodies holds.

    Args:
        node: a node of the joint graph.
        channels_last: Inductor turns the graph's convolutions of images to channels-last.
        device: type of the device that the node will run on, whatever its tensors are on now.
    """
    if inside := bodies(node):
        within = partial(workspace_of, channels_last=channels_last, device=device)
        return max(held(b, within) for b in inside)
    known = _of_cpu(node, channels_last) if device == "cpu" else _of_gpu(node, channels_last)
    if known is not None:
        return known
    return sum(map(nbytes, tensors(node.meta.get("val")))) if is_random(node) else 0


def _of_cpu(node: fx.Node, channels_last: bool) -> int | None:
    """Return what a library on a CPU allocates for a node; None where it is none of a library's."""
    op = packet(node)
    if op in OWN_FLOPS:
        return _attention_workspace(node)
    if op in _MATMULS:
        return _matmul_workspace(node, _MATMULS[op])
    if op in (aten.convolution, aten.convolution_backward):
        return _convolution_workspace(node, channels_last)
    return _seen(node, channels_last=False) if _runs_to_see(node) else None


def _runs_to_see(node: fx.Node) -> bool:
    """Return whether a call is left to eager and may be run on made-up data.

    Decompositions of matrices, sorting, selection: some take nothing, others several times what
    they return. Indices that are made up could point anywhere, so calls that read any are left.
    """
    op = node.target
    if is_random(node) or getattr(op, "namespace", "") != "aten":
        return False
    # Inductor's sort is for GPUs.
    sorts = packet(node) is aten.sort
    if not sorts and op in _torch.lowerings and op not in _torch.fallbacks:
        return False
    read = [t for n in node.all_input_nodes for t in tensors(n.meta.get("val"))]
    numbers = all(t.is_floating_point() or t.is_complex() for t in read)
    return (numbers or sorts) and is_measurable(node, inductor=True)


# Libraries' calls on a GPU: they take any numbers, and each allocates as it sees fit.
_LIBRARY = re.compile(r"mm|bmm|addmm|baddbmm|convolution|_scaled_dot_product_\w+_attention")


def _of_gpu(node: fx.Node, channels_last: bool) -> int | None:
    """Return the same of a GPU, as far as it is known."""
    name = getattr(packet(node), "__name__", "").removesuffix("_backward")
    on_gpu = all(t.is_cuda for t in tensors(node.meta.get("val")))
    runs = _LIBRARY.fullmatch(name) and on_gpu and torch.cuda.is_available()
    if runs and (found := _seen(node, channels_last)) is not None:
        return found
    if packet(node) in _FLASH_BACKWARDS:
        return _flash_backward_workspace(*(_value(a) for a in node.args[1:3]))
    return None


def _seen(node: fx.Node, channels_last: bool) -> int | None:
    """Return what a call allocates beside its results, as one run of it shows; None if none can."""
    key = (signature(node, channels_last), torch.get_num_threads())
    if key not in _allocated:
        on_gpu = any(t.is_cuda for t in tensors(node.meta.get("val")))
        if not on_gpu and _torch.profiler_enabled():  # the user's: there is one at a time
            return None
        _allocated[key] = extra_bytes(node, channels_last)
    return _allocated[key]


def _matmul_workspace(node: fx.Node, first: int) -> int:
    """Return what oneDNN's matmuls of half precision take for each thread, at most.

    Blocks of the operands in the processor's tiles, of a transposed left operand copies on top, and
    partial sums where the dimension that is summed over is long. Single precision takes none.
    """
    left, right = (_value(a) for a in node.args[first : first + 2])
    if left.dtype not in _HALF or not _is_onednn(left.dtype):
        return 0
    rows, inner, columns = (hint(s) for s in (*left.shape[-2:], right.shape[-1]))
    operands = 2 * (rows + columns) * inner + 4 * rows * columns
    each = 16 * 1024 + min(operands, 184 * 1024)
    if left.stride(-1) != 1:
        each += int(2.5 * min(rows, 512) * min(inner, 1024))
    if inner > 2048:
        each += min(4 * rows * columns, 3 * 2**19)
    return torch.get_num_threads() * each


def _convolution_workspace(node: fx.Node, channels_last: bool) -> int:
    """Return what a convolution on a CPU allocates beside its outputs.

    It is run to see: which of oneDNN's kernels answers, and what that copies, depends on shapes,
    strides and the processor.
    """
    found = _seen(node, channels_last)
    if found is None:
        return _convolution_copies(node, channels_last)
    # Made-up images lie densely where they are turned.
    return found + _SPARE + sum(nbytes(t) for t in _images(node) if channels_last and _is_part(t))


def _images(node: fx.Node) -> list[torch.Tensor]:
    """Return the images that a convolution reads."""
    count = 2 if packet(node) is aten.convolution_backward else 1
    return [_value(a) for a in node.args[:count]]


def _convolution_copies(node: fx.Node, channels_last: bool) -> int:
    """Return what a convolution copies, by what was measured of oneDNN (docs/design.md).

    Contiguous images go into a layout of channels in blocks: the forward copies the larger of input
    and output, the backward the gradient of the output and the input. Channels-last images need no
    copy, unless they are some channels of a larger one (the gradient of a concatenation); weights
    do. Where oneDNN does not compute (doubles), every patch is copied into a column.
    """
    backward = packet(node) is aten.convolution_backward
    given = [_value(a) for a in node.args]
    weight, groups = given[1 + backward], hint(given[8 + backward])
    images = _images(node)
    if not backward:
        images = [*images, *tensors(node.meta.get("val"))]
    kernel = weight.shape[2:]
    if not _is_onednn(weight.dtype):
        return _columns(images, weight, groups)
    plain, padded = nbytes(weight), _blocked_weight(weight, groups)
    if groups > 1 and weight.shape[1] == 1:  # depthwise: kernels of their own
        if not backward or max(map(hint, kernel)) <= 3:
            padded = plain
        elif not channels_last and not any(map(_is_channels_last, (*images, weight))):
            # Backwards, large windows have one for contiguous images, which sums by threads.
            padded = 5 * _blocked_bytes(weight.transpose(0, 1))
    if channels_last and weight.dim() == 4:
        narrow = padded > plain  # channels that do not fill a block are padded there
        weights = plain + padded + (_SCRATCHPAD if backward or narrow or not _WIDE else 0)
        if weight.dtype is torch.float32:
            return weights + sum(nbytes(t) for t in images if _is_part(t))
        # Sums over images of half precision are kept in single precision.
        return weights + (sum(map(nbytes, images)) if backward else _SCRATCHPAD)
    copied = [_blocked_bytes(t) for t in images]
    if not backward:
        return max(copied) + padded
    half = 0 if weight.dtype is torch.float32 else sum(map(nbytes, images))
    return sum(copied) + plain + padded + half + _SCRATCHPAD


def _is_part(t: torch.Tensor) -> bool:
    """Return whether a tensor's images lie farther apart than their size: it is a slice."""
    return hint(t.stride(0)) > math.prod(map(hint, t.shape[1:]))


def _columns(images: list[torch.Tensor], weight: torch.Tensor, groups: int) -> int:
    """Return the bytes of all patches of an image, and of each group's result before it is joined.

    ``weight`` has for each channel of one image a window over some channels of the other one.
    """
    windows = next((t for t in images if t.shape[1] == weight.shape[0]), images[0])
    places = nbytes(windows) // max(hint(windows.shape[1]), 1)
    patches = places * (nbytes(weight[0]) // weight.dtype.itemsize)
    return patches + (max(map(nbytes, images)) if groups > 1 else 0)


def _blocked_weight(weight: torch.Tensor, groups: int) -> int:
    """Return the bytes of a weight whose channels are in blocks, group by group."""
    rows, columns = hint(weight.shape[0]), hint(weight.shape[1])
    each = _round_up(rows // groups) * _round_up(columns)
    return nbytes(weight) // max(rows * columns, 1) * groups * each


def _round_up(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK


def _attention_workspace(node: fx.Node) -> int:
    """Return what flash attention takes on a CPU (aten/native/cpu/FlashAttentionKernel.cpp).

    Blocks for each thread, and backwards a copy of the result's gradient where that does not lie
    row by row with the heads beside each other.
    """
    backward = packet(node) is aten._scaled_dot_product_flash_attention_for_cpu_backward
    query, key = (_value(a) for a in node.args[backward : backward + 2])
    length = hint(query.shape[-2])
    rows = min(length, 256 if length >= 768 else 64 if length >= 192 else 32)
    scores = rows * min(hint(key.shape[-2]), 512)
    each = 2 * scores + rows if backward else scores + rows * (2 + hint(query.shape[-1]))
    blocks = int(torch.get_num_threads() * each * max(query.dtype.itemsize, 4))
    gradient = _value(node.args[0])
    copied = backward and not _is_dense(gradient, (0, 2, 1, 3))
    return blocks + (nbytes(gradient) if copied else 0)


def _is_dense(t: torch.Tensor, dims: tuple[int, ...]) -> bool:
    """Return whether a tensor lies contiguous with its dimensions in some order, by its hints."""
    expected = 1
    for size, stride in ((hint(t.shape[d]), hint(t.stride(d))) for d in reversed(dims)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _flash_backward_workspace(query: torch.Tensor, key: torch.Tensor) -> int:
    """Return what a GPU's flash attention takes backwards, by its source; not measured.

    Sums in single precision of the query's gradient and of one number for each of its rows, and,
    where several heads share a key, their gradients before they are added up
    (aten/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd).
    """
    batch, heads, length, width = map(hint, query.shape)
    rows = batch * heads * -(-length // 128) * 128
    shared = hint(key.shape[1]) != heads
    expanded = 2 * batch * heads * hint(key.shape[2]) * width * key.dtype.itemsize if shared else 0
    return 4 * rows * (-(-width // 32) * 32 + 1) + expanded


def _value(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, fx.Node) else argument


def _is_channels_last(t: torch.Tensor) -> bool:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim())
    if last is None or t.is_contiguous():
        return False
    return hint(t.shape[1]) > 1 and t.is_contiguous(memory_format=last)


def _blocked_bytes(t: torch.Tensor) -> int:
    """Return the bytes of a contiguous image's copy in a layout with channels in blocks."""
    channels = hint(t.shape[1])
    if _is_channels_last(t):
        return 0
    return nbytes(t) // max(channels, 1) * _round_up(channels)
