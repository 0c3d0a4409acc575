"""The private names of torch that recut uses, each with the releases that have it.

Most are there from 2.11 to 2.15 (`EVERYWHERE`); the few that came or went are in `SOMEWHERE`, with
their first and last release. Settings and methods count as names: they move as well.
"""

from __future__ import annotations

OLDEST, NEWEST = (2, 11), (2, 15)

# By the module or class that holds them.
EVERYWHERE = {
    "torch._C": ("_current_graph_task_id",),
    "torch._C._autograd": ("_get_current_graph_task_keep_graph", "_profiler_enabled"),
    "torch._dynamo": ("config", "mark_dynamic"),
    "torch._dynamo.config": ("accumulated_recompile_limit", "disable", "patch", "recompile_limit"),
    "torch._dynamo.exc": ("ShortenTraceback", "TorchDynamoException", "Unsupported"),
    "torch._dynamo.pgo": ("get_code_state",),
    "torch._functorch": ("config",),
    "torch._functorch.compile_utils": ("fx_graph_cse",),
    "torch._functorch.config": (
        "cse",
        "enable_autograd_cache",
        "force_non_lazy_backward_lowering",
        "patch",
        "unsafe_allow_optimization_of_collectives",
    ),
    "torch._functorch.partitioners": (
        "_extract_fwd_bwd_modules",
        "_is_bwd_seed_offset",
        "_is_primal",
        "_is_tangent",
        "_must_be_in_backward",
        "cleanup_recompute_tags",
        "default_partition",
        "force_save_bw_mutation_src",
        "force_save_collectives",
        "force_save_effectful_ops",
        "has_recomputable_ops",
        "must_recompute",
        "thread_graphsafe_rng_from_hops",
    ),
    "torch._guards": ("TracingContext",),
    "torch._guards.TracingContext": ("try_get",),
    "torch._inductor": ("config", "list_mode_options", "list_options"),
    "torch._inductor.choices": ("InductorChoices",),
    "torch._inductor.choices.InductorChoices": ("can_fuse_horizontal", "can_fuse_vertical"),
    "torch._inductor.codegen.cpp": ("OuterLoopFusedSchedulerNode",),
    "torch._inductor.codegen.cpp.OuterLoopFusedSchedulerNode": (
        "check_outer_fusion_loop_level_attr",
    ),
    "torch._inductor.codegen.wrapper": ("AllocateLine",),
    "torch._inductor.codegen.wrapper.AllocateLine": ("should_reuse_buffer",),
    "torch._inductor.compile_fx": ("compile_fx", "compile_fx_inner"),
    "torch._inductor.config": (
        "_post_fusion_custom_pass",
        "custom_partitioner_fn",
        "force_layout_optimization",
        "fx_graph_cache",
        "inplace_buffers",
        "patch",
        "post_grad_fusion_options",
        "reorder_for_peak_memory",
        "unroll_reductions_threshold",
    ),
    "torch._inductor.config.triton": ("cudagraphs", "reorder_for_reducing_graph_partitions"),
    "torch._inductor.custom_graph_pass": ("CustomPartitionerFn",),
    "torch._inductor.graph": ("GraphLowering",),
    "torch._inductor.graph.GraphLowering": ("decide_layout_opt", "get_output_names"),
    "torch._inductor.inductor_prims": ("force_stride_order",),
    "torch._inductor.ir": ("ExternKernel", "FallbackKernel", "FixedLayout", "MultiOutputLayout"),
    "torch._inductor.ir.ExternKernel": ("require_channels_last",),
    "torch._inductor.ir.FallbackKernel": ("codegen",),
    "torch._inductor.lowering": (
        "add_layout_constraint",
        "fallbacks",
        "lowerings",
        "maybe_layout_constraints",
    ),
    "torch._inductor.memory": (
        "assign_memory_planning_info_for_scheduler_buffers",
        "compute_memory_timeline",
    ),
    "torch._inductor.scheduler": ("NopKernelSchedulerNode", "SchedulerNode"),
    "torch._inductor.scheduler.SchedulerNode": ("recompute_size_and_body", "set_read_writes"),
    "torch._inductor.virtualized": ("V",),
    "torch._inductor.virtualized.V": ("choices", "local_buffer_context", "set_choices_handler"),
    "torch._logging": ("trace_structured",),
    "torch._ops": ("OpOverload",),
    "torch._prims.rng_prims": ("run_and_save_rng_state", "run_with_rng_state"),
    "torch._subclasses": ("FakeTensor", "FakeTensorMode"),
    "torch.fx._lazy_graph_module": ("_make_graph_module", "_use_lazy_graph_module"),
    "torch.fx.experimental._backward_state": ("BackwardState",),
    "torch.fx.experimental.proxy_tensor": ("is_sym_node",),
    "torch.fx.experimental.symbolic_shapes": (
        "free_unbacked_symbols",
        "statically_known_true",
    ),
    "torch.utils": ("_pytree",),
    "torch.utils._ordered_set": ("OrderedSet",),
    "torch.utils._python_dispatch": ("_disable_current_modes",),
    "torch.utils._pytree": ("tree_leaves", "tree_map_only"),
    "torch.utils.flop_counter": ("flop_registry", "sdpa_backward_flop_count", "sdpa_flop_count"),
}

# Name, first and last release. The gate has something to put in the place of each.
SOMEWHERE = {
    "torch._functorch._aot_autograd.graph_compile.is_opaque_node": ((2, 12), NEWEST),
    "torch._inductor.custom_graph_pass.CustomSchedulerPass": ((2, 13), NEWEST),
    "torch._library.fake_class_registry.FakeScriptObject": (OLDEST, NEWEST),  # used on 2.11 only
    "torch.fx.experimental.symbolic_shapes.optimization_hint": ((2, 12), NEWEST),
    "torch.fx.experimental.symbolic_shapes.size_hint": (OLDEST, (2, 11)),
}


def releases_of() -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Return the first and last release of each name."""
    everywhere = (f"{place}.{name}" for place, names in EVERYWHERE.items() for name in names)
    return dict.fromkeys(everywhere, (OLDEST, NEWEST)) | SOMEWHERE
