"""Which is the largest size that still fits: a search that asks as seldom as it can.

The least memory of a step grows with the batch and the length, mostly along a line or a parabola,
and asking for it means tracing and planning a model. So the next size to ask for is where the
parabola through the three nearest known sizes meets the budget, between the largest that fits and
the smallest that does not. Where somebody can tell what a size is expected to need
(:mod:`recut.symbolic`), that takes the place of the parabola. Where neither ends the search,
halving does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from recut.errors import SettingError

# Sizes that are asked for by a curve, before the rest is halved.
_DRAWN = 8

# Returns the least bytes that a step of this size needs.
Needs = Callable[[int], int]


@dataclass(frozen=True)
class Sizes:
    """The sizes to choose from: ``first``, ``first + step``, ... up to ``last``.

    Attributes:
        name: what the size is of: a keyword of the factory.
        first: the smallest.
        last: the largest.
        step: the distance between two.
    """

    name: str
    first: int
    last: int
    step: int = 1

    @property
    def count(self) -> int:
        """How many there are."""
        return (self.last - self.first) // self.step + 1

    def size(self, k: int) -> int:
        """Return the k-th."""
        return self.first + k * self.step

    @classmethod
    def read(cls, text: str) -> Sizes:
        """Read ``batch=1..64`` or ``length=512..65536:512``.

        Raises:
            SettingError: it is something else.
        """
        name, _, rest = text.partition("=")
        span, colon, step = rest.partition(":")
        first, dots, last = span.partition("..")
        numbers = [first, last, step] if colon else [first, last]
        if not name.isidentifier() or not dots or not all(n.isdecimal() for n in numbers):
            raise SettingError(
                "size", text, "no range of sizes",
                "give a keyword of the function and a range, such as batch=1..64 or "
                "length=512..65536:512",
            )  # fmt: skip
        found = cls(name, int(first), int(last), int(step) if colon else 1)
        if found.first < 1 or found.last < found.first or found.step < 1:
            raise SettingError(
                "size", text, "an empty range", "give the smaller size first, at least 1"
            )
        return found


@dataclass(frozen=True)
class Fit:
    """What a search has found.

    Attributes:
        size: the largest size that fits; None where not even the first does.
        asked: the least bytes by size, as far as it was asked for.
        bounded: a larger size was seen not to fit.
    """

    size: int | None
    asked: dict[int, int]
    bounded: bool


def largest(sizes: Sizes, budget: int, needs: Needs, expected: Needs | None = None) -> Fit:
    """Return the largest of some sizes whose least memory is within a budget.

    The least memory is taken to grow with the size.

    Args:
        sizes: what to choose from.
        budget: bytes.
        needs: the least bytes that a step needs.
        expected: the same, as far as it can be told without asking.
    """
    asked: dict[int, int] = {}
    low, high = -1, sizes.count  # low fits, or is before the first; high does not, or is past all
    while high - low > 1:
        k = _next(sizes, budget, asked, low, high, expected)
        size = sizes.size(k)
        asked[size] = needs(size)
        low, high = (k, high) if asked[size] <= budget else (low, k)
    return Fit(sizes.size(low) if low >= 0 else None, asked, high < sizes.count)


def _next(
    sizes: Sizes,
    budget: int,
    asked: dict[int, int],
    low: int,
    high: int,
    expected: Needs | None,
) -> int:
    """Return the size to ask for between one that fits and one that does not, or the ends."""
    if len(asked) > _DRAWN:
        return (low + high) // 2
    if expected is None and not asked:
        return 0
    near = sorted(asked, key=lambda size: abs(asked[size] - budget))[:3]
    if expected is None and len(asked) == 1:
        # A line through the origin: it errs downwards, since weights' gradients do not grow.
        ((size, needed),) = asked.items()
        fits = (size * budget // max(needed, 1) - sizes.first) // sizes.step - low
    else:
        # What is expected is off by about what it was off at the nearest size.
        off = asked[near[0]] - expected(near[0]) if expected and near else 0

        def drawn(k: int) -> int:
            if expected:
                return expected(sizes.size(k)) + off
            return math.ceil(_curve({size: asked[size] for size in near}, sizes.size(k)))

        fits = bisect_right(range(low + 1, high), budget, key=drawn)
    return min(max(low + fits, low + 1), high - 1)


def _curve(points: dict[int, int], x: int) -> Fraction:
    """Return where the line, or the parabola, through some points is at ``x``."""
    total = Fraction(0)
    for a, needed in points.items():
        weight = Fraction(needed)
        for b in points:
            if b != a:
                weight *= Fraction(x - b, a - b)
        total += weight
    return total
