"""A planned graph in words: where its peak is, what is there, what was decided, what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from recut.partitioners.advice import Advice, advise
from recut.partitioners.decisions import Choice, Group, Use, groups, use_of
from recut.partitioners.problem import Op, Rule
from recut.partitioners.units import duration, size

if TYPE_CHECKING:
    from recut.planned import PlannedGraph

# Of each list, how much is shown in words; the data have all of it.
_SHOWN = 8


@dataclass(frozen=True)
class Held:
    """One tensor in memory at the peak.

    Attributes:
        name: of the node that makes it.
        bytes: its size.
        use: what it is in memory for.
        target: what makes it; "an input" for a copy of one.
        module: path of the module that it is made in.
        source: the user's source line.
        why: why it is not recomputed, where it may not be.
    """

    name: str
    bytes: int
    use: Use
    target: str
    module: str
    source: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """What there is to say about a planned graph; as text by ``str``.

    Attributes:
        name: of the graph.
        machine: what set the prices, and where it is from.
        asked: the budget as the user wrote it.
        budget: the same in bytes; the floor where a share lies under it.
        peak: predicted, bytes.
        fastest_peak: of the fastest plan, bytes.
        floor: lowest budget that a plan was found for, bytes; None where it was not looked for.
        scheduled_peak: what Inductor's kernels hold, bytes; None where none were generated.
        step_seconds: expected time of a step.
        fastest_seconds: of a step of the fastest plan.
        gap_seconds: how much of what is added no proof says that any plan needs.
        planner: which planner answered.
        planning_seconds: how long it took.
        ops: how many ops were planned.
        moment: the op that runs at the peak.
        in_backward: whether it runs in the backward.
        live: bytes by what they are for at the peak.
        held: the tensors there, the largest first.
        saved: what the forward keeps for the backward, by groups of like ops.
        recomputed: what the backward runs again.
        advice: what would lower the peak or the time.
    """

    name: str
    machine: str
    asked: str
    budget: int
    peak: int
    fastest_peak: int
    floor: int | None
    scheduled_peak: int | None
    step_seconds: float
    fastest_seconds: float
    gap_seconds: float
    planner: str
    planning_seconds: float
    ops: int
    moment: Op
    in_backward: bool
    live: Mapping[str, int]
    held: tuple[Held, ...]
    saved: tuple[Group, ...]
    recomputed: tuple[Group, ...]
    advice: tuple[Advice, ...]

    @cached_property
    def added(self) -> float:
        """What a step takes longer than that of the fastest plan, as a share of it."""
        return self.step_seconds / self.fastest_seconds - 1 if self.fastest_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON data; bytes and seconds."""
        op = self.moment
        at = {"name": op.name, "target": op.target, "module": op.module, "source": op.source}
        return {**asdict(self), "moment": at}

    def summary(self) -> list[str]:
        """Return the figures, and what is largest, as lines."""
        return [*self._figures(), *self._at_the_peak(), *self._again()]

    def __str__(self) -> str:
        parts = (self._figures(), self._at_the_peak(), self._kept(), self._again(), self._helps())
        return "\n".join(line for lines in parts for line in lines)

    def _figures(self) -> list[str]:
        asked = f" ({self.asked})" if self.asked else ""
        if self.asked.endswith("%") and self.budget == self.floor:
            asked = f" ({self.asked} lies under it: it is the lowest that was found)"
        floor = "" if self.floor is None else f"; the lowest that was found: {size(self.floor)}"
        counted = self.scheduled_peak
        kernels = "" if counted is None else f", {size(counted)} in the generated kernels"
        gap = self.gap_seconds / self.fastest_seconds if self.fastest_seconds else 0.0
        bound = (
            "no plan is faster by these prices"
            if self.planner == "min-cut"
            else f"at most {gap:.1%} of a step more than any plan in this order has to add"
        )
        return [
            f"{self.name}: {self.ops} operations, planned in {self.planning_seconds:.1f} s by "
            f"{self.planner}, priced for {self.machine}",
            f"  budget        {size(self.budget)}{asked}",
            f"  peak          {size(self.peak)}{kernels}",
            f"  fastest plan  {size(self.fastest_peak)}{floor}",
            f"  step          {duration(self.step_seconds)}, {self.added:.1%} more than the "
            f"fastest plan's {duration(self.fastest_seconds)}; {bound}",
        ]

    def _at_the_peak(self) -> list[str]:
        where = "backward" if self.in_backward else "forward"
        out = [f"the peak is in the {where}, while {_named(self.moment)} runs; in memory then:"]
        out += [f"  {size(held):>12}  {use}" for use, held in self.live.items()]
        out.append("the largest tensors then:")
        for held in self.held[:_SHOWN]:
            why = f": {held.why}" if held.why else ""
            place = _place(held.target, held.module, held.source)
            out.append(f"  {size(held.bytes):>12}  {held.name}, {held.use}, {place}{why}")
        rest = self.held[_SHOWN:]
        if rest:
            out.append(f"  {size(sum(h.bytes for h in rest)):>12}  in {len(rest)} others")
        return out

    def _kept(self) -> list[str]:
        by_bytes = sorted(self.saved, key=lambda g: -g.bytes)
        return _listed(
            by_bytes,
            lambda g: g.bytes,
            size,
            "saved for the backward, {total} of {count} ops:",
            lambda g: g.reason,
        )

    def _again(self) -> list[str]:
        return _listed(
            self.recomputed,
            lambda g: g.seconds,
            duration,
            "recomputed, {total} of {count} ops by their own prices:",
            lambda g: f"{g.again} runs",
        )

    def _helps(self) -> list[str]:
        told = [f"  - {advice.text}" for advice in self.advice]
        return ["what would help:", *told] if told else []


