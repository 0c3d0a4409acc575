"""The partitioner: joint graph in, forward and backward out, under a budget.

The data flows one way, and each step is a plain function: prepare, capture, plan, emit, split,
verify.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from recut.channels import tell
from recut.files import replayed
from recut.machines import in_force, pick
from recut.measured import measured_costs
from recut.partitioners.errors import InfeasibleBudget
from recut.partitioners.evaluator import evaluate
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Problem
from recut.partitioners.timing import step_seconds
from recut.passes import _torch
from recut.passes.capture import Capture, capture, device_of
from recut.passes.costs import tensors
from recut.passes.fusion import promise
from recut.passes.prepare import has_backward, prepare
from recut.passes.prices import Prices
from recut.passes.rewrite import Emission, emit, split
from recut.passes.rules import annotated_budget, unpriced
from recut.passes.scheduled import expectations
from recut.passes.verify import verify
from recut.report import GraphReport, record
from recut.settings import Budget, Settings

if TYPE_CHECKING:
    from recut.partitioners.sizes import PeakFormula

log = logging.getLogger("recut")


# How much of a budget a plan may fill at first. Inductor adds buffers of a few bytes that no graph
# shows, and a plan filled to the brim would have to be compiled twice for them.
_FILL = 511 / 512
# A floor plan is accepted with kernels this much over its own peak; the floor is then theirs.
_FLOOR_FILL = 1.005
# What torch's annotation means by 0: as little memory as can be.
_LEAST = 1e-6


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
class Experience:
    """What an earlier attempt at a graph has taught.

    Attributes:
        budget: bytes that the budget stood for then; it stays, whatever is learnt of the peaks.
        observed: bytes by op that compiled code holds beyond the problem's own count.
        tried: what the kernels of the floor plans hold that were tried, bytes, by trial.
        promised: whether the next attempt has to hold the budget.
    """

    budget: int
    observed: Mapping[int, int]
    tried: Mapping[str, int] = field(default_factory=dict)
    promised: bool = True


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
        trial: it is a floor plan that is over the budget by its count, and whose kernels decide.
        plan: the plan.
        dump: writes the dump of what a report tells.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    digest: str | None = None
    report: GraphReport | None = None
    budget: int = 0
    clamped: bool = False
    trial: str = ""
    plan: Plan | None = None
    dump: Callable[[GraphReport], object] | None = None

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
        record(report)
        if self.plan is not None:
            tell(report, self.plan)
        if self.dump is not None:
            self.dump(report)
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
    machine = pick(machines, device_of(joint.graph))
    measuring = time.perf_counter()
    measured = measured_costs(joint, compiler) if settings.costs == "measure" else {}
    start += time.perf_counter() - measuring  # it is no planning
    prices = Prices(machine, measured, compiler == "inductor")
    captured = capture(joint, num_fwd_outputs=num_fwd_outputs, compiler=compiler, prices=prices)
    known = experience.get(captured.problem.digest)
    settings = _tightened(settings, joint, captured, machine)
    choice = _choose(settings, joint, captured, machine, known)
    plan, limit = choice.plan, _limit(settings, choice, known)
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
        machine=f"{machine.name} ({machine.source or 'of the settings'})",
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


def _tightened(
    settings: Settings, joint: fx.GraphModule, captured: Capture, machine: Machine
) -> Settings:
    """Return the settings with the budget of torch's own annotation where that asks for less."""
    region = annotated_budget(joint)
    if region is None or region >= 1:
        return settings
    asked = Budget("fraction", max(region, _LEAST))
    peak = Planner(captured.problem, machine).fastest_peak
    given = settings.memory_budget.resolve(peak, free_bytes(joint))
    less = asked.resolve(peak, None) < given
    return replace(settings, memory_budget=asked) if less else settings


def _formula(problem: Problem, plan: Plan) -> PeakFormula:
    """Return the peak of a plan at any sizes."""
    from recut.partitioners.sizes import peak_formula  # sympy, which not every graph needs

    return peak_formula(problem, plan.schedule)


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


