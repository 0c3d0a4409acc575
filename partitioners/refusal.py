"""Why a budget cannot be met: what a floor plan, and any plan, holds at its worst moment."""

from __future__ import annotations

from collections.abc import Iterable

from recut.partitioners.errors import Culprit, Proof
from recut.partitioners.evaluator import evaluate
from recut.partitioners.needs import Need
from recut.partitioners.problem import Op, Problem
from recut.partitioners.schedule import Schedule


def culprits(problem: Problem, schedule: Schedule) -> tuple[Culprit, ...]:
    """Return what is live at a schedule's worst moment, largest first."""
    line = evaluate(problem, schedule)
    moment = line.worst
    now = problem.ops[(schedule.forward + schedule.backward)[moment]]
    found = []
    for inst in line.at(moment):
        if inst.start == moment:
            why = "made at the worst moment"
        elif inst.end == moment:
            why = f"read at the worst moment by {now.name}"
        elif inst.end >= len(line.live):
            why = "returned by the step"
        elif inst.start < line.split <= inst.end:
            why = f"saved for the backward{_rule(problem, inst.value)}"
        else:
            why = "needed again later"
        found.append(_culprit(problem, inst.value, inst.bytes, why))
    return _sorted([*found, *_workspace(now, now.workspace)])


def proof(problem: Problem, need: Need) -> Proof:
    """Return what every plan holds while an op runs."""
    op = problem.ops[need.op]
    returned = {*problem.forward_outputs, *problem.backward_outputs}
    found = []
    for v in need.values:
        if v in op.outputs:
            why = "made by it"
        elif v in op.inputs:
            why = "read by it"
        elif v in returned:
            why = "returned by the step"
        else:
            why = f"needed again later{_rule(problem, v)}"
        found.append(_culprit(problem, v, problem.values[v].bytes, why))
    held = _sorted([*found, *_workspace(op, op.workspace - op.observed)])
    return Proof(need.bytes, op.name, op.target, op.source, held)


def _sorted(found: Iterable[Culprit]) -> tuple[Culprit, ...]:
    return tuple(sorted(found, key=lambda c: (-c.bytes, c.name)))


def _rule(problem: Problem, v: int) -> str:
    """Return why a value has to be saved, in brackets; nothing where it does not."""
    producer = problem.values[v].producer
    reason = problem.ops[producer].reason if producer >= 0 else ""
    return f" ({reason})" if reason else ""


def _workspace(op: Op, size: int) -> list[Culprit]:
    """Return an op's workspace as a part of what a budget cannot hold, if it has any."""
    why = "allocated by it while it runs"
    return [Culprit(op.name, size, op.target, op.source, why)] if size else []


def _culprit(problem: Problem, v: int, size: int, why: str) -> Culprit:
    """Return a value as a part of what a budget cannot hold."""
    value = problem.values[v]
    if value.producer < 0:
        why = "made of or for an input: a copy in another layout, or the loss's gradient"
        return Culprit(value.name, size, "an input", "", why)
    op = problem.ops[value.producer]
    return Culprit(value.name, size, op.target, op.source, why)
