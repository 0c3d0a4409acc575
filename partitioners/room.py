"""What a schedule leaves of its budget: recomputations are dropped where their results fit.

A program knows a few moments of its base, and its answers are rounded. The base itself is known at
every moment: how much room there is, and what it takes to drop a recomputation, whose results stay
in memory from where they are made before to where they were made again. So recomputations are
dropped one after the other, each with all that runs for it alone, as long as they fit; what all of
that holds together the evaluator says. Which comes first decides, and no order is always the best:
the dearest, the dearest for its bytes, or what lies between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recut.partitioners.again import Again
from recut.partitioners.evaluator import Liveness, measure
from recut.partitioners.frontier import Candidate
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule
from recut.partitioners.tables import Floats, Ints

# What is spared is divided by its bytes to the power of one of these.
_EXPONENTS = (0.0, 0.5, 1.0)
# How often what is left of a budget is looked at anew.
_ROUNDS = 3
# How many schedules are measured where what was chosen does not fit together.
_TRIES = 6


@dataclass(frozen=True)
class _Offer:
    """A recomputation that may be dropped.

    Attributes:
        instances: what it makes; carried from before then.
        spans: for each of these the moments at which it is in memory besides, and its bytes.
        gone: the moments of what runs no more: of the recomputation and what runs for it alone.
        seconds: what that spares.
        saving: what it takes to save its results, of which ``seconds`` is less.
        bytes: what it makes, all together.
    """

    instances: list[int]
    spans: list[tuple[int, int, int]]
    gone: list[int]
    seconds: float
    saving: float
    bytes: int


@dataclass(frozen=True)
class Choice:
    """Recomputations to drop from a base.

    Attributes:
        seconds: what the schedule takes then to recompute and to save, if all of it fits.
        offers: the recomputations, in the order of their choosing.
    """

    seconds: float
    offers: list[_Offer]


class Base:
    """A schedule and what dropping its recomputations would spare and take.

    Args:
        problem: the problem.
        schedule: the schedule.
        lives: its liveness.
    """

    def __init__(self, problem: Problem, schedule: Schedule, lives: Liveness) -> None:
        self.problem = problem
        self.schedule = schedule
        self.lives = lives

    @property
    def candidate(self) -> Candidate:
        """The schedule itself."""
        return Candidate(self.lives.peak, self._seconds, self.schedule)

    @cached_property
    def _seconds(self) -> float:
        return self.schedule.seconds(self.problem)

    @cached_property
    def _again(self) -> Again:
        return Again(self.problem, self.lives)

    @cached_property
    def _price(self) -> list[float]:
        """What each moment's recomputation takes, seconds."""
        price: list[float] = self._again.seconds.tolist()
        return price

    @cached_property
    def _offers(self) -> list[_Offer]:
        """Return the recomputations that may be dropped."""
        again, lives, tables = self._again, self.lives, self.problem.tables
        before = again.previous
        # What runs inside its readers is in memory from its making to its last reading if it stays.
        inside = lives.bytes == 0
        since = np.where(inside[before], lives.start[before], lives.end[before] + 1)
        since = np.where(before >= 0, np.maximum(since, 0), 0)
        until = np.where(inside, lives.end, again.entry - 1)
        size = tables.bytes[lives.value]
        spans = list(zip(since.tolist(), until.tolist(), size.tolist(), strict=True))
        from_forward = again.before < 0
        barred = (from_forward & tables.never_saved[lives.value]).tolist()
        saving = np.where(from_forward, tables.save[lives.value], 0.0).tolist()
        offers = []
        for entry, gone in self._gone().items():
            made = again.makes[entry]
            cost = sum(saving[i] for i in made)
            seconds = sum(self._price[k] for k in gone) - cost
            if seconds > 0 and not any(barred[i] for i in made):
                taken = [spans[i] for i in made]
                offers.append(_Offer(made, taken, gone, seconds, cost, sum(x[2] for x in taken)))
        return offers

    def _gone(self) -> dict[int, list[int]]:
        """Return for each recomputation the moments of what runs no more where it is dropped."""
        again = self._again
        # What is made again later stays where it is made: that may be carried from there.
        readers = (again.readers + again.needed + again.passed_on).tolist()
        entry = again.entry.tolist()
        gone = {}
        for first in again.makes:
            left: dict[int, int] = {}  # how many readers remain
            found = [first]
            for at in found:
                for instance in again.reads.get(at, ()):
                    left[instance] = left.get(instance, readers[instance]) - 1
                    source = entry[instance]
                    if not any(left.get(i, readers[i]) for i in again.makes[source]):
                        found.append(source)
            gone[first] = found
        return gone

    def choice(self, budget: int) -> Choice:
        """Return which recomputations are best dropped together, as far as their room tells.

        Args:
            budget: bytes, no less than the schedule's peak.
        """
        choices = (self._choice(budget, exponent) for exponent in _EXPONENTS)
        return min(choices, key=lambda choice: choice.seconds)

    def _choice(self, budget: int, exponent: float) -> Choice:
        room = budget - self.lives.live
        chosen: dict[int, _Offer] = {}
        gone: set[int] = set()
        for k in np.argsort(-self._worth(exponent), kind="stable").tolist():
            offer = self._offers[k]
            first = offer.gone[0]
            if first in gone or not _fits(offer, room):
                continue
            chosen[first] = offer
            _take(room, offer.spans)
            for entry in offer.gone[1:]:
                if entry in chosen:  # nothing reads that any more
                    _take(room, chosen.pop(entry).spans, -1)
            gone.update(offer.gone)
        spared = sum(self._price[k] for k in sorted(gone))
        saved = sum(offer.saving for offer in chosen.values())
        return Choice(self._seconds - spared + saved, list(chosen.values()))

    def _worth(self, exponent: float) -> Floats:
        seconds = np.array([offer.seconds for offer in self._offers])
        size = np.array([max(offer.bytes, 1) for offer in self._offers], dtype=np.float64)
        worth: Floats = seconds / size**exponent
        return worth

    def without(self, choice: Choice, budget: int) -> Base | None:
        """Return the schedule without what was chosen, or without the first of it that fits.

        Args:
            choice: what to drop.
            budget: bytes.
        """
        count = len(choice.offers)
        fits, fails = 0, count + 1
        best = None
        for _ in range(_TRIES):
            if fails - fits <= 1:
                break
            carried = [i for offer in choice.offers[:count] for i in offer.instances]
            schedule = self._again.carrying(np.array(carried, dtype=np.int64))
            lives = measure(self.problem, schedule)
            if lives.peak <= budget:
                fits, best = count, Base(self.problem, schedule, lives)
            else:
                fails = count
            count = (fits + fails) // 2
        return best


def _fits(offer: _Offer, room: Ints) -> bool:
    """Return whether an offer's results fit into the room at each moment."""
    return all(
        first > last or int(room[first : last + 1].min()) >= size
        for first, last, size in offer.spans
    )


def _take(room: Ints, spans: Iterable[tuple[int, int, int]], times: int = 1) -> None:
    """Take some bytes of the room."""
    for first, last, size in spans:
        room[first : last + 1] -= times * size


def filled(base: Base, budget: int) -> Base:
    """Return a schedule with fewer recomputations within a budget, or the base.

    Args:
        base: the schedule.
        budget: bytes, no less than the schedule's peak.
    """
    for _ in range(_ROUNDS):
        found = base.without(base.choice(budget), budget)
        if found is None or found.candidate.seconds >= base.candidate.seconds:
            break
        base = found
    return base


__all__ = ["Base", "Choice", "filled"]
