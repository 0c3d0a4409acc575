"""The certificate of a plan: what every plan under its budget adds at least.

Each moment gives a bound of its own (``bound.py``): the end of the forward one for every order of
the backward, and each of the backward's own ops one for this order. Those of the fullest moments
say most. Of a small problem several are asked, in whole numbers, and so is what the exact tier has
proven (``exact.py``).
"""

from __future__ import annotations

from functools import cached_property

from recut.partitioners.bound import seconds_bound
from recut.partitioners.evaluator import Liveness
from recut.partitioners.needs import Need, Needs
from recut.partitioners.problem import Problem
from recut.partitioners.programs import SMALL

# What adds no more than this share over the bound is proven.
_PROVEN = 1e-5
# Moments of each kind that bounds of a small problem are made for.
_MOMENTS = 4


class Certificate:
    """What plans for a problem add at least, in the terms of ``Plan.added_seconds``.

    Args:
        problem: the problem.
        lives: the liveness of the fastest plan.
        least: what recomputing and saving take at least, whatever memory it needs, in seconds.
    """

    def __init__(self, problem: Problem, lives: Liveness, least: float) -> None:
        self.problem = problem
        self.needs = Needs(problem)
        self._lives = lives
        self._least = least
        self._bounds: dict[tuple[int, int | None, bool], float] = {}
        self._exact: dict[int, float] = {}

    def bounds(self, budget: int) -> tuple[float, float]:
        """Return what any plan under ``budget`` bytes adds: in the backward's order, and in any."""
        any_order = self._bound(budget, None)
        in_order = self._bound(budget, self._full[0]) if self._full else any_order
        return max(any_order, in_order), any_order

    def proven(self, budget: int, added: float) -> tuple[float, float]:
        """Return what :meth:`bounds` does, sharper for a small problem: for what a plan adds.

        Args:
            budget: bytes.
            added: what the plan adds; no more is done than needed to prove that.
        """
        in_order, any_order = self.bounds(budget)
        if len(self.problem.ops) > SMALL:
            return in_order, any_order
        for need in (None, *self._full):
            if in_order >= added * (1 - _PROVEN):
                break
            bound = self._bound(budget, need, whole=True)
            in_order = max(in_order, bound, self._exact.get(budget, 0.0))
            any_order = max(any_order, bound) if need is None else any_order
        return in_order, any_order

    def is_least(self, budget: int, added: float) -> bool:
        """Return whether no plan under ``budget`` bytes adds less, as far as that is proven."""
        return self.proven(budget, added)[0] >= added * (1 - _PROVEN)

    def prove(self, budget: int, seconds: float) -> None:
        """Take note of what the exact tier has proven: what recomputing and saving take."""
        self._exact[budget] = max(self._exact.get(budget, 0.0), seconds - self._least)

    def _bound(self, budget: int, need: Need | None, whole: bool = False) -> float:
        key = (budget, None if need is None else need.op, whole)
        if key not in self._bounds:
            seconds = seconds_bound(self.problem, budget, need, whole)
            self._bounds[key] = max(0.0, seconds - self._least)
        return self._bounds[key]

    @cached_property
    def _full(self) -> list[Need]:
        """The needs of some ops of the backward: of the one first where the fastest plan is full.

        Behind those at which it holds most stand those at which every plan does.
        """
        lives, needs = self._lives, self.needs
        split = lives.split
        order = lives.trace.order[split:].tolist()
        live = dict(zip(order, lives.live[split:].tolist(), strict=True))
        first = len(self.problem.forward_order)
        places = [p for p in range(first, len(needs.order)) if needs.moments[p]]
        fullest = sorted(places, key=lambda p: -live[int(needs.order[p])])[:_MOMENTS]
        needed = sorted(places, key=lambda p: -int(needs.bytes[p]))[:_MOMENTS]
        return [needs.at(p) for p in dict.fromkeys((*fullest, *needed))]


__all__ = ["Certificate"]
