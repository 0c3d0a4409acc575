"""Keep Inductor within the plan's order: what may fuse, and in which order kernels run.

Inductor fuses kernels that share data however far apart they stand. A kernel that is pulled forward
makes its outputs before the plan does; one that is pushed back keeps its inputs. So two nodes are
kept apart where an op that does not fuse (a matmul, a convolution) stands between them in the
plan's order. After fusion Inductor sorts kernels by their first member, which pulls everything that
a later member needs forward; they are put back into the plan's order, by their last member.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from recut.passes import _torch
from recut.passes.buffers import buffer_lives, grouped, lives_of
from recut.passes.donation import copy_where_kept, donated
from recut.passes.mending import mend_inductor
from recut.passes.pool import open_pool
from recut.passes.scheduled import Expectation, Observation, held_by, observe
from recut.passes.summing import sum_in_place

_META = "recut.planned"
_KEY = ("recut planned order", 8)
_POST_FUSION = "_post_fusion_custom_pass"


class PlannedOrderChoices(_torch.InductorChoices):  # type: ignore[misc, unused-ignore]
    """Inductor's heuristics, less the fusions that would undo a plan."""

    def __init__(self) -> None:
        super().__init__()
        self._barriers: dict[int, list[int]] = {}

    def uuid(self) -> object:
        """Return what changes the generated code."""
        return _KEY

    def can_fuse_vertical(  # type: ignore[override, unused-ignore]
        self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int
    ) -> bool:
        """Allow a producer and its consumer in one kernel where no barrier stands between them."""
        return super().can_fuse_vertical(
            scheduler, node1, node2, shared_data_score
        ) and not self._apart(scheduler, node1, node2)

    def can_fuse_horizontal(  # type: ignore[override, unused-ignore]
        self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int
    ) -> bool:
        """Allow two readers in one kernel where no barrier stands between them."""
        return super().can_fuse_horizontal(
            scheduler, node1, node2, shared_data_score
        ) and not self._apart(scheduler, node1, node2)

    def _apart(self, scheduler: Any, node1: Any, node2: Any) -> bool:
        barriers = self._barriers_of(scheduler)
        first = min(node1.min_order, node2.min_order)
        last = max(node1.max_order, node2.max_order)
        k = bisect_left(barriers, first)
        return k < len(barriers) and barriers[k] <= last

    def _barriers_of(self, scheduler: Any) -> list[int]:
        """Return the places of the nodes that do not fuse, before any fusion."""
        key = id(scheduler)
        if key not in self._barriers:
            nodes = (n for top in scheduler.nodes for n in top.get_nodes())
            self._barriers[key] = sorted(n.min_order for n in nodes if n.is_extern())
        return self._barriers[key]


