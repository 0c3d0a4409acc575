"""A notice at run time: a graph of symbolic sizes runs at sizes beyond its budget.

A budget in bytes holds at the sizes that a graph was planned for. The compiled code runs at others
too, and whoever made sure that a step fits should learn when it does not any more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import fx

from recut.partitioners.units import size
from recut.passes.sizes import places_of
from recut.report import GraphReport

# How many different sizes are remembered as looked at.
_REMEMBERED = 10_000


def noticed(
    compiled: Callable[..., Any], graph: fx.Graph, report: GraphReport
) -> Callable[..., Any]:
    """Return compiled code that warns, once, when its plan's peak exceeds a budget in bytes.

    It is returned as it is where that cannot be: no symbolic sizes, or a budget that is a fraction.

    Args:
        compiled: takes the inputs of ``graph`` one by one.
        graph: the graph that Dynamo captured.
        report: what was planned for it.
    """
    formula = report.formula
    places = places_of(graph)
    if formula is None or report.asked.kind == "fraction" or not places.keys() & formula.hints:
        return compiled
    known = [(name, *places[name]) for name in formula.hints if name in places]
    looked_at: set[tuple[int, ...]] = set()
    told = False

    def call(*inputs: Any) -> Any:
        nonlocal told
        if not told and len(looked_at) < _REMEMBERED:
            sizes = tuple(int(inputs[k] if d is None else inputs[k].shape[d]) for _, k, d in known)
            if sizes not in looked_at:
                looked_at.add(sizes)
                peak = 0
                at = dict(zip((name for name, *_ in known), sizes, strict=True))
                with suppress(ValueError):  # no warning is worth the training
                    peak = formula.at(at)
                if peak > report.budget:
                    told = True
                    _warn(peak, at, report)
        return compiled(*inputs)

    return call


def _warn(peak: int, at: dict[str, int], report: GraphReport) -> None:
    planned = {s.symbol: s.hint for s in report.sizes}
    now = ", ".join(f"{name} = {length} ({planned[name]})" for name, length in at.items())
    warnings.warn(
        f"recut: a graph was planned for a budget of {size(report.budget)}, and needs {size(peak)} "
        f"at the sizes that it runs at now (planned for): {now}. A budget holds for the sizes of "
        "the first call: make that the largest one, or set torch.compile(dynamic=False) to plan "
        "for each.",
        stacklevel=3,
    )


__all__ = ["noticed"]
