"""What a user may set, and how each value is read: refused aloud, never guessed.

Options given to ``torch.compile(..., options={...})`` override the environment variables:

=====================  ==================  =======================================
environment variable   option key          value
=====================  ==================  =======================================
RECUT_MEMORY_BUDGET    memory_budget       see :mod:`recut.budget`; default ``1.0``
RECUT_DUMP             dump                folder; default: nothing is written
RECUT_DUMP_PASSES      dump_passes         "1": dump what each pass read and made too; default "0"
RECUT_PLAN             plan                file with a saved plan; default: none
RECUT_SOLVER_SECONDS   solver_seconds      seconds per graph; default ``10``
RECUT_EFFORT           effort              "normal" (default), or "high": search further for a plan
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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Literal, NoReturn

from recut.budget import WHOLE, Budget, parse_budget
from recut.errors import SettingError
from recut.partitioners.effort import EFFORTS
from recut.partitioners.machine import MACHINES, Machine

__all__ = ["Settings", "check_inductor_options"]

ENVIRONMENT_PREFIX = "RECUT_"
ENVIRONMENT: Mapping[str, str] = {
    "RECUT_MEMORY_BUDGET": "memory_budget",
    "RECUT_DUMP": "dump",
    "RECUT_DUMP_PASSES": "dump_passes",
    "RECUT_PLAN": "plan",
    "RECUT_SOLVER_SECONDS": "solver_seconds",
    "RECUT_EFFORT": "effort",
    "RECUT_MACHINE": "machine",
    "RECUT_COSTS": "costs",
}
OPTIONS = (
    "memory_budget",
    "dump",
    "dump_passes",
    "plan",
    "solver_seconds",
    "effort",
    "machine",
    "costs",
    "inductor",
)


@dataclass(frozen=True)
class Settings:
    """Everything a user can set for one compilation.

    Attributes:
        memory_budget: the limit on the peak memory of a graph.
        dump: folder for graph dumps and reports, or ``None`` to write nothing.
        plan: file with a saved plan to replay, or ``None`` to plan.
        solver_seconds: time the planner may spend on one graph, seconds.
        effort: "normal", or "high" to search further (``partitioners.effort``).
        machine: description that prices operations, or ``None`` for the best that is known.
        costs: "model", or "measure" to time each call of a graph once on its device.
        inductor: options passed through to Inductor; do not write to it.
        dump_passes: whether a dump holds what each pass read and made too.
    """

    memory_budget: Budget = WHOLE
    dump: Path | None = None
    plan: Path | None = None
    solver_seconds: float = 10.0
    effort: Literal["normal", "high"] = "normal"
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
            "effort": _read_effort,
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

        It covers the budget, the kind of costs, the solver's time, the effort and the content of
        the plan file.
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
            "effort": self.effort,
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


def _read_effort(value: object, source: str) -> str:
    text = value.strip().lower() if isinstance(value, str) else value
    if text not in EFFORTS:
        raise SettingError(
            source, value, "unknown effort",
            'give "normal", or "high" for plans that take longer to find',
        )  # fmt: skip
    return str(text)


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