def planned_order(nodes: Sequence[Any]) -> list[Any]:
    """Return scheduler nodes in dataflow order, each as near to its last member's place as it can.

    Args:
        nodes: Inductor's scheduler nodes after fusion.
    """
    maker = {name: k for k, n in enumerate(nodes) for name in n.get_buffer_names()}
    waiting = [0] * len(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for k, n in enumerate(nodes):
        needs = {maker[d.name] for d in n.unmet_dependencies if d.name in maker} - {k}
        waiting[k] = len(needs)
        for m in sorted(needs):
            readers[m].append(k)
    ready = [(n.max_order, k) for k, n in enumerate(nodes) if not waiting[k]]
    heapq.heapify(ready)
    out: list[Any] = []
    while ready:
        _, k = heapq.heappop(ready)
        out.append(nodes[k])
        for r in readers[k]:
            waiting[r] -= 1
            if not waiting[r]:
                heapq.heappush(ready, (nodes[r].max_order, r))
    assert len(out) == len(nodes), "Inductor's scheduler nodes form a cycle"
    return out


def run_apart(nodes: Sequence[Any], ends: Callable[[Any], bool] = lambda _: True) -> None:
    """Have each kernel on a CPU called by itself, or with those before it.

    Inductor's C++ backend joins all kernels between two library calls into one function, which
    allocates every output before and frees every input after it. A call of its own costs
    microseconds.

    Args:
        nodes: Inductor's scheduler nodes.
        ends: whether a function ends with a node.
    """
    devices = {n.get_device() for n in nodes} - {None}
    for device in devices:
        if device.type == "cpu":
            scheduler = nodes[0].scheduler
            backend = scheduler.get_backend(device)
            backend.ready_to_flush = partial(_ready, scheduler, backend, ends)


def _ready(scheduler: Any, backend: Any, ends: Callable[[Any], bool]) -> bool:
    """Return whether a function ends here, or has as many arguments as Inductor allows it."""
    return ends(scheduler.current_node) or type(backend).ready_to_flush(backend)


Listener = Callable[[Observation], None]
Built = Callable[[str, bool, Any], None]


def planned() -> bool:
    """Return whether the graph that Inductor is compiling follows a plan."""
    return isinstance(_torch.V.choices, PlannedOrderChoices)


class PlannedOrder(_torch.CustomSchedulerPass):  # type: ignore[misc, unused-ignore]
    """The pass behind fusion that puts kernels back into the plan's order.

    Args:
        before: a pass of the user's that runs first.
        promised: what the plan counts for the graph.
        listener: told what the kernels hold once their code is generated.
        donated: names of inputs that kernels may write over.
    """

    def __init__(
        self,
        before: Any = None,
        promised: Expectation | None = None,
        listener: Listener | None = None,
        donated: Collection[str] = (),
    ) -> None:
        self.before = before
        self.promised = promised
        self.listener = listener
        self.donated = donated

    def __call__(self, nodes: list[Any]) -> list[Any]:
        """Return ``nodes`` in the plan's order."""
        if self.before is not None:
            nodes = self.before(nodes)
        if not planned():
            return nodes
        # A subgraph (of a condition or a loop) has kernels and a scheduler of its own.
        if self.promised is not None and not hasattr(_torch.V.graph, "parent"):
            self._watch(nodes, self.promised)
        run_apart(nodes)
        sum_in_place(nodes)
        return planned_order(nodes)

    def uuid(self) -> object:
        """Return what changes the generated code, or may refuse it."""
        before = None if self.before is None else self.before.uuid()
        limit = None if self.promised is None else (self.promised.limit, self.promised.held)
        # Of what is donated torch's own key says nothing.
        return (*_KEY, before, limit, *sorted(self.donated))

    def _watch(self, nodes: Sequence[Any], promised: Expectation) -> None:
        """Have the listener told when the scheduler has generated its code."""
        if not nodes or self.listener is None:
            return
        scheduler, listener = nodes[0].scheduler, self.listener
        generate = scheduler.codegen

        def generate_and_observe() -> None:
            lives = lives_of(scheduler)
            found = buffer_lives(scheduler, lives, promised.inputs)
            groups = grouped(scheduler.nodes, found, promised.held, promised.room)
            run_apart(scheduler.nodes, groups.ends)
            generate()
            copy_where_kept(self.donated)
            held = held_by(scheduler, lives, promised, groups)
            room = min(held.peak, promised.room)
            open_pool(held.found, groups, held.together, room)
            listener(observe(held, promised))

        scheduler.codegen = generate_and_observe


def inductor_patches(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Inductor options that planned graphs need.

    Args:
        given: the user's own options; a pass behind fusion among them runs before ours.
    """
    return {_POST_FUSION: PlannedOrder(given.get(_POST_FUSION))}


def promise(module: Any, expectation: Expectation) -> None:
    """Note on a graph module that its order is a plan's, and what the plan counts."""
    module.meta[_META] = expectation


def call_through(code: Any, around: Callable[[Callable[[Any], Any], Any], Any]) -> None:
    """Have every call of compiled code made by ``around(call, inputs)``.

    Args:
        code: what Inductor compiled of a planned graph.
        around: gets the code's own function and its list of inputs, and returns what that returns.
            It must not keep the inputs: the code empties the list to free them early.
    """
    code.current_callable = partial(around, code.current_callable)


def wrap_inner_compile(
    inner: Callable[..., Any], listener: Listener, built: Built
) -> Callable[..., Any]:
    """Return Inductor's inner compiler that keeps planned graphs to their order.

    Args:
        inner: ``compile_fx_inner``.
        listener: told what the kernels of each planned graph hold; what it raises ends the
            compilation before any compiler has run on the graph's kernels.
        built: given the digest of each planned graph, whether it is the backward, and its code.
    """
    planned_patches: dict[str, Any] = {
        # The plan's order is the order, and Inductor's estimate counts what stays inside a kernel.
        "reorder_for_peak_memory": False,
        # For CUDA graphs it moves what runs on a CPU to either end: recomputation to the front.
        "triton.reorder_for_reducing_graph_partitions": False,
    }

    mend_inductor(planned)

    def compile_in_order(gm: Any, example_inputs: Any, **kwargs: Any) -> Any:
        promised = getattr(gm, "meta", {}).get(_META)
        if promised is None:
            return inner(gm, example_inputs, **kwargs)
        is_backward = bool(kwargs.get("is_backward"))
        before = getattr(getattr(_torch.inductor_config, _POST_FUSION), "before", None)
        patches = dict(planned_patches)
        if promised.channels_last:
            # Left alone, a backward that recomputes no convolution lays images out by weights: for
            # a depthwise one that is a layout that no library has kernels for.
            patches["force_layout_optimization"] = True
        with (
            donated(gm) if is_backward else nullcontext(frozenset[str]()) as given,
            _torch.V.set_choices_handler(PlannedOrderChoices()),
            _torch.inductor_config.patch(
                {**patches, _POST_FUSION: PlannedOrder(before, promised, listener, given)}
            ),
        ):
            code = inner(gm, example_inputs, **kwargs)
        # A graph without a single call is returned as a plain function.
        if hasattr(code, "current_callable"):
            built(promised.digest, is_backward, code)
        return code

    return compile_in_order
