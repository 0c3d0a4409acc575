"""The sole importer of torch's private names: what each is, since when, what to do when it moves.

Supported: torch 2.11 to 2.15. A name that moves fails here, at import, and nowhere else;
`tests/private_names.py` lists which release has which, and its test names the one that moved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.partitioners import (
    # Splits a joint graph at given saved values, with AOTAutograd's order of outputs. Since 2.0.
    _extract_fwd_bwd_modules as extract_fwd_bwd_modules,
)
from torch._functorch.partitioners import (  # type: ignore[attr-defined, unused-ignore]
    # Placeholder kinds by AOTAutograd's naming. Since 2.0.
    _is_bwd_seed_offset as is_bwd_seed_offset,
)
from torch._functorch.partitioners import (  # type: ignore[attr-defined, unused-ignore]
    _is_primal as is_primal,
)
from torch._functorch.partitioners import (  # type: ignore[attr-defined, unused-ignore]
    _is_tangent as is_tangent,
)
from torch._functorch.partitioners import (
    # Placement that AOTAutograd demands of mutations. Since 2.4.
    _must_be_in_backward as must_be_in_backward,
)
from torch._functorch.partitioners import (
    # Checkpoint tags, as the stock partitioner reads them. Since 2.1.
    cleanup_recompute_tags,
    # The partitioner for graphs that have nothing to plan (no backward). Since 2.0.
    default_partition,
    # Forced saves that the stock partitioner makes and a replacement owes. Since 2.6 / 2.9.
    force_save_bw_mutation_src,
    force_save_collectives,
    force_save_effectful_ops,
    has_recomputable_ops,
    must_recompute,
    # Passes the generator inputs of subgraphs on to the outer graphs. Since 2.10.
    thread_graphsafe_rng_from_hops,
)

# Common subexpression elimination on FX graphs, as the stock partitioner calls it. Since 2.0.
from torch._functorch.compile_utils import fx_graph_cse  # isort: skip

# Whether a backward runs (the id of its graph task, -1 outside of one; since 1.13), and whether a
# profiler is on in this thread (since 1.5).
from torch._C import _current_graph_task_id as current_graph_task_id  # isort: skip
from torch._C._autograd import _profiler_enabled as profiler_enabled  # isort: skip

# Dynamo's configuration, its errors by their base, the one for what it does not trace, and those of
# a backend that it passes on as they are. Since 2.0, 2.0, 2.0 and 2.7.
from torch._dynamo import config as dynamo_config  # isort: skip
from torch._dynamo.exc import ShortenTraceback, TorchDynamoException, Unsupported  # isort: skip

# The sizes that each function was traced with: those that change are symbols the next time. Since
# 2.6; planning puts them back as they were.
from torch._dynamo.pgo import get_code_state  # isort: skip

# Has Dynamo take a tensor's dimension for a symbol; it notes that in the tensor's attributes. Since
# 2.1.
from torch._dynamo import mark_dynamic  # isort: skip

# Tensors without data, and the mode that makes them. Since 2.0.
from torch._subclasses import FakeTensor, FakeTensorMode  # isort: skip

# Inductor behind Dynamo: from a graph to its code. Since 2.0.
from torch._inductor.compile_fx import compile_fx  # isort: skip

# Writes an entry of the structured trace (TORCH_TRACE) that tlparse reads. Since 2.3.
from torch._logging import (  # type: ignore[attr-defined, unused-ignore]  # isort: skip
    trace_structured,
)

# Configuration of AOTAutograd. Since 2.0.
from torch._functorch import config as functorch_config  # isort: skip

# What is known of the graph that is being compiled; `fw_metadata.bw_donated_idxs` (since 2.6) lists
# the saved tensors that its backward may overwrite.
from torch._guards import TracingContext  # isort: skip

# Inductor's configuration, and the base class of the partitioner hook (since 2.9; it is what
# config.custom_partitioner_fn asks for).
from torch._inductor import config as inductor_config  # isort: skip
from torch._inductor.custom_graph_pass import CustomPartitionerFn  # isort: skip

# Base class of a pass over Inductor's scheduler nodes that takes part in cache keys by its uuid.
# Since 2.13; before that any callable is taken, and cache keys hold the pass itself, pickled.
try:
    from torch._inductor.custom_graph_pass import CustomSchedulerPass  # isort: skip
except ImportError:  # torch 2.11 and 2.12
    CustomSchedulerPass = object  # type: ignore[assignment, misc]

# Inductor's heuristics object, with the fusion hooks can_fuse_vertical and can_fuse_horizontal
# (since 2.7), and the thread's virtualised globals that hold the one in force.
from torch._inductor.choices import InductorChoices  # isort: skip

# Whether Inductor turns a graph's convolutions to channels-last (a static method, since 2.1).
from torch._inductor.graph import GraphLowering  # isort: skip
from torch._inductor.virtualized import V  # isort: skip

# Size, strides, type and device of a buffer that no pass may change any more (since 2.0), and the
# base of calls into libraries, by whose ``require_channels_last`` a buffer gets that layout (2.0).
from torch._inductor.ir import ExternKernel, FixedLayout  # isort: skip

# A call that is left to eager, whose ``codegen`` writes it, and what stands for the layout of its
# results until each of them has its own (since 2.0).
from torch._inductor.ir import FallbackKernel, MultiOutputLayout  # isort: skip

# What a call asks of its arguments' layout before it is lowered: says it, and sets it. Since 2.6.
from torch._inductor.lowering import add_layout_constraint, maybe_layout_constraints  # isort: skip

# What Inductor makes of each op, and the ops of these that it leaves to eager (since 2.0).
from torch._inductor.lowering import fallbacks, lowerings  # isort: skip

# The line of generated code that allocates a buffer, or takes one that waits for its next use where
# ``should_reuse_buffer`` lets it (since 2.9).
from torch._inductor.codegen.wrapper import AllocateLine  # isort: skip

# A buffer that no kernel makes, such as what a concatenation's parts are written into (2.0).
from torch._inductor.scheduler import NopKernelSchedulerNode  # isort: skip

# One op as the scheduler sees it; ``recompute_size_and_body`` and ``mutation_renames`` are used by
# mending.py, which keeps the former from losing the latter before 2.14. To be dropped with 2.13.
from torch._inductor.scheduler import SchedulerNode  # isort: skip

# Kernels of the C++ backend in one outer loop (since 2.4); mending.py refuses those in which the
# rows of a vector would share one row's buffer. To be dropped when Inductor refuses them.
from torch._inductor.codegen.cpp import OuterLoopFusedSchedulerNode  # isort: skip

# What Inductor's own peak-memory pass computes of scheduled kernels: each buffer's size and
# readers, and from them the first and last kernel that need it. Since 2.11 or before.
from torch._inductor.memory import (  # isort: skip
    assign_memory_planning_info_for_scheduler_buffers as assign_memory_planning_info,
)
from torch._inductor.memory import compute_memory_timeline  # isort: skip

# Have Inductor lay a tensor out in the order of the given strides (since 2.0).
from torch._inductor.inductor_prims import force_stride_order  # isort: skip

# Random ops that carry their generator state, used by torch's own checkpointing. Since 2.1.
from torch._prims.rng_prims import run_and_save_rng_state, run_with_rng_state  # isort: skip

# Opaque objects in a graph (script objects and their like). Since 2.12, as is the extraction's
# argument for those that are saved; before that it finds them among the saved tensors.
try:
    from torch._functorch._aot_autograd.graph_compile import is_opaque_node  # isort: skip
except ImportError:  # torch 2.11
    # What a script object is while tracing. Needed here only, so it goes with 2.11.
    from torch._library.fake_class_registry import (  # isort: skip
        FakeScriptObject as _FakeScriptObject,
    )

    _extract = extract_fwd_bwd_modules

    def is_opaque_node(node: Any) -> bool:
        """Return whether a node holds an object that 2.11's extraction sorts from the tensors."""
        return isinstance(node, torch.fx.Node) and isinstance(
            node.meta.get("val"), _FakeScriptObject
        )

    def extract_fwd_bwd_modules(  # type: ignore[misc, unused-ignore]
        joint_module: torch.fx.GraphModule,
        saved_values: list[torch.fx.Node],
        *,
        saved_opaque_nodes: list[torch.fx.Node],
        **kwargs: Any,
    ) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
        """Call 2.11's extraction by the arguments of 2.12."""
        return _extract(joint_module, [*saved_values, *saved_opaque_nodes], **kwargs)


