"""The partitioner: joint graph in, forward and backward out, under a budget.

The data flows one way, and each step is a plain function: prepare, capture, plan, emit, split,
verify.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from recut.files import dump_graph, read_plan
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan
from recut.partitioners.planner import Planner, plan_under
from recut.passes import _torch
from recut.passes.capture import Capture, capture, machine_for
from recut.passes.costs import tensors
from recut.passes.fusion import mark
from recut.passes.prepare import has_backward, prepare
from recut.passes.rewrite import emit, split
from recut.passes.verify import verify
from recut.report import GraphReport, record
from recut.settings import Settings

log = logging.getLogger("recut")


def partition(
    joint_module: fx.GraphModule,
    _joint_inputs: Sequence[Any],
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None = None,
    compiler: str = "eager",
    **_: Any,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Partition a joint graph under the budget of the environment: AOTAutograd's ``partition_fn``.

    Args:
        joint_module: joint forward and backward graph.
        num_fwd_outputs: how many outputs of the joint graph the forward returns.
        static_lifetime_input_indices: inputs (parameters, buffers) that outlive the step.
        compiler: "eager" where the results run op by op, "inductor" where Inductor compiles them.

    Raises:
        SettingError: a setting of the environment cannot be read.
        InfeasibleBudget: no plan fits the budget.
    """
    return partition_under(
        Settings.read(None),
        joint_module,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_indices=static_lifetime_input_indices,
        compiler=compiler,
    )


def partition_under(
    settings: Settings,
    joint: fx.GraphModule,
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None,
    compiler: str,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Partition a joint graph under ``settings``; see :func:`partition`."""
    start = time.perf_counter()
    joint = prepare(joint)
    if not has_backward(joint):
        return _torch.default_partition(  # type: ignore[no-any-return, unused-ignore]
            joint,
            (),
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_indices=list(static_lifetime_input_indices or ()),
        )
    machine = machine_for(joint.graph)
    captured = capture(joint, num_fwd_outputs=num_fwd_outputs, compiler=compiler, machine=machine)
    plan, planner = _plan(settings, joint, captured, machine)
    forward, backward = _apply(joint, captured, plan, static_lifetime_input_indices)
    problem = captured.problem
    record(
        GraphReport(
            budget=plan.budget,
            peak=plan.peak,
            fastest_peak=planner.fastest_peak,
            floor=planner.known_floor,
            added_seconds=plan.added_seconds,
            step_seconds=problem.total_seconds,
            planning_seconds=time.perf_counter() - start,
            ops=len(problem.ops),
            planner=plan.planner,
            asked=settings.memory_budget,
        )
    )
    if settings.dump is not None:
        _dump(settings, joint, captured, plan, forward, backward)
    return forward, backward


def _plan(
    settings: Settings, joint: fx.GraphModule, captured: Capture, machine: Machine
) -> tuple[Plan, Planner]:
    """Return the plan that the settings ask for: a replayed one, or the best under the budget."""
    problem = captured.problem
    if settings.plan is not None:
        plan = read_plan(settings.plan)
        plan.check(problem)
        return plan, Planner(problem, machine)
    clamp = settings.memory_budget.kind == "fraction"
    plan, planner = plan_under(
        problem,
        machine,
        lambda peak: settings.memory_budget.resolve(peak, _free_bytes(joint)),
        clamp=clamp,
        seconds=settings.solver_seconds,
    )
    if plan.planner == "floor" and clamp:
        warnings.warn(
            f"recut: {settings.memory_budget} of the fastest plan's peak "
            f"({planner.fastest_peak} bytes) lies under the floor of this graph; it is compiled at "
            f"its floor of {planner.floor} bytes",
            stacklevel=2,
        )
    return plan, planner


def _apply(
    joint: fx.GraphModule, captured: Capture, plan: Plan, static: Sequence[int] | None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    emission = emit(joint, captured, plan.schedule)
    forward, backward = split(
        emission,
        num_fwd_outputs=captured.num_forward_outputs,
        static_lifetime_input_indices=static,
    )
    for part in (forward, backward):
        mark(part)
    verify(captured.problem, plan, emission.ops, forward, backward)
    return forward, backward


def _dump(
    settings: Settings,
    joint: fx.GraphModule,
    captured: Capture,
    plan: Plan,
    forward: fx.GraphModule,
    backward: fx.GraphModule,
) -> None:
    """Write one graph's dump; a folder that cannot be written costs a warning, not the training."""
    assert settings.dump is not None
    modules = {"joint": joint, "forward": forward, "backward": backward}
    files = {f"{name}.txt": m.print_readable(print_output=False) for name, m in modules.items()}
    files["problem.json"] = json.dumps(captured.problem.to_json()) + "\n"
    files["plan.json"] = plan.dumps()
    try:
        log.info("dumped to %s", dump_graph(settings.dump, files))
    except OSError as error:
        warnings.warn(
            f"recut: dump={str(settings.dump)!r} cannot be written ({error}); training goes on "
            "without it",
            stacklevel=2,
        )


def _free_bytes(joint: fx.GraphModule) -> Callable[[], int]:
    """Return how to ask the graph's device for its free bytes."""
    devices = {t.device for n in joint.graph.nodes for t in tensors(n.meta.get("val"))}
    cuda = sorted((d for d in devices if d.type == "cuda"), key=str)

    def free() -> int:
        if cuda:
            available, _ = torch.cuda.mem_get_info(cuda[0])
            cached = torch.cuda.memory_reserved(cuda[0]) - torch.cuda.memory_allocated(cuda[0])
            return int(available + cached)
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    return free


__all__ = ["partition", "partition_under"]