@dataclass(frozen=True)
class _Choice:
    """A plan, and what it was chosen for.

    Attributes:
        budget: bytes that were asked for.
        plan: the plan; its peak lies over the budget where that is a fraction below the floor.
        captured: what it plans: the graph with what was observed of it, or without.
        planner: who made it.
        trial: it is a floor plan, tried although its count is over the budget; which one.
    """

    budget: int
    plan: Plan
    captured: Capture
    planner: Planner
    trial: str = ""

    @property
    def clamped(self) -> bool:
        """Whether the budget lies under the floor, and the floor plan was taken."""
        return self.plan.peak > self.budget and not self.trial


def _choose(
    settings: Settings,
    joint: fx.GraphModule,
    captured: Capture,
    machine: Machine,
    known: Experience | None,
) -> _Choice:
    """Return the plan for a graph: a replayed one, or the best by what is known of its kernels.

    Raises:
        InfeasibleBudget: no plan fits the budget.
    """
    if settings.plan is not None:
        plan = replayed(settings.plan, captured.problem)
        return _Choice(plan.peak, plan, captured, Planner(captured.problem, machine))
    observed = captured
    if known is not None:
        observed = replace(captured, problem=captured.problem.with_observed(known.observed))
    planner = Planner(observed.problem, machine, settings.solver_seconds)
    if known is None:
        budget = settings.memory_budget.resolve(planner.fastest_peak, free_bytes(joint))
    else:
        budget = known.budget
    try:
        return _Choice(budget, plan_under(settings, planner, budget), observed, planner)
    except InfeasibleBudget as error:
        tried = known.tried if known else {}
        trials = {"observed": (observed, planner)}
        # What was observed holds for the plans that it was observed of; others may do better.
        if observed.problem is not captured.problem:
            plain = Planner(captured.problem, machine, settings.solver_seconds)
            trials["plain"] = (captured, plain)
        # A count errs, in both directions: before a budget is refused, and a floor named, the
        # floor plan's kernels are asked. Without Inductor there are none that could tell.
        compiled = captured.problem.compiler == "inductor"
        for trial, (what, by) in trials.items():
            if compiled and trial not in tried:
                plan = replace(by.floor_plan(), budget=budget)
                return _Choice(budget, plan, what, by, trial)
        floor = min(tried.values(), default=error.floor)
        raise error.with_floor(floor) from None


def _limit(settings: Settings, choice: _Choice, known: Experience | None) -> int | None:
    """Return the bytes that the plan's kernels may hold, None where nothing is promised of them."""
    if known is not None and not known.promised:
        return None
    # All of the fastest plan's peak is a promise of nothing, and a replayed plan is what it is.
    if settings.memory_budget.is_all or settings.plan is not None:
        return None
    # A trial's budget lies under its count, and is what its kernels have to hold.
    return int(choice.plan.peak * _FLOOR_FILL) if choice.clamped else choice.budget


def plan_under(settings: Settings, planner: Planner, budget: int) -> Plan:
    """Return the best plan that a planner finds for a budget in bytes.

    Raises:
        InfeasibleBudget: the budget lies under the floor, and it is no fraction.
    """
    if planner.problem.compiler == "inductor" and planner.fastest_peak > budget:
        with suppress(InfeasibleBudget):
            return planner.plan(budget, _FILL)
    try:
        return planner.plan(budget)
    except InfeasibleBudget as error:
        if settings.memory_budget.kind == "fraction":
            return planner.floor_plan()
        if planner.problem.compiler == "inductor":
            # A budget of the floor and not a byte more would be refused again for a few bytes.
            raise error.with_floor(math.ceil(error.floor / _FILL)) from None
        raise


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


def free_bytes(joint: fx.GraphModule) -> Callable[[], int]:
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


__all__ = [
    "Experience",
    "Partitioned",
    "collector_paused",
    "free_bytes",
    "partition",
    "partition_under",
    "plan_under",
]
