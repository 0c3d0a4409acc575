"""What a schedule does with each op and each byte, in words: the base of reports and dumps.

Example, for ``y = gelu(x @ w)`` of which ``gelu`` runs again in the backward::

    mm     saved        running it again costs 1.20 ms for 4.00 MiB
    gelu   recomputed   once more, 10.0 us for 4.00 MiB
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from recut.partitioners.evaluator import Instance, Timeline
from recut.partitioners.problem import Op, Phase, Problem, Rule
from recut.partitioners.schedule import Schedule
from recut.partitioners.units import duration, size


class Choice(StrEnum):
    """What becomes of an op's results."""

    SAVED = "saved"  # the forward keeps one of them for the backward
    RECOMPUTED = "recomputed"  # the op runs again in the backward
    DEFERRED = "deferred"  # only the backward needs it, and only the backward runs it
    DROPPED = "dropped"  # nothing of the backward reads it
    BACKWARD = "backward"  # it is the backward's own


# Reasons that follow from the choice: a listing gives them once.
PLAIN: Mapping[Choice, str] = {
    Choice.DEFERRED: "only the backward needs it",
    Choice.DROPPED: "the backward does not read it",
    Choice.BACKWARD: "it depends on a gradient of the outputs",
}


@dataclass(frozen=True)
class Decision:
    """What a schedule does with one op.

    Attributes:
        choice: what becomes of its results; RECOMPUTED also where a result is saved as well.
        runs: how often it runs in forward and backward together.
        bytes: of its results that are saved.
        reason: why.
    """

    choice: Choice
    runs: int
    bytes: int
    reason: str

    @property
    def is_plain(self) -> bool:
        """Whether the choice says the reason already."""
        return self.reason == PLAIN.get(self.choice)


class Use(StrEnum):
    """What an instance in memory is for."""

    SAVED = "saved"  # made by the forward, read by the backward
    RECOMPUTED = "recomputed"  # made again by the backward
    TEMPORARY = "temporary"  # made and gone within forward or backward
    GRADIENT = "gradients"  # returned by the backward
    OUTPUT = "outputs"  # returned by the forward
    INPUT = "copies of inputs"  # made by the compiler, in another layout
    WORKSPACE = "workspace"  # what library calls allocate while they run


def decisions(problem: Problem, schedule: Schedule) -> tuple[Decision, ...]:
    """Return what a schedule does with each op of a problem."""
    forward, backward = Counter(schedule.forward), Counter(schedule.backward)
    saved = frozenset(schedule.saved(problem))
    return tuple(
        _decision(problem, op, forward[i], backward[i], saved) for i, op in enumerate(problem.ops)
    )


def _decision(
    problem: Problem, op: Op, forward: int, backward: int, saved: frozenset[int]
) -> Decision:
    runs = forward + backward
    kept = sum(problem.values[v].bytes for v in op.outputs if v in saved)
    if op.phase is Phase.BACKWARD:
        return Decision(Choice.BACKWARD, runs, 0, PLAIN[Choice.BACKWARD])
    made = sum(problem.values[v].bytes for v in op.outputs)
    price = f"{duration(op.seconds)} for {size(made)}"
    if forward and backward:
        rule = op.reason if op.rule is Rule.MUST_RECOMPUTE else f"{_times(backward)}, {price}"
        return Decision(Choice.RECOMPUTED, runs, kept, rule)
    if backward:
        return Decision(Choice.DEFERRED, runs, 0, PLAIN[Choice.DEFERRED])
    if any(v in saved for v in op.outputs):
        why = op.reason if op.rule is Rule.MUST_SAVE else f"running it again costs {price}"
        return Decision(Choice.SAVED, runs, kept, why)
    return Decision(Choice.DROPPED, runs, 0, PLAIN[Choice.DROPPED])


@dataclass(frozen=True)
class Group:
    """Ops alike that a schedule treats alike.

    Attributes:
        choice: what becomes of their results.
        target: what they call.
        module: path of their module, with ``*`` in the place of numbers.
        source: the user's source line of the first of them.
        ops: how many.
        again: how often the backward runs them, all together, where the forward has run them.
        bytes: of their results that are saved.
        seconds: what running them again takes, by their own prices.
        reason: why, of the first of them.
    """

    choice: Choice
    target: str
    module: str
    source: str
    ops: int
    again: int
    bytes: int
    seconds: float
    reason: str


def groups(problem: Problem, made: Sequence[Decision], choice: Choice) -> tuple[Group, ...]:
    """Return the ops that are treated so, the most seconds first, then the most bytes.

    Args:
        problem: the problem.
        made: what is decided of each op (:func:`decisions`).
        choice: which of them to return.
    """
    found: dict[tuple[str, str], list[tuple[Op, Decision]]] = {}
    for op, decision in zip(problem.ops, made, strict=True):
        if decision.choice is choice:
            found.setdefault((op.target, pattern(op.module)), []).append((op, decision))
    out = []
    for (target, module), items in found.items():
        first, why = items[0]
        again = sum(decision.runs - 1 for _, decision in items)
        seconds = sum((decision.runs - 1) * op.seconds for op, decision in items)
        size = sum(decision.bytes for _, decision in items)
        out.append(
            Group(
                choice, target, module, first.source, len(items), again, size, seconds, why.reason
            )
        )
    return tuple(sorted(out, key=lambda g: (-g.seconds, -g.bytes, g.target, g.module)))


def pattern(module: str) -> str:
    """Return ``blocks.*.attn`` for ``blocks.3.attn``: what repeated modules have in common."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module)


def _times(count: int) -> str:
    return "once more" if count == 1 else f"{count} times more"


def use_of(problem: Problem, timeline: Timeline, instance: Instance) -> Use:
    """Return what an instance of a timeline is in memory for."""
    value = problem.values[instance.value]
    if value.producer < 0:
        return Use.INPUT
    if instance.end >= len(timeline.live):  # returned, and so alive to the end
        returned = instance.value in problem.forward_outputs
        return Use.OUTPUT if returned and instance.start < timeline.split else Use.GRADIENT
    if instance.start < timeline.split:
        return Use.SAVED if instance.end >= timeline.split else Use.TEMPORARY
    # What only the backward needs is made there for the first time.
    again = problem.ops[value.producer].phase is Phase.FORWARD
    return Use.RECOMPUTED if again else Use.TEMPORARY


def memory(problem: Problem, schedule: Schedule, timeline: Timeline) -> dict[Use, Sequence[int]]:
    """Return by use the bytes that are alive at each moment of a timeline.

    They add up to ``timeline.live`` but for what ops write over an input that dies with them, which
    is taken from what is temporary, or from the largest use where that is not enough.
    """
    count = len(timeline.live)
    change = {use: [0] * (count + 1) for use in Use}
    for instance in timeline.instances:
        if instance.bytes:
            steps = change[use_of(problem, timeline, instance)]
            steps[max(instance.start, 0)] += instance.bytes
            steps[min(instance.end + 1, count)] -= instance.bytes
    out = {}
    for use, steps in change.items():
        total, series = 0, []
        for step in steps[:count]:
            total += step
            series.append(total)
        out[use] = series
    for t, i in enumerate((*schedule.forward, *schedule.backward)):
        out[Use.WORKSPACE][t] = problem.ops[i].workspace
        excess = sum(series[t] for series in out.values()) - timeline.live[t]
        for use in (Use.TEMPORARY, *sorted(Use, key=lambda use: -out[use][t])):
            taken = min(excess, out[use][t])
            out[use][t] -= taken
            excess -= taken
    return {use: series for use, series in out.items() if any(series)}
