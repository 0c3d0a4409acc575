"""What a user may set, and how each value is read: refused aloud, never guessed.

Options given to ``torch.compile(..., options={...})`` override the environment variables:

=====================  ==================  =======================================
environment variable   option key          value
=====================  ==================  =======================================
RECUT_MEMORY_BUDGET    memory_budget       see :func:`parse_budget`; default ``1.0``
RECUT_DUMP             dump                folder; default: nothing is written
RECUT_DUMP_PASSES      dump_passes         "1": dump what each pass read and made too; default "0"
RECUT_PLAN             plan                file with a saved plan; default: none
RECUT_SOLVER_SECONDS   solver_seconds      seconds per graph; default ``10``
RECUT_MACHINE          machine             name or file of a machine description; default:
                                           what ``recut calibrate`` measured, or a built-in
RECUT_COSTS            costs               "model" (default), or "measure": time each call
(none)                 inductor            dict of Inductor options; default ``{}``
=====================  ==================  =======================================
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, NoReturn

from recut.errors import SettingError
from recut.partitioners.machine import MACHINES, Machine

__all__ = ["Budget", "Settings", "check_inductor_options", "parse_budget"]

ENVIRONMENT_PREFIX = "RECUT_"
ENVIRONMENT: Mapping[str, str] = {
    "RECUT_MEMORY_BUDGET": "memory_budget",
    "RECUT_DUMP": "dump",
    "RECUT_DUMP_PASSES": "dump_passes",
    "RECUT_PLAN": "plan",
    "RECUT_SOLVER_SECONDS": "solver_seconds",
    "RECUT_MACHINE": "machine",
    "RECUT_COSTS": "costs",
}
OPTIONS = (
    "memory_budget",
    "dump",
    "dump_passes",
    "plan",
    "solver_seconds",
    "machine",
    "costs",
    "inductor",
)

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


@dataclass(frozen=True)
class Settings:
    """Everything a user can set for one compilation.

    Attributes:
        memory_budget: the limit on the peak memory of a graph.
        dump: folder for graph dumps and reports, or ``None`` to write nothing.
        plan: file with a saved plan to replay, or ``None`` to plan.
        solver_seconds: time the planner may spend on one graph, seconds.
        machine: description that prices operations, or ``None`` for the best that is known.
        costs: "model", or "measure" to time each call of a graph once on its device.
        inductor: options passed through to Inductor; do not write to it.
        dump_passes: whether a dump holds what each pass read and made too.
    """

    memory_budget: Budget = Budget("fraction", 1.0)
    dump: Path | None = None
    plan: Path | None = None
    solver_seconds: float = 10.0
    machine: Machine | None = None
    costs: Literal["model", "measure"] = "model"
    inductor: Mapping[str, object] = field(default_factory=dict)
    dump_passes: bool = False

    @classmethod
    def read(
        cls, options: Mapping[str, object] | None, environ: Mapping[str, str] | None = None
    ) -> Settings:
        """Read settings from options, then the environment, then the defaults.

        An environment variable that is set to nothing counts as unset. ``None`` for ``dump`` or
        ``plan`` as an option unsets the environment's.

        Args:
            options: option keys and values, as given to ``torch.compile``.
            environ: environment variables; ``os.environ`` if ``None``.

        Raises:
            SettingError: an unknown name or an unreadable value.
        """
        environ = os.environ if environ is None else environ
        given: dict[str, tuple[str, object]] = {}
        for name in sorted(environ):
            if name.startswith(ENVIRONMENT_PREFIX):
                if name not in ENVIRONMENT:
                    _refuse_name(name, environ[name], ENVIRONMENT, "environment variable")
                if environ[name].strip():
                    given[ENVIRONMENT[name]] = (name, environ[name])
        for key, value in (options or {}).items():
            if key not in OPTIONS:
                _refuse_name(key, value, OPTIONS, "option")
            given[key] = (key, value)
        readers: Mapping[str, Callable[[object, str], object]] = {
            "memory_budget": parse_budget,  # type: ignore[dict-item]  # it refuses other types
            "dump": _read_dump,
            "dump_passes": _read_switch,
            "plan": _read_plan,
            "solver_seconds": _read_seconds,
            "machine": _read_machine,
            "costs": _read_costs,
            "inductor": _read_inductor,
        }
        values = {key: readers[key](value, source) for key, (source, value) in given.items()}
        return cls(**values)  # type: ignore[arg-type]  # each reader returns its field's type

    @property
    def dumps_passes(self) -> bool:
        """Whether what each pass reads and makes is dumped."""
        return self.dump is not None and self.dump_passes

    def key(self) -> str:
        """Return a hash, stable across runs and machines, of all that can change a plan.

        It covers the budget, the kind of costs, the solver's time and the content of the plan file.
        Not ``dump`` and ``dump_passes``, which change no plan, ``machine``, which has a key of its
        own, nor ``inductor``, which Inductor's own cache keys cover. What ``"auto"`` resolves to is
        not known here.

        Raises:
            OSError: the plan file cannot be read any more.
        """
        plan = None if self.plan is None else hashlib.sha256(self.plan.read_bytes()).hexdigest()
        content = {
            "memory_budget": [self.memory_budget.kind, repr(self.memory_budget.value)],
            "plan": plan,
            "costs": self.costs,
            "solver_seconds": repr(self.solver_seconds),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_inductor_options(options: Mapping[str, object], source: str = "inductor") -> None:
    """Refuse Inductor options that the installed Inductor does not know.

    Imports Inductor, which takes seconds the first time.

    Raises:
        SettingError: an unknown name, or ``custom_partitioner_fn``, which recut itself sets.
    """
    if "custom_partitioner_fn" in options:
        raise SettingError(
            source, options, "custom_partitioner_fn is how recut enters Inductor",
            'leave it out; to use another partitioner, use backend="inductor"',
        )  # fmt: skip
    import torch._inductor

    # The call that torch.compile's documentation names for this.
    known = torch._inductor.list_options()
    for name in options:
        if name not in known:
            _refuse_name(name, options[name], known, f"Inductor option in {source}")


def _refuse_name(name: object, value: object, known: Iterable[str], what: str) -> NoReturn:
    known = sorted(known)
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if nearest:
        remedy = f"did you mean {nearest[0]}?"
    elif len(known) < 10:
        remedy = f"known are {', '.join(known)}"
    else:
        remedy = "no known name is near it"
    raise SettingError(str(name), value, f"unknown {what}", remedy)


def _read_path(value: object, source: str) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise SettingError(source, value, "not a path", "give a str or a pathlib.Path")
    return Path(os.fsdecode(value)).expanduser()


def _read_dump(value: object, source: str) -> Path | None:
    if value is None:
        return None
    path = _read_path(value, source)
    # The folder is made when something is written; refuse now what could not be made then.
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise SettingError(
                    source, value, f"{place} is a file", "give a folder; it is made if missing"
                )
            break
    return path


def _read_switch(value: object, source: str) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value
    if text in ("1", "true", "on", "yes") or text is True or text == 1:
        return True
    if text in ("0", "false", "off", "no") or text is False or text == 0:
        return False
    raise SettingError(source, value, "neither on nor off", 'give "1" or "0"')


def _read_plan(value: object, source: str) -> Path | None:
    if value is None:
        return None
    path = _read_path(value, source)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise SettingError(
            source, value, f"{path} {problem}", "give a plan file that recut wrote, or leave it out"
        )
    return path


def _read_seconds(value: object, source: str) -> float:
    remedy = "give a positive number of seconds, such as 10"
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise SettingError(source, value, f"{type(value).__name__} is no time", remedy)
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        raise SettingError(source, value, "not a number of seconds", remedy) from None
    if not (math.isfinite(seconds) and seconds > 0):
        raise SettingError(source, value, "not a positive, finite time", remedy)
    return seconds


def _read_machine(value: object, source: str) -> Machine | None:
    if value is None or isinstance(value, Machine):
        return value
    path = _read_path(value, source)
    if str(value).lower() in MACHINES:
        return MACHINES[str(value).lower()]
    remedy = (
        f"give one of {', '.join(sorted(MACHINES))}, or the file that "
        "`recut calibrate --output FILE` writes"
    )
    if not path.is_file():
        raise SettingError(source, value, "no known machine, and no file", remedy)
    try:
        return Machine.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SettingError(source, value, f"no readable description ({error})", remedy) from error


def _read_costs(value: object, source: str) -> str:
    text = value.strip().lower() if isinstance(value, str) else value
    if text not in ("model", "measure"):
        raise SettingError(
            source, value, "unknown kind of costs",
            'give "model", by formulas and the machine\'s description, or "measure"',
        )  # fmt: skip
    return str(text)


def _read_inductor(value: object, source: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise SettingError(
            source, value, f"{type(value).__name__} is no mapping",
            'give a dict of Inductor options, such as {"max_autotune": True}',
        )  # fmt: skip
    if value:
        check_inductor_options(value, source)
    return dict(value)
