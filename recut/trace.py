"""From a model and its inputs to the joint graph that Inductor would get; nothing is run.

Dynamo, AOTAutograd and Inductor's joint-graph passes run as for ``ckpt_backend``, and the
partitioner that Inductor then calls takes the graph and ends the compilation. Tensors need no data:
a model or inputs on ``meta``, or fake ones, are taken as fake tensors on a CPU, where attention
stays one op.
"""

from __future__ import annotations

import copy
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from recut.errors import TraceError
from recut.passes import _torch

# Dimensions by position among the leaves of a call's inputs.
Dynamic = Mapping[int, Sequence[int]]

# What takes a joint graph and how many of its outputs the forward returns.
Taker = Callable[[fx.GraphModule, int], None]


@dataclass(frozen=True)
class Call:
    """A model and what it is called with."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the model is called."""
        model = getattr(self.model, "_orig_mod", self.model)  # what torch.compile has wrapped
        return type(model).__name__ if isinstance(model, nn.Module) else _name_of(model)

    def inputs(self) -> list[Any]:
        """Return the leaves of what the model is called with."""
        leaves: list[Any] = _torch.pytree.tree_leaves((self.args, self.kwargs))
        return leaves

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors of the model and of its inputs."""
        found = [x for x in self.inputs() if _is_tensor(x)]
        if isinstance(self.model, nn.Module):
            found += [*self.model.parameters(), *self.model.buffers()]
        return found


class _Taken(Exception):  # noqa: N818 - an answer, not a failure
    """Ends a compilation whose joint graph was taken."""


class _Over(_torch.ShortenTraceback):  # type: ignore[misc, unused-ignore]
    """The same for Dynamo, which passes this one on as it is."""


class _Take(_torch.CustomPartitionerFn):  # type: ignore[misc, name-defined, unused-ignore]
    """The partitioner that takes the graph, and partitions nothing."""

    def __init__(self, taker: Taker) -> None:
        self.taker = taker

    def __deepcopy__(self, _memo: object) -> _Take:
        """Return itself: torch copies its configuration now and then."""
        return self

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        """Hand the graph over; called by Inductor after its joint-graph passes."""
        self.taker(gm, kwargs["num_fwd_outputs"])
        raise _Taken

    def uuid(self) -> object:
        """Return an id; the caches are off, and nothing is ever stored."""
        return "recut takes the joint graph"


def joint_graph(call: Call, taker: Taker, dynamic: Dynamic | None = None) -> None:
    """Trace a model and hand its joint graph to ``taker``, who may read it but not keep it.

    Left as they were: the model, its gradients, the random state, what Dynamo has compiled, and the
    sizes by which it tells what is dynamic.

    Args:
        call: the model and its inputs.
        taker: called once with the joint graph.
        dynamic: the dimensions of inputs whose sizes are to be symbols.

    Raises:
        TraceError: the model has no training graph, or is not one graph, or fails while traced.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise TraceError(call.name, "TORCHDYNAMO_DISABLE=1 is set", "unset it to trace a model")
    if not torch.cuda.is_available() and any(t.is_cuda for t in call.tensors()):
        # Autograd asks for the device's context even where all tensors are fake.
        raise TraceError(
            call.name,
            "it lies on a GPU, and this machine has none",
            "make it without a device: nothing runs, and the machine's description says what it is "
            "planned for",
        )
    call = _without_data(call)
    taken = False
    failed: list[Exception] = []

    def take(joint: fx.GraphModule, outputs: int) -> None:
        nonlocal taken
        taken = True
        try:
            taker(joint, outputs)
        except Exception as error:  # Dynamo would tell of a backend that has failed
            failed.append(error)

    def end(*_: Any, **__: Any) -> Any:
        raise _Taken  # a graph for inference: Inductor would generate its code

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        patches = {"custom_partitioner_fn": _Take(take)}
        try:
            _torch.compile_fx(gm, list(inputs), inner_compile=end, config_patches=patches)
        except _Taken:
            raise _Over(first_useful_frame=None) from None
        raise AssertionError("Inductor's joint-graph passes end with the partitioner")

    with _undisturbed(), _marked(call, dynamic or {}):
        compiled = torch.compile(call.model, backend=backend, fullgraph=True)
        try:
            compiled(*call.args, **call.kwargs)
        except _Over:
            pass
        except _torch.TorchDynamoException as error:
            raise _told(call.name, error) from error
    if failed:
        raise failed[0]
    if not taken:
        raise TraceError(
            call.name,
            "it has no training graph: nothing that it computes needs a gradient",
            "let parameters or inputs require gradients (model.train() does not do so)",
        )


