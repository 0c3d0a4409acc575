"""Structural checks of the emitted graphs: every promise of the Plan recounted on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from recut.partitioners.errors import InvalidSchedule
from recut.partitioners.plan import Plan
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule

_DEFECT = "this is a defect of recut, please report it"


def verify(
    problem: Problem,
    plan: Plan,
    emitted: Mapping[str, int],
    forward: fx.GraphModule,
    backward: fx.GraphModule,
) -> None:
    """Check that the two graphs run the plan's schedule, op by op, and nothing else.

    Since the sequences are the schedule's own, the evaluator's peak holds for them too.

    Args:
        problem: the problem that was planned.
        plan: the plan.
        emitted: op index by the name of each node that stands for an entry of the schedule.
        forward: the emitted forward.
        backward: the emitted backward.

    Raises:
        InvalidSchedule: an entry is missing, doubled or out of its order.
    """
    found = []
    for name, wanted, module in (
        ("forward", plan.schedule.forward, forward),
        ("backward", plan.schedule.backward, backward),
    ):
        module.graph.lint()
        calls = (n for n in module.graph.nodes if n.op == "call_function")
        have = [emitted[n.name] for n in calls if n.name in emitted]
        _compare(problem, name, wanted, have)
        found.append(tuple(have))
    plan.check(problem)
    Schedule(found[0], found[1]).check(problem)


def _compare(problem: Problem, name: str, wanted: Sequence[int], have: Sequence[int]) -> None:
    if list(wanted) == list(have):
        return
    k = next(
        (k for k, (a, b) in enumerate(zip(wanted, have, strict=False)) if a != b),
        min(len(wanted), len(have)),
    )
    expected = problem.ops[wanted[k]].name if k < len(wanted) else "the end"
    actual = problem.ops[have[k]].name if k < len(have) else "the end"
    raise InvalidSchedule(
        f"entry {k} of the emitted {name} is {actual}, but its schedule wants {expected} "
        f"({len(have)} entries for {len(wanted)}); {_DEFECT}"
    )
