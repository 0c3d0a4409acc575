"""A memory budget as a user writes it, and the bytes that it stands for once a graph is known.

Bytes (``"12GiB"``, ``4096``), a fraction of the fastest plan's peak (``0.6``, ``"60%"``) or
``"auto"``. Anything else is refused with what was probably meant.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Literal, NoReturn

from recut.errors import SettingError

__all__ = ["BUDGET_FORMS", "WHOLE", "Budget", "parse_budget"]

BUDGET_FORMS = (
    'accepted are bytes ("12GiB", "800MB", or an int over 1), '
    'a fraction of the fastest plan\'s peak (0.6, "60%") and "auto"'
)
_UNITS: Mapping[str, int] = {
    "b": 1,
    **{f"{prefix}ib": 1 << 10 * power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
}
# Forty digits are past any memory, and short of what int() refuses to read.
_QUANTITY = re.compile(r"([0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})\s*([a-z]+|%)?", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """A limit on the peak memory of one compiled graph, before the graph is known.

    Attributes:
        kind: ``"bytes"``, ``"fraction"`` (of the peak of the fastest plan) or ``"auto"``
            (what is free on the device).
        value: bytes as an int, the fraction in (0, 1], or 0 for ``"auto"``.
    """

    kind: Literal["bytes", "fraction", "auto"]
    value: int | float = 0

    def resolve(self, fastest_peak: int, free: Callable[[], int] | None) -> int:
        """Return the budget of one graph in bytes.

        Args:
            fastest_peak: peak of the fastest plan of the graph, bytes.
            free: returns the bytes free on the device; ``None`` where the device cannot tell.
                Called for ``"auto"`` only.

        Raises:
            SettingError: the budget is ``"auto"`` and ``free`` is ``None``.
        """
        if self.kind == "bytes":
            return int(self.value)
        if self.kind == "fraction":
            # By the decimal the user wrote: 0.6 of 10 bytes is 6, though the double 0.6 is below.
            return math.floor(fastest_peak * Fraction(repr(self.value)))
        if free is None:
            raise SettingError(
                "memory_budget", "auto", "this device does not report its free memory", BUDGET_FORMS
            )
        return max(0, free())

    @property
    def is_all(self) -> bool:
        """Whether it is the fastest plan's whole peak, which promises nothing."""
        return self.kind == "fraction" and self.value == 1

    def __str__(self) -> str:
        if self.kind == "bytes":
            return f"{self.value} bytes"
        return "auto" if self.kind == "auto" else f"{self.value * 100:.6g}%"


# All of the fastest plan's peak: nothing is bounded.
WHOLE = Budget("fraction", 1.0)


def parse_budget(value: str | int | float, source: str) -> Budget:
    """Read a memory budget.

    ``"12GiB"``, ``"800MB"``, ``4096`` and ``"4096"`` are bytes; ``0.6``, ``"0.6"``, ``"60%"``,
    ``1.0`` and ``1`` are fractions; ``"auto"`` is what the device has free. Units are B, KiB, MiB,
    GiB, TiB (powers of 1024) and KB, MB, GB, TB (powers of 1000) in any case.

    Args:
        value: the value as given.
        source: the option key or environment variable it came from, for the error.

    Raises:
        SettingError: for anything else, with what was probably meant.
    """
    given: object = value  # options are unchecked, so the annotation proves nothing
    if isinstance(given, str):
        return _parse_budget_text(given, source)
    if isinstance(given, bool) or not isinstance(given, Integral | Real):
        raise SettingError(source, value, f"{type(value).__name__} is no budget", BUDGET_FORMS)
    if isinstance(given, Integral):
        return _bare_number(Fraction(int(given)), True, value, source)
    number = float(given)
    if not math.isfinite(number):
        raise SettingError(source, value, "a budget is finite", BUDGET_FORMS)
    return _bare_number(Fraction(repr(number)), False, value, source)


