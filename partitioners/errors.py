"""What planning can refuse, one class per cause: cause, place, remedy."""

from __future__ import annotations

from dataclasses import dataclass


class PlanningError(Exception):
    """Base of everything that planning refuses."""


class InvalidSchedule(PlanningError):  # noqa: N818 - reads as the statement it makes
    """A schedule reads a value that does not exist at that moment, or breaks a constraint."""


class ForeignPlan(PlanningError):  # noqa: N818 - reads as the statement it makes
    """A plan was made for another Problem than the one it is applied to."""


@dataclass(frozen=True)
class Culprit:
    """One value that is live at the worst moment of the floor plan.

    Attributes:
        name: name of the value in the joint graph.
        bytes: its size in bytes.
        op: the operation that makes it.
        source: the user's source line, or the empty string where none is known.
        why: why it is live at that moment.
    """

    name: str
    bytes: int
    op: str
    source: str
    why: str


def mib(size: int) -> str:
    """Return ``size`` (bytes) as text in MiB, with the exact bytes beside it."""
    return f"{size / 2**20:.2f} MiB ({size} bytes)"


class InfeasibleBudget(PlanningError):  # noqa: N818 - the name is part of the public contract
    """No plan fits the budget.

    Attributes:
        budget: the budget that was asked for, in bytes.
        floor: the lowest budget that a plan was found for, in bytes.
        culprits: what is live at the worst moment of the floor plan, largest first.
    """

    def __init__(self, budget: int, floor: int, culprits: tuple[Culprit, ...]) -> None:
        self.budget = budget
        self.floor = floor
        self.culprits = culprits
        lines = [
            f"memory budget of {mib(budget)} cannot be met: the lowest feasible budget of this "
            f"graph is {mib(floor)}.",
            "Set RECUT_MEMORY_BUDGET (or options={'memory_budget': ...}) to that or more, or "
            "shrink what is live at the worst moment:",
        ]
        for c in culprits[:8]:
            place = f" at {c.source}" if c.source else ""
            lines.append(f"  {mib(c.bytes):>28}  {c.name} = {c.op}{place}: {c.why}")
        super().__init__("\n".join(lines))