# The number that a symbolic size stands for while compiling. `optimization_hint` since 2.12;
# before that `size_hint` took the fallback for unbacked symbols.
try:
    from torch.fx.experimental.symbolic_shapes import optimization_hint  # isort: skip
except ImportError:  # torch 2.11
    from torch.fx.experimental.symbolic_shapes import (  # type: ignore[attr-defined, no-redef, unused-ignore]
        size_hint as optimization_hint,
    )

# The symbols in a value's sizes that only running can tell (since 2.1), and whether something holds
# of sizes whatever they turn out to be (since 2.2).
from torch.fx.experimental.symbolic_shapes import (  # isort: skip
    free_unbacked_symbols,
    statically_known_true,
)

# Symbolic ints, floats and bools. Since 2.1.
from torch.fx.experimental._backward_state import BackwardState  # isort: skip
from torch.fx.experimental.proxy_tensor import is_sym_node  # isort: skip

# FLOP formulas by op, and those of attention. Since 2.1.
from torch.utils.flop_counter import (  # isort: skip
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

# The module behind torch.compile's lazily recompiled graph modules. Since 2.2.
from torch.fx._lazy_graph_module import _make_graph_module as make_graph_module  # isort: skip

# Leaves fake tensors and what else is being traced, for a block that runs for real. Since 2.0.
from torch.utils._python_dispatch import (  # isort: skip
    _disable_current_modes as disable_current_modes,
)

# Nested containers of tensors, as functions on their leaves. Since 2.0.
from torch.utils import _pytree as pytree  # isort: skip

# A set that keeps insertion order; torch's own passes ask for it. Since 2.5.
from torch.utils._ordered_set import OrderedSet  # isort: skip

__all__ = [
    "AllocateLine",
    "BackwardState",
    "CustomPartitionerFn",
    "CustomSchedulerPass",
    "ExternKernel",
    "FakeTensor",
    "FakeTensorMode",
    "FallbackKernel",
    "FixedLayout",
    "GraphLowering",
    "InductorChoices",
    "MultiOutputLayout",
    "NopKernelSchedulerNode",
    "OrderedSet",
    "OuterLoopFusedSchedulerNode",
    "SchedulerNode",
    "ShortenTraceback",
    "TorchDynamoException",
    "TracingContext",
    "Unsupported",
    "V",
    "add_layout_constraint",
    "assign_memory_planning_info",
    "cleanup_recompute_tags",
    "compile_fx",
    "compute_memory_timeline",
    "current_graph_task_id",
    "default_partition",
    "disable_current_modes",
    "dynamo_config",
    "extract_fwd_bwd_modules",
    "fallbacks",
    "flop_registry",
    "force_save_bw_mutation_src",
    "force_save_collectives",
    "force_save_effectful_ops",
    "force_stride_order",
    "free_unbacked_symbols",
    "functorch_config",
    "fx_graph_cse",
    "get_code_state",
    "has_recomputable_ops",
    "inductor_config",
    "is_bwd_seed_offset",
    "is_opaque_node",
    "is_primal",
    "is_sym_node",
    "is_tangent",
    "lowerings",
    "make_graph_module",
    "mark_dynamic",
    "maybe_layout_constraints",
    "must_be_in_backward",
    "must_recompute",
    "optimization_hint",
    "profiler_enabled",
    "pytree",
    "run_and_save_rng_state",
    "run_with_rng_state",
    "sdpa_backward_flop_count",
    "sdpa_flop_count",
    "statically_known_true",
    "thread_graphsafe_rng_from_hops",
    "trace_structured",
]
