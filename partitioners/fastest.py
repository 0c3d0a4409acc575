"""The fastest plan: what a minimum cut by traffic and recompute prices saves.

The cut adds up ops, and kernels are more than their sum: what recomputes for nothing inside its
reader may need a chain of others, each a buffer again (the cell of a recurrent net at its last
step, and so at all steps before). So the cut is made for several shares of an op's traffic, and the
schedules are timed by their kernels. The fastest of those is taken that hold no more than torch's
own partitioner would: without a budget, recut takes neither more time nor more memory than stock.
"""

from __future__ import annotations

import operator

from recut.partitioners.evaluator import measure
from recut.partitioners.machine import Machine
from recut.partitioners.min_cut import min_cut
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule, lazy_schedule
from recut.partitioners.timing import step_seconds

# Further factors on what an op that runs within its reader's kernel costs beside its arithmetic.
_FACTORS = (4, 8)


def cheapest_cut(problem: Problem) -> frozenset[int]:
    """Return the values to save so that the prices of ops and values add up to the least."""
    return _cut(problem, 1)


def fastest(problem: Problem, machine: Machine, cheapest: frozenset[int] | None = None) -> Schedule:
    """Return the schedule that takes the least time whatever memory it needs.

    Args:
        problem: the problem.
        machine: what starting a kernel costs.
        cheapest: :func:`cheapest_cut`, where it is known already.
    """
    first = cheapest_cut(problem) if cheapest is None else cheapest
    cuts = [first, *(_cut(problem, factor) for factor in _FACTORS)]
    if problem.compiler == "inductor":
        cuts += [_lean(problem), by_bytes(problem)]
    schedules = {saved: lazy_schedule(problem, saved) for saved in cuts}
    if len(schedules) == 1:
        return schedules[first]
    peaks = {saved: measure(problem, schedule).peak for saved, schedule in schedules.items()}
    most = peaks[cuts[-1]] if problem.compiler == "inductor" else max(peaks.values())
    seconds = {
        saved: step_seconds(problem, schedule, machine)
        for saved, schedule in schedules.items()
        if peaks[saved] <= most
    }
    return schedules[min(seconds, key=lambda saved: (seconds[saved], peaks[saved]))]


def _lean(problem: Problem) -> frozenset[int]:
    """Return what to save where reading is dear, and no recomputed result has to be written."""
    prices = [op.seconds for op in problem.ops]
    loads = (value.load for value in problem.values)
    return min_cut(problem, list(map(operator.add, problem.save_seconds, loads)), prices)


def by_bytes(problem: Problem) -> frozenset[int]:
    """Return about what torch's own partitioner saves (torch/_functorch/partitioners.py).

    The fewest bytes, of which those count twice that no kernel would write otherwise, and
    recomputing costs nothing. What is no pointwise op or reduction is not recomputed, nor are
    random ops, what a library call of the backward reads, and reductions to less than a quarter.
    """
    values, fuses = problem.values, problem.fuses
    weights = []
    for v, value in enumerate(values):
        inside = value.producer >= 0 and fuses[value.producer]
        inside = inside and all(fuses[i] for i in problem.readers[v])
        weights.append(float(value.bytes * (2 if inside else 1)))
    banned = 1.0 + 2 * sum(weights)
    prices = []
    for i, op in enumerate(problem.ops):
        made, read = (sum(values[v].bytes for v in vs) for vs in (op.outputs, op.inputs))
        to_library = any(problem.read_by_library[v] for v in op.outputs)
        shrinks = fuses[i] and not problem.is_pointwise[i] and 4 * made < read
        ban = not fuses[i] or op.random or to_library or shrinks
        prices.append(banned if ban else 0.0)
    return min_cut(problem, weights, prices)


def _cut(problem: Problem, factor: int) -> frozenset[int]:
    prices = [
        again + (factor - 1) * (op.seconds - op.arithmetic) if fuses else again
        for op, again, fuses in zip(
            problem.ops, problem.again_seconds, problem.is_pointwise, strict=True
        )
    ]
    return min_cut(problem, problem.save_seconds, prices)
