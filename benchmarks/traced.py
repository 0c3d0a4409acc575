"""A module traced once, and planned and run op by op at several budgets.

Tracing is most of what a small program costs. AOTAutograd partitions a copy of its joint graph for
each budget, so mutated inputs, views and the generator are dealt with as in any compilation.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import (
    aot_compile_joint_with_descriptors,
    aot_export_joint_with_descriptors,
)
from torch.func import functional_call
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import recut
from benchmarks.outcomes import generator_states

# The fastest plan, the floor, and the bytes halfway between: a fraction of a small program's peak
# mostly lies under its floor.
FASTEST, BETWEEN, FLOOR = "1.0", "between", "0.01"
BUDGETS = (FASTEST, BETWEEN, FLOOR)


class Held(TorchDispatchMode):
    """Counts the bytes of what ops return, from the op that makes a storage until it is freed.

    As plans count it, without what a kernel allocates and frees within itself and without the
    generator's states (5 KB each on a CPU) that draws are replayed from.
    """

    supports_higher_order_operators = True  # draws that are replayed are wrapped in one

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._states = {state.shape for state in generator_states()}
        self._own: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: dict[int, StorageWeakRef] = {}

    def run(self, call: Callable[[Any], Any], inputs: list[Any], backward: bool) -> Any:
        """Call a graph; what its inputs hold is counted only if the step's forward has made it."""
        if not backward:
            self._own = {}  # the gradients of the step before are not of this one
        given = [StorageWeakRef(x.untyped_storage()) for x in inputs if isinstance(x, Tensor)]
        self._given = {ref.cdata: ref for ref in given}
        with self:
            return call(inputs)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op, and count what is alive when it has run."""
        out = func(*args, **(kwargs or {}))
        self._own = {k: (ref, n) for k, (ref, n) in self._own.items() if not ref.expired()}
        for tensor in _tensors(out):
            if tensor.dtype == torch.uint8 and tensor.shape in self._states:
                continue
            storage = tensor.untyped_storage()
            ref = StorageWeakRef(storage)
            if ref.cdata not in self._given:
                self._own.setdefault(ref.cdata, (ref, storage.nbytes()))
        self.peak = max(self.peak, sum(n for _, n in self._own.values()))
        return out


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (list, tuple)):
        for one in out:
            yield from _tensors(one)


@dataclass(frozen=True)
class Planned:
    """One budget's code: how to call it, and what was planned."""

    call: Callable[..., Any]
    report: recut.GraphReport


class Traced:
    """A module traced at its first call; :attr:`budget` says whose code the next calls run.

    Args:
        module: the module.
        dynamo: trace with Dynamo in front, as ``torch.compile`` does; by AOTAutograd alone else.
        dynamic: with Dynamo, let it take sizes as symbols.
    """

    def __init__(self, module: nn.Module, dynamo: bool = True, dynamic: bool = False) -> None:
        self.budget = FASTEST
        self.held: Held | None = None
        self._planned: Mapping[str, Planned] = {}
        self._call: Callable[..., Any] | None = None
        if dynamo:
            self._call = torch.compile(
                module, backend=self._backend, fullgraph=True, dynamic=dynamic
            )
        else:
            self._lifted = _Lifted(module)

    @property
    def reports(self) -> dict[str, recut.GraphReport]:
        """What was planned, by budget."""
        return {budget: planned.report for budget, planned in self._planned.items()}

    def __call__(self, *inputs: Tensor) -> Any:
        """Call the module under :attr:`budget`."""
        if self._call is None:
            self._call = self._lifted.bound(self._backend)
        return self._call(*inputs)

    def measured(self, run: Callable[[], object]) -> int:
        """Return the most bytes that the graphs of one step hold beyond what they are given."""
        self.held = Held()
        try:
            run()
            return self.held.peak
        finally:
            self.held = None

    def _backend(self, gm: nn.Module, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Trace the joint graph and plan it at each budget."""
        found: dict[str, Planned] = {}
        # Graphs are interpreted: nobody needs the code of most of them.
        with ExitStack() as stack, _use_lazy_graph_module(True):
            joint = aot_export_joint_with_descriptors(stack, gm, tuple(inputs))
            for budget in (FASTEST, FLOOR, BETWEEN):
                asked = budget
                if budget == BETWEEN:
                    ends = [found[b].report.peak for b in (FASTEST, FLOOR)]
                    asked = f"{sum(ends) // 2}B"
                with _asking(asked):
                    call = aot_compile_joint_with_descriptors(
                        _copied(joint),
                        partition_fn=recut.partition,
                        fw_compiler=partial(self._kept, False),
                        bw_compiler=partial(self._kept, True),
                    )
                found[budget] = Planned(call, recut.reports()[-1])
        self._planned = found
        return self._chosen

    def _chosen(self, *args: Any) -> Any:
        return self._planned[self.budget].call(*args)

    def _kept(
        self, backward: bool, gm: fx.GraphModule, _inputs: Sequence[Any]
    ) -> Callable[[list[Any]], Any]:
        def boxed(inputs: list[Any]) -> Any:
            # It lets go of each input behind its last reader, but keeps what it returns: so a new
            # one for each call.
            return fx.Interpreter(gm).boxed_run(inputs)

        def call(inputs: list[Any]) -> Any:
            return boxed(inputs) if self.held is None else self.held.run(boxed, inputs, backward)

        call._boxed_call = True  # type: ignore[attr-defined]
        return call


class _Lifted(nn.Module):
    """A module as a function of its parameters and buffers; tied ones are one input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.lift = (module,)  # in a tuple, so that its parameters are not this module's

    def forward(self, state: dict[str, Tensor], *inputs: Tensor) -> Any:
        return functional_call(self.lift[0], state, inputs)

    def bound(self, compile_: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
        """Return the compiled module, which takes the inputs only."""
        module = self.lift[0]
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        compiled: Callable[..., Any] | None = None

        def call(*inputs: Tensor) -> Any:
            nonlocal compiled
            if compiled is None:
                compiled = compile_(self, (state, *inputs))
            return compiled(state, *inputs)

        return call


def _copied(joint: Any) -> Any:
    """Return a traced graph that one compilation may change."""
    state, capture = joint._aot_state, joint._aot_graph_capture
    metadata = copy.copy(state.fw_metadata)
    for name, value in vars(metadata).items():
        if isinstance(value, (dict, list, set)):  # what is saved, among others, is written there
            setattr(metadata, name, copy.copy(value))
    # The wrappers keep what they learn of the inputs, which is the same for each budget.
    return replace(
        joint,
        _aot_state=replace(state, fw_metadata=metadata),
        _aot_graph_capture=replace(
            capture,
            graph_module=copy.deepcopy(capture.graph_module),
            wrappers=list(capture.wrappers),
        ),
    )


@contextmanager
def _asking(budget: str) -> Iterator[None]:
    """Ask :func:`recut.partition` for a budget, and let the floor and other graphs pass."""
    with mock.patch.dict(os.environ, RECUT_MEMORY_BUDGET=budget), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(floor|each compiled graph by itself)")
        # torch's own objects, when a graph is copied.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield
