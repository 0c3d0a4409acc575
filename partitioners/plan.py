"""The Plan: what a planner decided, with its proof and its predicted timeline; JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from recut.partitioners.errors import ForeignPlan, InvalidSchedule
from recut.partitioners.evaluator import evaluate
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule

VERSION = 4
# Past any number of bytes or seconds, and what the evaluator's integers hold.
_MOST = 2**62


@dataclass(frozen=True)
class Plan:
    """A schedule that the evaluator confirmed.

    Attributes:
        digest: digest of the Problem that it was made for.
        schedule: order of the forward and of the backward, recomputations included.
        budget: bytes that it had to stay under.
        peak: predicted peak in bytes.
        added_seconds: predicted time of running ops again and of saving, beyond what the cheapest
            plan without a budget takes for them, in seconds (``Schedule.seconds``).
        bound_seconds: no plan under the budget that runs the backward's own ops in this order adds
            less than this, in seconds (0: not known).
        any_order_seconds: the same of any order.
        planner: which planner answered.
        observed: (op, bytes) that compiled code was seen to hold beyond the problem's own count,
            and that ``peak`` includes.
        peak_expr: ``peak`` as a sympy expression of the graph's symbolic sizes ("" where it has
            none, or one that cannot be read); ``sizes.peak_formula`` computes with it.
    """

    digest: str
    schedule: Schedule
    budget: int
    peak: int
    added_seconds: float
    bound_seconds: float
    any_order_seconds: float
    planner: str
    observed: tuple[tuple[int, int], ...] = ()
    peak_expr: str = ""

    @property
    def gap(self) -> float:
        """How much more than the bound the plan adds, in seconds."""
        return max(0.0, self.added_seconds - self.bound_seconds)

    def check(self, problem: Problem) -> None:
        """Raise where the plan is not one for ``problem``.

        Raises:
            ForeignPlan: it was made for another problem.
            InvalidSchedule: its schedule breaks dataflow, a rule, or its own predicted peak.
        """
        if self.digest != problem.digest:
            raise ForeignPlan(
                f"the plan was made for another graph (digest {self.digest[:12]}, this graph has "
                f"{problem.digest[:12]}): plan again, or unset RECUT_PLAN"
            )
        self.schedule.check(problem)
        unknown = [op for op, _ in self.observed if op >= len(problem.ops)]
        if unknown:
            raise InvalidSchedule(f"something was observed of op {unknown[0]}, and there is none")
        peak = evaluate(problem.with_observed(dict(self.observed)), self.schedule).peak
        if peak != self.peak:
            raise InvalidSchedule(f"the plan promises a peak of {self.peak} bytes, but has {peak}")

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON data."""
        return {
            "version": VERSION,
            "digest": self.digest,
            "budget": self.budget,
            "peak": self.peak,
            "added_seconds": self.added_seconds,
            "bound_seconds": self.bound_seconds,
            "any_order_seconds": self.any_order_seconds,
            "planner": self.planner,
            "observed": [list(pair) for pair in self.observed],
            "peak_expr": self.peak_expr,
            "forward": list(self.schedule.forward),
            "backward": list(self.schedule.backward),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: a wrong version, or a field that is missing or of another type.
        """
        if not isinstance(data, Mapping) or data.get("version") != VERSION:
            raise ValueError(f"this is not a plan of version {VERSION}")
        known = {f.name for f in fields(Plan)} - {"schedule"} | {"version", "forward", "backward"}
        if data.keys() != known:
            odd = ", ".join(sorted(map(str, data.keys() ^ known)))
            raise ValueError(f"plan: fields are missing or unknown: {odd}")
        forward, backward = (_field(data, name, list) for name in ("forward", "backward"))
        if not all(type(i) is int and 0 <= i < _MOST for i in (*forward, *backward)):
            raise ValueError("plan: forward and backward have to be lists of numbers of ops")
        observed = _field(data, "observed", list)
        if not all(
            type(pair) is list
            and len(pair) == 2
            and all(type(i) is int and 0 <= i < _MOST for i in pair)
            for pair in observed
        ):
            raise ValueError("plan: observed has to be a list of pairs of an op and its bytes")
        if len({op for op, _ in observed}) != len(observed):
            raise ValueError("plan: observed names an op twice")
        return Plan(
            _field(data, "digest", str),
            Schedule(tuple(forward), tuple(backward)),
            _field(data, "budget", int),
            _field(data, "peak", int),
            float(_field(data, "added_seconds", int, float)),
            float(_field(data, "bound_seconds", int, float)),
            float(_field(data, "any_order_seconds", int, float)),
            _field(data, "planner", str),
            tuple((op, size) for op, size in observed),
            _field(data, "peak_expr", str),
        )

    def dumps(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps(self.to_json(), separators=(",", ":")) + "\n"


def _field(data: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """Return a field of a plan file; nothing is coerced, and no number is below zero."""
    value: Any = data.get(name)
    number = type(value) in (int, float)
    if type(value) not in kinds or (number and not 0 <= value < _MOST):
        expected = " or ".join(k.__name__ for k in kinds)
        raise ValueError(f"plan: {name} has to be {expected}, not {value!r}")
    return value


def make_plan(
    problem: Problem,
    schedule: Schedule,
    budget: int,
    planner: str,
    added: float = 0.0,
    bounds: tuple[float, float] = (0.0, 0.0),
) -> Plan:
    """Return a Plan for a schedule after checking and evaluating it.

    Args:
        problem: the problem.
        schedule: its schedule.
        budget: bytes.
        planner: which planner made it.
        added: ``Plan.added_seconds``.
        bounds: ``Plan.bound_seconds`` and ``Plan.any_order_seconds``.
    """
    schedule.check(problem)
    peak_expr = ""
    if problem.sizes:  # sympy takes a while to import
        from recut.partitioners.sizes import peak_formula

        with suppress(ValueError):  # a size is made by a function that nobody knows
            peak_expr = str(peak_formula(problem, schedule).expression)
    return Plan(
        problem.digest,
        schedule,
        budget,
        evaluate(problem, schedule).peak,
        added,
        *bounds,
        planner,
        tuple((i, o.observed) for i, o in enumerate(problem.ops) if o.observed),
        peak_expr,
    )
