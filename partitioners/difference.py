"""What differs between two graphs, and between two plans of one graph: data first, then words.

Ops are compared by their place, which is what they call, the module they are of and the phase they
run in, so that one op more in the first block does not make every op behind it another one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

from recut.partitioners import units
from recut.partitioners.decisions import Choice, Decision, decisions, pattern
from recut.partitioners.plan import Plan
from recut.partitioners.problem import NO_MATTER, Op, Phase, Problem

# How many groups of ops a text lists, the weightiest first.
_SHOWN = 12


@dataclass(frozen=True)
class Change:
    """Ops alike in two graphs: in one of them only, or of another size or kind in the other.

    Attributes:
        target: what they call.
        module: path of their module, with ``*`` in the place of numbers.
        phase: in which phase they run.
        source: the user's source line of the first of them.
        what: "added", "removed", or what is another in the second graph.
        count: how many.
        before: bytes of the results of one of them in the first graph; None where it is not there.
        after: the same in the second graph.
    """

    target: str
    module: str
    phase: Phase
    source: str
    what: str
    count: int
    before: int | None
    after: int | None

    def line(self) -> str:
        """Return the change as a line."""
        place = f" in {self.module}" if self.module else ""
        source = f" ({self.source})" if self.source else ""
        sizes = [units.size(size) for size in (self.before, self.after) if size is not None]
        size = " -> ".join(dict.fromkeys(sizes))
        return f"{self.what}: {self.count} x {self.target}{place}{source}, {size} each"


@dataclass(frozen=True)
class GraphDifference:
    """How a graph differs from another one.

    Attributes:
        changes: by place, the forward's before the backward's.
        rewired: name of the first op that reads something else, where all ops are the same ("").
        remarks: what differs beside the ops.
    """

    changes: tuple[Change, ...]
    rewired: str = ""
    remarks: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes or self.rewired or self.remarks)

    def lines(self) -> list[str]:
        """Return the difference as lines, those of the forward if any.

        What is for the backward follows from the forward, and is only counted then.
        """
        ahead = [c for c in self.changes if c.phase is Phase.FORWARD]
        shown = ahead or list(self.changes)
        out = [*self.remarks, *(change.line() for change in shown[:_SHOWN])]
        if len(shown) > _SHOWN:
            out.append(f"and {sum(c.count for c in shown[_SHOWN:])} more ops elsewhere")
        behind = sum(c.count for c in self.changes) - sum(c.count for c in shown)
        if behind:
            out.append(f"and, following from these, {behind} ops for the backward")
        if self.rewired:
            out.append(f"the same ops, connected in another way from {self.rewired} on")
        return out


Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    out: dict[Key, list[Item]] = {}
    for item in items:
        out.setdefault(key(item), []).append(item)
    return out


def graph_difference(one: Problem, other: Problem) -> GraphDifference:
    """Return how the graph ``other`` differs from ``one``; falsy where both are the same.

    What tells graphs apart is what their digests cover: not names, prices or observations.
    """
    if one.digest == other.digest:
        return GraphDifference(())
    places = [
        _grouped(zip(p.ops, _sizes(p), strict=True), lambda pair: _place(pair[0]))
        for p in (one, other)
    ]
    found: list[tuple[Op, str, int | None, int | None]] = []
    for place in dict.fromkeys((*places[0], *places[1])):
        found += _changed(*(by_place.get(place, []) for by_place in places))
    changes = _collected(found)
    remarks = []
    if one.compiler != other.compiler:
        remarks.append(f"compiled by {other.compiler}, not by {one.compiler}")
    for which in ("forward_outputs", "backward_outputs"):
        counts = [len(getattr(p, which)) for p in (one, other)]
        if counts[0] != counts[1]:
            side = which.removesuffix("_outputs")
            remarks.append(f"the {side} returns {counts[1]} values, not {counts[0]}")
    rewired = "" if changes or remarks else _rewired(one, other)
    return GraphDifference(changes, rewired, tuple(remarks))


def _sizes(problem: Problem) -> list[int]:
    return [sum(problem.values[v].bytes for v in op.outputs) for op in problem.ops]


def _place(op: Op) -> tuple[str, str, Phase]:
    return (op.target, op.module, op.phase)


# What differs between two ops of one place, beside their sizes, in words.
_TOLD = {"rule": "may be saved or recomputed otherwise", "workspace": "other workspace"}
_COMPARED = [
    f.name for f in fields(Op) if f.name not in {"inputs", "outputs", "target", "phase"} | NO_MATTER
]


def _changed(
    ones: list[tuple[Op, int]], others: list[tuple[Op, int]]
) -> Iterator[tuple[Op, str, int | None, int | None]]:
    """Yield an op, what changed, and its bytes before and after, for the ops of one place."""
    for (a, before), (b, after) in zip(ones, others, strict=False):
        odd = [name for name in _COMPARED if getattr(a, name) != getattr(b, name)]
        if before != after:
            yield b, "other size", before, after
        elif odd:
            yield b, _TOLD.get(odd[0], f"other {odd[0]}"), before, after
    for a, before in ones[len(others) :]:
        yield a, "removed", before, None
    for b, after in others[len(ones) :]:
        yield b, "added", None, after


def _collected(found: Iterable[tuple[Op, str, int | None, int | None]]) -> tuple[Change, ...]:
    """Return changes with those of like modules as one, the weightiest first."""
    groups = _grouped(
        found, lambda f: (f[0].target, pattern(f[0].module), f[0].phase, f[1], f[2], f[3])
    )
    changes = [
        Change(target, module, phase, items[0][0].source, what, len(items), before, after)
        for (target, module, phase, what, before, after), items in groups.items()
    ]

    def weight(change: Change) -> tuple[bool, int]:
        size = abs((change.after or 0) - (change.before or 0))
        return (change.phase is not Phase.FORWARD, -change.count * size)

    return tuple(sorted(changes, key=weight))


def _rewired(one: Problem, other: Problem) -> str:
    """Return the first op at which two graphs of the same ops differ."""
    for a, b in zip(one.ops, other.ops, strict=False):
        if (_place(a), a.inputs, a.outputs) != (_place(b), b.inputs, b.outputs):
            return b.name
    return "the results"


@dataclass(frozen=True)
class Moved:
    """Ops alike that two plans of one graph treat differently.

    Attributes:
        target: what they call.
        module: path of their module, with ``*`` in the place of numbers.
        before: what the first plan does with each, such as "saved".
        after: what the second plan does.
        count: how many ops.
        bytes: how many more of their results' bytes the second plan saves.
        seconds: how much longer it takes to run them again, by their own prices.
    """

    target: str
    module: str
    before: str
    after: str
    count: int
    bytes: int
    seconds: float

    def line(self) -> str:
        """Return it as a line."""
        place = f" in {self.module}" if self.module else ""
        return (
            f"{self.count} x {self.target}{place}: {self.before} -> {self.after}, "
            f"{self.bytes / 2**20:+.2f} MiB saved, {self.seconds * 1e3:+.3f} ms"
        )


@dataclass(frozen=True)
class PlanDifference:
    """How one plan of a graph differs from another: bytes and seconds.

    Attributes:
        moved: what is treated differently, the most bytes first.
        reordered: nothing is, but something runs at another moment.
        peak: predicted peaks of both.
        added_seconds: what each adds to the cheapest plan without a budget.
    """

    moved: tuple[Moved, ...]
    reordered: bool
    peak: tuple[int, int]
    added_seconds: tuple[float, float]

    def __bool__(self) -> bool:
        return bool(self.moved) or self.reordered

    def lines(self) -> list[str]:
        """Return the difference as lines."""
        if not self:
            return ["the plans are the same"]
        (low, high), (less, more) = self.peak, self.added_seconds
        out = [
            f"peak: {units.size(low)} -> {units.size(high)} ({(high - low) / 2**20:+.2f} MiB)",
            f"added to a step: {less * 1e3:.3f} ms -> {more * 1e3:.3f} ms "
            f"({(more - less) * 1e3:+.3f} ms)",
        ]
        if self.reordered:
            return [*out, "both save and recompute the same, in another order"]
        out += [moved.line() for moved in self.moved[:_SHOWN]]
        if len(self.moved) > _SHOWN:
            rest = self.moved[_SHOWN:]
            size = sum(m.bytes for m in rest) / 2**20
            out.append(f"and {sum(m.count for m in rest)} ops more, {size:+.2f} MiB saved")
        return out


def plan_difference(problem: Problem, one: Plan, other: Plan) -> PlanDifference:
    """Return how the plan ``other`` of a problem differs from ``one``; falsy where it does not."""
    both = (decisions(problem, plan.schedule) for plan in (one, other))
    odd = [
        (op, before, after)
        for op, before, after in zip(problem.ops, *both, strict=True)
        if (before.choice, before.runs, before.bytes) != (after.choice, after.runs, after.bytes)
    ]
    groups = _grouped(odd, lambda o: (o[0].target, pattern(o[0].module), _told(o[1]), _told(o[2])))
    moved = [
        Moved(
            *key,
            len(items),
            sum(after.bytes - before.bytes for _, before, after in items),
            sum((after.runs - before.runs) * op.seconds for op, before, after in items),
        )
        for key, items in groups.items()
    ]
    return PlanDifference(
        tuple(sorted(moved, key=lambda m: (-abs(m.bytes), -abs(m.seconds)))),
        not moved and one.schedule != other.schedule,
        (one.peak, other.peak),
        (one.added_seconds, other.added_seconds),
    )


def _told(decision: Decision) -> str:
    """Return a decision in a word or two."""
    if decision.choice is not Choice.RECOMPUTED:
        return decision.choice.value
    again = f" {decision.runs - 1} times" if decision.runs > 2 else ""
    return f"recomputed{again}{' and saved' if decision.bytes else ''}"
