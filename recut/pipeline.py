"""The partitioner: joint graph in, forward and backward out, under a budget.

The data flows one way, and each step is a plain function: prepare, capture, plan, emit, split,
verify.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx

from recut.channels import tell
from recut.choosing import Experience, Trial, choose, free_bytes, limit_of, tightened
from recut.machines import in_force, pick
from recut.measured import measured_costs
from recut.partitioners.evaluator import evaluate
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Problem
from recut.partitioners.timing import step_seconds
from recut.passes import _torch
from recut.passes.capture import Capture, capture, device_of
from recut.passes.fusion import promise
from recut.passes.prepare import has_backward, prepare
from recut.passes.prices import Prices
from recut.passes.rewrite import Emission, emit
from recut.passes.rules import annotated_budget, unpriced
from recut.passes.scheduled import expectations
from recut.passes.split import split
from recut.passes.verify import verify
from recut.report import GraphReport, record
from recut.settings import Settings

if TYPE_CHECKING:
    from recut.partitioners.sizes import PeakFormula

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
    settings = Settings.read(None)
    result = partition_under(
        settings,
        joint_module,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_indices=static_lifetime_input_indices,
        compiler=compiler,
        machines=in_force(settings),
    )
    result.announce()
    return result.forward, result.backward


@dataclass(frozen=True)
class Partitioned:
    """A forward and a backward, and what to tell about them once they are accepted.

    Attributes:
        forward: the forward graph.
        backward: the backward graph.
        digest: digest of the problem; None where there was nothing to plan.
        report: what was planned.
        budget: bytes that were asked for; ``report.budget`` is the floor where they lie under it.
        clamped: the budget lies under the floor, and the floor plan was taken.
        trial: it is a floor plan that is over the budget by its count, and whose kernels decide;
            which one, or None.
        plan: the plan.
        dump: writes the dump of what a report tells, and returns its folder.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    digest: str | None = None
    report: GraphReport | None = None
    budget: int = 0
    clamped: bool = False
    trial: Trial | None = None
    plan: Plan | None = None
    dump: Callable[[GraphReport], Path | None] | None = None

    def announce(self, scheduled_peak: int | None = None, attempts: int = 1) -> GraphReport | None:
        """Warn, report and dump what there is to say about an accepted partition.

        Returns the report as it was recorded; None where there was nothing to plan.

        Args:
            scheduled_peak: the most bytes that Inductor's kernels hold, where it is known.
            attempts: how often the graph was planned.
        """
        if self.report is None:
            return None
        report = replace(self.report, scheduled_peak=scheduled_peak, attempts=attempts)
        if self.trial and scheduled_peak is not None:
            report = replace(report, peak=scheduled_peak)  # the count was over the budget
        floor = max(report.peak, scheduled_peak or 0)
        if report.asked.is_all and report.planner == "min-cut":
            report = replace(report, budget=floor)  # all of the fastest plan's peak
        if self.clamped:
            report = replace(report, budget=floor, floor=floor)
            warnings.warn(
                f"recut: {report.asked} of the fastest plan's peak is {self.budget} bytes and "
                f"lies under the floor of this graph; it is compiled at its floor of "
                f"{floor} bytes",
                stacklevel=2,
            )
        if self.dump is not None:
            report = replace(report, folder=self.dump(report))
        record(report)
        if self.plan is not None:
            tell(report, self.plan)
        return report


