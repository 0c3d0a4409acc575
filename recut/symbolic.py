"""A model traced once for all its sizes, and what it needs at each of them without tracing again.

The inputs at two sizes say which of their dimensions grow, and how. A graph whose dimensions are
symbols there is planned at any size by putting numbers in the place of symbols
(``partitioners/sizes.py``), and the formula of such a plan's peak says what it holds elsewhere.
Both are of one graph: a model may be traced otherwise at another size, so what is told here is
where to look, and a plan of the graph at that size decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from recut.fit import Sizes
from recut.partitioners.sizes import PeakFormula, peak_formula, resized
from recut.planning import Traced
from recut.trace import Call, Dynamic

# How often a graph is planned at the size where the formulas so far meet the budget.
_ROUNDS = 4


@dataclass(frozen=True)
class Dimension:
    """A dimension of an input that grows along a line: ``size`` at ``at``, and so much for one."""

    at: int
    size: int
    slope: Fraction

    def __call__(self, at: int) -> int:
        """Return it at another size."""
        return int(self.size + self.slope * (at - self.at))


@dataclass
class Symbolic:
    """What the sizes of a model need, by one graph whose sizes are symbols.

    Attributes:
        traced: the graph, with symbolic sizes.
        symbols: which dimension each symbol of it is.
        seconds: what its planner may take for a plan.
    """

    traced: Traced
    symbols: Mapping[str, Dimension]
    seconds: float
    _formulas: list[PeakFormula] = field(default_factory=list)
    _needs: dict[int, int] = field(default_factory=dict)

    def at(self, size: int) -> dict[str, int]:
        """Return what the symbols stand for at a size."""
        return {symbol: dimension(size) for symbol, dimension in self.symbols.items()}

    def need(self, size: int) -> int:
        """Return the least bytes of a plan for the graph at a size."""
        if size not in self._needs:
            problem = resized(self.traced.problem, self.at(size))
            plan = Traced(problem, self.traced.machine, self.traced.name, None)
            leanest = plan.planner(self.seconds).floor_plan()
            self._needs[size] = leanest.peak
            self._formulas.append(peak_formula(problem, leanest.schedule))
        return self._needs[size]

    def expected(self, size: int) -> int:
        """Return what the leanest of the plans so far holds at a size, bytes."""
        return min(formula.at(self.at(size)) for formula in self._formulas)

    def look(self, sizes: Sizes, budget: int) -> None:
        """Plan where the budget is met, so that what is expected is right there."""
        size = sizes.size(sizes.count // 2)
        for _ in range(_ROUNDS):
            self.need(size)
            low, high = 0, sizes.count
            while low < high:  # the first that is expected not to fit
                middle = (low + high) // 2
                fits = self.expected(sizes.size(middle)) <= budget
                low, high = (middle + 1, high) if fits else (low, middle)
            size = sizes.size(min(low, sizes.count - 1))
            if size in self._needs:
                break

    def surely_over(self, size: int, budget: int, traced: Mapping[int, int]) -> int | None:
        """Return what a size needs if that is over the budget beyond doubt, without tracing it.

        Args:
            size: the size.
            budget: bytes.
            traced: what was found by tracing, by size; how far this graph is off there is its
                doubt.
        """
        if not traced:
            return None
        doubt = max(abs(self.need(other) - found) for other, found in traced.items())
        return self.need(size) if self.need(size) - doubt > budget else None


def symbolic(
    sizes: Sizes,
    made: Callable[[int], Call],
    traced: Callable[[Call, Dynamic], Traced],
    seconds: float,
    small: bool = False,
) -> Symbolic | str:
    """Trace a model once for all its sizes; returns why not where that cannot be done.

    Args:
        sizes: the sizes.
        made: returns the model and its inputs at a size.
        traced: traces them with some dimensions as symbols.
        seconds: what a planner may take for a plan.
        small: trace the smallest size, and not one in the middle.
    """
    near = sizes.first if small else math.isqrt(sizes.first * sizes.last)
    k = (near - sizes.first) // sizes.step
    k += sizes.size(k) == 1  # torch takes a dimension of 1 for a constant
    if k >= sizes.count or sizes.count < 2:
        return "there is but one size"
    size, other = sizes.size(k), sizes.size(k - 1 if k else k + 1)
    call = made(size)
    growing = _growing(call, size, made(other), other)
    if isinstance(growing, str):
        return growing
    found = traced(call, {leaf: tuple(dims) for leaf, dims in growing.items()})
    lines = {line for dims in growing.values() for line in dims.values()}
    by_size = {line.size: line for line in lines}
    if len(by_size) < len(lines):  # torch takes what is equal for one symbol
        return "dimensions that are equal at one size differ at another"
    symbols = {s.symbol: by_size[s.hint] for s in found.problem.sizes if s.hint in by_size}
    if not symbols or len(symbols) < len(found.problem.sizes):
        return "its graph takes the size as a constant"
    guide = Symbolic(found, symbols, seconds)
    try:
        resized(found.problem, guide.at(sizes.first))  # if any, the smallest is none of the graph's
    except ValueError as error:
        return str(error)
    return guide


def _growing(call: Call, size: int, other: Call, at: int) -> dict[int, dict[int, Dimension]] | str:
    """Return by leaf and number the dimensions of a call's inputs that differ from another's."""
    ones, others = call.inputs(), other.inputs()
    if len(ones) != len(others) or not all(map(_alike, ones, others)):
        return "its inputs differ in more than dimensions"
    if _own_shapes(call) != _own_shapes(other):
        return "its parameters or buffers differ"
    found: dict[int, dict[int, Dimension]] = {}
    for leaf, (one, two) in enumerate(zip(ones, others, strict=True)):
        if isinstance(one, torch.Tensor):
            for dim, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)):
                if a != b:
                    line = Dimension(size, int(a), Fraction(int(b) - int(a), at - size))
                    found.setdefault(leaf, {})[dim] = line
    return found or "no dimension of its inputs changes with the size"


def _own_shapes(call: Call) -> list[torch.Size]:
    model = call.model
    if not isinstance(model, nn.Module):
        return []
    return [t.shape for t in (*model.parameters(), *model.buffers())]


def _alike(one: Any, other: Any) -> bool:
    """Return whether two inputs are of one kind, and equal but for a tensor's sizes."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.dim() == other.dim()
    return type(one) is type(other) and bool(one == other)


__all__ = ["Dimension", "Symbolic", "symbolic"]