# What is put aside while tracing is the process's, and torch traces one graph at a time anyway.
# A factory or a model may plan inside of its own tracing, in the same thread.
_alone = threading.RLock()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Trace as if nothing had been traced before, and leave nothing behind; one thread at a time.

    Other threads may compile meanwhile, by ``torch.compile``: that is torch's own affair, and a
    compilation that runs now finds its caches off, and what it learns of sizes is forgotten.
    """
    with _alone, _put_aside():
        yield


@contextmanager
def _put_aside() -> Iterator[None]:
    known = _torch.get_code_state()
    before = dict(known)
    known.clear()
    try:
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            torch.compiler.set_stance("default"),
            _torch.dynamo_config.patch(
                disable=False, recompile_limit=2**20, accumulated_recompile_limit=2**20
            ),
            _torch.functorch_config.patch(enable_autograd_cache=False),
            _torch.inductor_config.patch(fx_graph_cache=False),
        ):
            yield
    finally:
        known.clear()
        known.update(before)


@contextmanager
def _marked(call: Call, dynamic: Dynamic) -> Iterator[None]:
    """Mark dimensions as dynamic for Dynamo, which keeps that in the tensors' own attributes."""
    leaves = call.inputs()
    before = {leaf: dict(leaves[leaf].__dict__) for leaf in dynamic}
    try:
        for leaf, dims in dynamic.items():
            _torch.mark_dynamic(leaves[leaf], list(dims))
        yield
    finally:
        for leaf, attributes in before.items():
            leaves[leaf].__dict__.clear()
            leaves[leaf].__dict__.update(attributes)


def _told(name: str, error: Exception) -> TraceError:
    """Return an error of Dynamo's as one of ours, with the place that it names."""
    text = str(error)
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    users = [place for place in places if "site-packages" not in place[0]] or places
    place = f" at {users[-1][0].rsplit('/', 1)[-1]}:{users[-1][1]}" if users else ""
    own = re.search(r"(?:: got |raised exception )(\w+\(.*\))", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Of a backend that failed the first line says no more than that.
    reasons = [line for line in lines if not line.endswith("raised:")] or lines
    first = next(iter(reasons), "no reason given")
    if own is None and isinstance(error, _torch.Unsupported):
        return TraceError(
            name,
            f"the graph breaks{place}: {first}",
            "a plan is of one graph: plan its parts, or change that line; "
            "torch.compile(fullgraph=True) tells more",
        )
    said = own.group(1) if own else first
    return TraceError(name, f"tracing it failed{place}: {said}", "does it run in eager mode?")


def _name_of(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _is_meta(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "meta"  # a fake tensor's own property is of its data


def _without_data(call: Call) -> Call:
    """Return a call of fake tensors if any of its tensors has no data, and the call itself else.

    The model is then a copy that shares everything but its tensors.
    """
    found = call.tensors()
    modes = [t.fake_mode for t in found if isinstance(t, _torch.FakeTensor)]
    if not modes and not any(map(_is_meta, found)):
        return call
    mode = modes[0] if modes else _torch.FakeTensorMode()

    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        ours = isinstance(tensor, _torch.FakeTensor) and tensor.fake_mode is mode
        if ours and not _is_meta(tensor):
            return tensor
        if id(tensor) not in made:
            made[id(tensor)] = _fake(tensor, mode)
        return made[id(tensor)]

    args, kwargs = _torch.pytree.tree_map_only(torch.Tensor, fake, (call.args, dict(call.kwargs)))
    model = call.model
    if isinstance(model, nn.Module):
        memo = {id(t): fake(t) for t in (*model.parameters(), *model.buffers())}
        if any(id(t) != known for known, t in memo.items()):
            model = copy.deepcopy(model, {**memo})
    return Call(model, args, kwargs)


def _fake(tensor: torch.Tensor, mode: Any) -> torch.Tensor:
    """Return a fake tensor like ``tensor``; on a CPU where that is on ``meta``."""
    device = "cpu" if _is_meta(tensor) else tensor.device
    with mode:
        new = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(new, requires_grad=tensor.requires_grad)
        return new.requires_grad_(tensor.requires_grad)