def partition_under(
    settings: Settings,
    joint: fx.GraphModule,
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None,
    compiler: str,
    machines: Mapping[str, Machine],
    experience: Mapping[str, Experience] | None = None,
) -> Partitioned:
    """Partition a joint graph under ``settings``; see :func:`partition`.

    Args:
        settings: the settings.
        joint: the joint graph.
        num_fwd_outputs: as for :func:`partition`.
        static_lifetime_input_indices: as for :func:`partition`.
        compiler: as for :func:`partition`.
        machines: prices by type of device.
        experience: what earlier attempts have taught, by digest of the problem.
    """
    with collector_paused():
        return _partition_under(
            settings,
            joint,
            num_fwd_outputs,
            static_lifetime_input_indices,
            compiler,
            machines,
            experience or {},
        )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the cycle collector out: a run over a compilation's objects takes as long as we do."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _partition_under(
    settings: Settings,
    joint: fx.GraphModule,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None,
    compiler: str,
    machines: Mapping[str, Machine],
    experience: Mapping[str, Experience],
) -> Partitioned:
    start = time.perf_counter()
    # Preparing changes the graph.
    before = _written(joint) if settings.dumps_passes else ""
    joint = prepare(joint)
    if not has_backward(joint):
        return Partitioned(
            *_torch.default_partition(
                joint,
                (),
                num_fwd_outputs=num_fwd_outputs,
                static_lifetime_input_indices=list(static_lifetime_input_indices or ()),
            )
        )
    device = device_of(joint.graph)
    machine = pick(machines, device)
    if machine.device != device:
        _warn_of_foreign(machine.label, machine.device, device)
    measuring = time.perf_counter()
    measured = measured_costs(joint, compiler) if settings.costs == "measure" else {}
    start += time.perf_counter() - measuring  # it is no planning
    prices = Prices(machine, measured, compiler == "inductor")
    captured = capture(
        joint, num_fwd_outputs=num_fwd_outputs, compiler=compiler, prices=prices, device=device
    )
    known = experience.get(captured.problem.digest)
    if (region := annotated_budget(joint)) is not None:
        peak = Planner(captured.problem, machine).fastest_peak
        settings = tightened(settings, region, peak, free_bytes(joint))
    choice = choose(settings, joint, captured, machine, known)
    plan, limit = choice.plan, limit_of(settings, choice, known)
    # Of a trial both graphs are asked, so that the floor is theirs and not the forward's.
    limits = (None if choice.trial else limit, limit)
    emission, forward, backward = _apply(
        joint, choice.captured, plan, static_lifetime_input_indices, limits
    )
    problem = choice.captured.problem
    fastest_seconds = step_seconds(problem, choice.planner.fastest, machine)
    report = GraphReport(
        budget=plan.budget,
        peak=plan.peak,
        fastest_peak=choice.planner.fastest_peak,
        floor=choice.planner.known_floor,
        added_seconds=step_seconds(problem, plan.schedule, machine) - fastest_seconds,
        step_seconds=fastest_seconds,
        planning_seconds=time.perf_counter() - start,
        ops=len(problem.ops),
        planner=plan.planner,
        gap_seconds=plan.gap,
        asked=settings.memory_budget,
        bases=_bases(captured),
        unpriced=_unpriced(captured),
        machine=machine.label,
        sizes=problem.sizes,
        formula=_formula(problem, plan) if problem.sizes else None,
    )
    dump = None
    if settings.dump is not None:
        from recut.dump import Compilation, dumper

        planner = choice.planner
        done = Compilation(choice.captured, planner, plan, joint, emission, forward, backward)
        dump = dumper(settings, done, before)
    return Partitioned(
        forward,
        backward,
        captured.problem.digest,
        report,
        choice.budget,
        choice.clamped,
        choice.trial,
        plan,
        dump,
    )


@cache
def _warn_of_foreign(label: str, described: str, device: str) -> None:
    """Say once that a plan keeps to the memory of one device by the prices of another one."""
    warnings.warn(
        f"recut: the machine setting describes a {described} device ({label}), and this graph runs "
        f"on {device}: its plan keeps to the budget here, but weighs costs as they are there. "
        "Leave the setting out to plan for this device; recut.plan plans for the other one.",
        stacklevel=2,
    )


def _formula(problem: Problem, plan: Plan) -> PeakFormula | None:
    """Return the peak of a plan at any sizes; None, and a warning, where a size cannot be read."""
    from recut.partitioners.sizes import peak_formula  # sympy, which not every graph needs

    try:
        return peak_formula(problem, plan.schedule)
    except ValueError as error:
        log.warning("what the graph's peak is at other sizes is not known: %s", error)
        return None


def _written(joint: fx.GraphModule) -> str:
    """Return a graph as text for a dump."""
    from recut.dump import as_text

    return as_text(joint)


def _bases(captured: Capture) -> dict[str, int]:
    """Return how many ops are priced on each basis."""
    return {str(basis): count for basis, count in sorted(Counter(captured.bases).items())}


def _unpriced(captured: Capture) -> tuple[str, ...]:
    """Return what is saved because nobody knows its cost."""
    ops = captured.problem.ops
    return tuple(sorted({o.target for o in ops if o.reason == unpriced(o.target)}))


def _apply(
    joint: fx.GraphModule,
    captured: Capture,
    plan: Plan,
    static: Sequence[int] | None,
    limits: tuple[int | None, int | None],
) -> tuple[Emission, fx.GraphModule, fx.GraphModule]:
    emission = emit(joint, captured, plan.schedule)
    forward, backward = split(
        emission,
        num_fwd_outputs=captured.num_forward_outputs,
        static_lifetime_input_indices=static,
    )
    verify(captured.problem, plan, emission.ops, forward, backward)
    line = evaluate(captured.problem, plan.schedule)
    for part, promised in zip(
        (forward, backward), expectations(captured, emission, line, limits), strict=True
    ):
        promise(part, promised)
    return emission, forward, backward


__all__ = ["Partitioned", "collector_paused", "partition", "partition_under"]
