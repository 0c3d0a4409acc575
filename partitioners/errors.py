"""What planning can refuse, one class per cause: cause, place, remedy."""

from __future__ import annotations

from dataclasses import dataclass


class PlanningError(Exception):
    """Base of everything that planning refuses."""


class InvalidSchedule(PlanningError):  # noqa: N818 - reads as the statement it makes
    """A schedule reads a value that does not exist at that moment, or breaks a constraint."""


class ForeignPlan(PlanningError):  # noqa: N818 - reads as the statement it makes
    """A plan was made for another Problem than the one it is applied to."""


# How many values an error lists one by one.
_SHOWN = 8


@dataclass(frozen=True)
class Culprit:
    """One value that is live at a moment that a budget cannot hold.

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


@dataclass(frozen=True)
class Proof:
    """What every plan holds at one moment, whatever it saves and recomputes.

    Attributes:
        bytes: all of it, in bytes, the op's workspace included.
        name: name of the op that runs then.
        op: what it calls.
        source: the user's source line, or the empty string where none is known.
        held: what is in memory, largest first.
    """

    bytes: int
    name: str
    op: str
    source: str
    held: tuple[Culprit, ...]


class InfeasibleBudget(PlanningError):  # noqa: N818 - the name is part of the public contract
    """No plan fits the budget.

    Attributes:
        budget: the budget that was asked for, in bytes.
        floor: the lowest budget that a plan was found for, in bytes.
        culprits: what is live at the worst moment of the floor plan, largest first.
        proof: the most that every plan holds at once; None where nothing was proven, and where
            compiled code was seen to hold less than the plans' count.
    """

    def __init__(
        self, budget: int, floor: int, culprits: tuple[Culprit, ...], proof: Proof | None = None
    ) -> None:
        self.budget = budget
        self.floor = floor
        self.culprits = culprits
        self.proof = proof if proof is not None and proof.bytes <= floor else None
        lines = [
            f"memory budget of {mib(budget)} cannot be met: the lowest feasible budget of this "
            f"graph is {mib(floor)}.",
            "Set RECUT_MEMORY_BUDGET (or options={'memory_budget': ...}) to that or more, or "
            "shrink what is live at the worst moment:",
            *_listed(culprits),
        ]
        if self.proof is not None:
            lines += _told(self.proof, culprits)
        super().__init__("\n".join(lines))

    def with_floor(self, floor: int) -> InfeasibleBudget:
        """Return the error with another floor (bytes)."""
        return InfeasibleBudget(self.budget, floor, self.culprits, self.proof)


def _told(proof: Proof, culprits: tuple[Culprit, ...]) -> list[str]:
    """Return a proof as lines; what the culprits have told already is not told again."""
    place = f" at {proof.source}" if proof.source else ""
    known = {c.name for c in culprits}
    new = () if known.issuperset(c.name for c in proof.held) else proof.held
    return [
        f"No plan can do with less than {mib(proof.bytes)}: that much is in memory while "
        f"{proof.name} = {proof.op}{place} runs, whatever is saved{':' if new else '.'}",
        *_listed(new),
    ]


def _listed(culprits: tuple[Culprit, ...]) -> list[str]:
    """Return the largest of some culprits, a line for each, and what the others add up to."""
    places = (f" at {c.source}" if c.source else "" for c in culprits)
    shown = zip(culprits[:_SHOWN], places, strict=False)
    lines = [f"  {mib(c.bytes):>28}  {c.name} = {c.op}{place}: {c.why}" for c, place in shown]
    totals: dict[str, tuple[int, int]] = {}
    for c in culprits[_SHOWN:]:
        count, size = totals.get(c.why, (0, 0))
        totals[c.why] = (count + 1, size + c.bytes)
    for why, (count, size) in sorted(totals.items(), key=lambda item: (-item[1][1], item[0])):
        lines.append(f"  {mib(size):>28}  {count} more: {why}")
    return lines