def _parse_budget_text(value: str, source: str) -> Budget:
    text = value.strip().lower()
    if text == "auto":
        return Budget("auto")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        _refuse_text(text, value, source)
    digits, unit = match.groups()
    number = Fraction(digits)
    if unit is None:
        return _bare_number(number, "." not in digits, value, source)
    if number == 0:
        _refuse_zero(value, source)
    if unit == "%":
        if number > 100:
            raise SettingError(
                source, value, "a fraction is at most 100%, the peak of the fastest plan",
                'did you mean "100%"? ' + BUDGET_FORMS,
            )  # fmt: skip
        return Budget("fraction", float(number / 100))
    if unit not in _UNITS:
        _refuse_unit(digits, unit, value, source)
    size = number * _UNITS[unit]
    if size < 1 or (unit == "b" and size.denominator != 1):
        raise SettingError(
            source, value, "bytes come whole",
            f'did you mean "{digits}GiB"? ' + BUDGET_FORMS,
        )  # fmt: skip
    return Budget("bytes", math.floor(size))


def _bare_number(number: Fraction, whole: bool, value: object, source: str) -> Budget:
    """Read a number without a unit; `whole` says that it was written as an integer."""
    if number == 0:
        _refuse_zero(value, source)
    if number < 0:
        meant = f"did you mean {_plain(-number)}? " if whole or number >= -1 else ""
        raise SettingError(source, value, "a budget is positive", meant + BUDGET_FORMS)
    if number <= 1:
        return Budget("fraction", float(number))
    if whole:
        return Budget("bytes", int(number))
    if number < 1024:
        meant = (
            f'"{_plain(number)}GiB", or a fraction such as {_plain(min(number / 100, Fraction(1)))}'
        )
    else:
        meant = f"{math.floor(number)}, an int, for bytes"
    raise SettingError(
        source, value, "over 1 it is neither a fraction nor a whole number of bytes",
        f"did you mean {meant}? {BUDGET_FORMS}",
    )  # fmt: skip


def _plain(number: Fraction) -> str:
    return str(number) if number.denominator == 1 else f"{float(number):.6g}"


def _refuse_zero(value: object, source: str) -> NoReturn:
    raise SettingError(
        source, value, "no step runs in zero bytes",
        "for the least memory, give a small fraction such as 0.01, which gives the lowest "
        "feasible plan; " + BUDGET_FORMS,
    )  # fmt: skip


def _refuse_unit(digits: str, unit: str, value: object, source: str) -> NoReturn:
    # "12G" and "12Gi" leave open whether 1000 or 1024 is meant, by 7 % for giga.
    prefix = unit[0] if unit[0] in "kmgt" else "g"
    prefix = prefix.upper()
    raise SettingError(
        source, value, f"unknown unit {unit!r}",
        f'did you mean "{digits}{prefix}iB" or "{digits}{prefix}B"? {BUDGET_FORMS}',
    )  # fmt: skip


def _refuse_text(text: str, value: str, source: str) -> NoReturn:
    problem, remedy = "not a budget", BUDGET_FORMS
    if text.startswith(("-", "+")):
        problem = "a budget has no sign"
        remedy = f'did you mean "{value.strip()[1:].strip()}"? {BUDGET_FORMS}'
    elif text in {"nan", "inf", "infinity"}:
        problem = "a budget is finite"
    elif "," in text or "_" in text:
        problem = 'digits are written without "," and "_"'
    elif difflib.get_close_matches(text, ["auto"], cutoff=0.7):
        remedy = f'did you mean "auto"? {BUDGET_FORMS}'
    else:
        try:
            number = float(text)
        except ValueError:
            pass
        else:
            problem = "exponents are not read"
            remedy = f'did you mean "{number:.0f}"? {BUDGET_FORMS}' if number > 1 else BUDGET_FORMS
    raise SettingError(source, value, problem, remedy)