def _listed(
    found: Iterable[Group],
    weight: Callable[[Group], Any],
    show: Callable[[Any], str],
    title: str,
    remark: Callable[[Group], str],
) -> list[str]:
    found = list(found)
    if not found:
        return []
    total, count = show(sum(map(weight, found))), sum(g.ops for g in found)
    out = [title.format(total=total, count=count)]
    for g in found[:_SHOWN]:
        place = _place(g.target, g.module, g.source)
        out.append(f"  {show(weight(g)):>12}  {g.ops} x {place}: {remark(g)}")
    rest = found[_SHOWN:]
    if rest:
        count = sum(g.ops for g in rest)
        out.append(f"  {show(sum(map(weight, rest))):>12}  in {count} others")
    return out


def _place(target: str, module: str, source: str) -> str:
    inside = f" in {module}" if module else ""
    return f"{target.removesuffix('.default')}{inside}" + (f" ({source})" if source else "")


def _named(op: Op) -> str:
    return f"{op.name} = {_place(op.target, op.module, op.source)}"


def explain(planned: PlannedGraph) -> Explanation:
    """Explain a planned graph."""
    plan, problem, line = planned.plan, planned.problem, planned.timeline
    moment = line.worst
    op = problem.ops[(plan.schedule.forward + plan.schedule.backward)[moment]]
    live = {str(use): held for use, series in planned.memory.items() if (held := series[moment])}
    machine = planned.machine
    return Explanation(
        name=planned.name,
        machine=machine.label,
        asked=planned.asked,
        budget=plan.budget,
        peak=plan.peak,
        fastest_peak=planned.fastest.peak,
        floor=planned.floor,
        scheduled_peak=planned.scheduled_peak,
        step_seconds=planned.time,
        fastest_seconds=planned.seconds(planned.fastest),
        gap_seconds=plan.gap,
        planner=plan.planner,
        planning_seconds=planned.planning_seconds,
        ops=len(problem.ops),
        moment=op,
        in_backward=moment >= line.split,
        live=dict(sorted(live.items(), key=lambda item: -item[1])),
        held=_held(planned, moment),
        saved=groups(problem, planned.decisions, Choice.SAVED),
        recomputed=groups(problem, planned.decisions, Choice.RECOMPUTED),
        advice=advise(problem, plan, planned.frontier, machine),
    )


def _held(planned: PlannedGraph, moment: int) -> tuple[Held, ...]:
    """Return the tensors in memory at a moment, the largest first."""
    problem, line = planned.problem, planned.timeline
    out = []
    for inst in line.at(moment):
        value = problem.values[inst.value]
        use = use_of(problem, line, inst)
        if value.producer < 0:
            out.append(Held(value.name, inst.bytes, use, "an input", "", "", ""))
            continue
        op = problem.ops[value.producer]
        why = op.reason if op.rule is Rule.MUST_SAVE else ""
        out.append(Held(value.name, inst.bytes, use, op.target, op.module, op.source, why))
    return tuple(sorted(out, key=lambda h: (-h.bytes, h.name)))
