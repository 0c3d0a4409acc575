"""A planned graph in words: where its peak is, what is there, what was decided, what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from recut.partitioners.decisions import Choice, Group, Use, groups, memory, use_of
from recut.partitioners.problem import Op, Rule

if TYPE_CHECKING:
    from recut.planned import PlannedGraph

# Of each list, how much is shown in words; the data have all of it.
_SHOWN = 8
# What is worth a remark: shares of the peak, of which one line's, and of a step.
_MUCH = 0.25
_ONE_PLACE = 0.1
_NOTICED = 0.02


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
    advice: tuple[str, ...]

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
            f"  step          {time(self.step_seconds)}, {self.added:.1%} more than the fastest "
            f"plan's {time(self.fastest_seconds)}; {bound}",
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
            time,
            "recomputed, {total} of {count} ops by their own prices:",
            lambda g: f"{g.again} runs",
        )

    def _helps(self) -> list[str]:
        return ["what would help:", *(f"  - {text}" for text in self.advice)] if self.advice else []


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
    live = {
        str(use): held
        for use, series in memory(problem, plan.schedule, line).items()
        if (held := series[moment])
    }
    machine = planned.machine
    found = Explanation(
        name=planned.name,
        machine=f"{machine.name} ({machine.source or 'of the settings'})",
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
        saved=groups(problem, plan.schedule, Choice.SAVED),
        recomputed=groups(problem, plan.schedule, Choice.RECOMPUTED),
        advice=(),
    )
    return replace(found, advice=tuple(text for ask in _ADVICE if (text := ask(planned, found))))


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


# What would help, each a small question; "" where it would not.


def _gradients(_: PlannedGraph, found: Explanation) -> str:
    held = found.live.get(Use.GRADIENT, 0)
    if held < _MUCH * found.peak:
        return ""
    return (
        f"gradients are {size(held)} of the peak, {held / found.peak:.0%}, and no plan lowers "
        "them: a smaller dtype, sharding, or an optimizer step inside the backward do"
    )


def _one_place(_: PlannedGraph, found: Explanation) -> str:
    places: dict[tuple[str, str], int] = {}
    for held in found.held:
        if held.source and held.use is not Use.GRADIENT:
            key = (held.source, held.module)
            places[key] = places.get(key, 0) + held.bytes
    nowhere = (("", ""), 0)
    (source, _module), most = max(places.items(), key=lambda item: item[1], default=nowhere)
    if most < _ONE_PLACE * found.peak:
        return ""
    return (
        f"what is made at {source} holds {size(most)} of the peak, {most / found.peak:.0%}: where "
        "it works on rows one by one (a loss over a large vocabulary), computing it in chunks "
        "lowers the peak by most of that"
    )


def _tagged(_: PlannedGraph, found: Explanation) -> str:
    return _forced(found, "MUST_SAVE", "your own policies (MUST_SAVE) hold", "let some of them go")


def _unpriced(_: PlannedGraph, found: Explanation) -> str:
    return _forced(
        found,
        "no cost is known",
        "ops of unknown cost hold",
        "declare what they cost with recut.register_cost, and they may be recomputed",
    )


def _forced(found: Explanation, reason: str, what: str, remedy: str) -> str:
    held = sum(h.bytes for h in found.held if reason in h.why)
    if held < _NOTICED * found.peak:
        return ""
    return f"{what} {size(held)} of the peak, {held / found.peak:.0%}: {remedy}"


def _workspace(_: PlannedGraph, found: Explanation) -> str:
    held = found.live.get(Use.WORKSPACE, 0)
    if held < _MUCH * found.peak:
        return ""
    return f"{size(held)} of the peak are a library's own, while {_named(found.moment)} runs"


def _regions(planned: PlannedGraph, found: Explanation) -> str:
    ops = planned.problem.ops
    again = planned.plan.schedule.recomputed(planned.problem)
    seconds = sum(
        n * ops[i].seconds for i, n in again.items() if ops[i].rule is Rule.MUST_RECOMPUTE
    )
    if seconds < _NOTICED * found.step_seconds:
        return ""
    return (
        f"your checkpoint regions recompute for {time(seconds)} whatever the budget: without them "
        "the planner may choose"
    )


def _more_memory(planned: PlannedGraph, found: Explanation) -> str:
    if found.added < _NOTICED:
        return ""
    half = found.fastest_seconds + (found.step_seconds - found.fastest_seconds) / 2
    enough = [p for p in planned.frontier if p.peak > found.peak and planned.seconds(p) <= half]
    if len(planned.frontier) < 3 or not enough:
        return f"with {size(found.fastest_peak)} a step takes {time(found.fastest_seconds)}"
    first = min(enough, key=lambda p: p.peak)
    return (
        f"with {size(first.peak)} a step takes {time(planned.seconds(first))}, "
        f"with {size(found.fastest_peak)} {time(found.fastest_seconds)}"
    )


_ADVICE = (
    _gradients,
    _one_place,
    _tagged,
    _unpriced,
    _workspace,
    _regions,
    _more_memory,
)


def size(count: float) -> str:
    """Return bytes as text."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def time(seconds: float) -> str:
    """Return seconds as text."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"


__all__ = ["Explanation", "Held", "explain", "size", "time"]
