"""The fastest plan: what a minimum cut by traffic and recompute prices saves.

The cut adds up ops, and kernels are more than their sum: what recomputes for nothing inside its
reader may need a chain of others, each a buffer again (the cell of a recurrent net at its last
step, and so at all steps before). So the cut is made for several shares of an op's traffic, and the
schedules are timed by their kernels. The fastest of those is taken that hold about what torch's own
partitioner would at most: without a budget, recut takes neither more time nor more memory than
stock, as far as the model knows.
"""

from __future__ import annotations

from recut.partitioners.evaluator import measure
from recut.partitioners.machine import Machine
from recut.partitioners.min_cut import min_cut
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule, lazy_schedule
from recut.partitioners.timing import step_seconds

# A further factor on what an op that runs within its reader's kernel costs beside its arithmetic.
_FACTOR = 8
# How often a saved value's reading is counted on top, for cuts that save less than the cheapest.
_LOADS = (1, 2)
# How many times smaller is what a plan may hold more than torch's would by count: statistics that
# it saves on top and that stock Inductor's own temporaries outweigh.
_SLACK = 256


def cheapest_cut(problem: Problem) -> frozenset[int]:
    """Return the values to save so that the prices of ops and values add up to the least."""
    return _cut(problem, 1)


def fastest(problem: Problem, machine: Machine, cheapest: frozenset[int] | None = None) -> Schedule:
    """Return the schedule that takes the least time, under Inductor in about torch's own memory.

    Args:
        problem: the problem.
        machine: what starting a kernel costs.
        cheapest: :func:`cheapest_cut`, where it is known already.
    """
    first = cheapest_cut(problem) if cheapest is None else cheapest
    cuts = [first, _cut(problem, _FACTOR)]
    if problem.compiler == "inductor":
        cuts += [*(_lean(problem, loads) for loads in _LOADS), by_bytes(problem)]
    schedules = {saved: lazy_schedule(problem, saved) for saved in cuts}
    if len(schedules) == 1:
        return schedules[first]
    peaks = {saved: measure(problem, schedule).peak for saved, schedule in schedules.items()}
    most = max(peaks.values())
    if problem.compiler == "inductor":
        most = peaks[cuts[-1]] + peaks[cuts[-1]] // _SLACK
    seconds = {
        saved: step_seconds(problem, schedule, machine)
        for saved, schedule in schedules.items()
        if peaks[saved] <= most
    }
    return schedules[min(seconds, key=lambda saved: (seconds[saved], peaks[saved]))]


def _lean(problem: Problem, loads: int) -> frozenset[int]:
    """Return what to save where reading is dear, and no recomputed result has to be written."""
    save = [s + loads * v.load for s, v in zip(problem.save_seconds, problem.values, strict=True)]
    return min_cut(problem, save, [op.seconds for op in problem.ops])


def by_bytes(problem: Problem) -> frozenset[int]:
    """Return about what torch's own partitioner saves (torch/_functorch/partitioners.py).

    The fewest bytes, of which those count twice that no kernel would write otherwise, and
    recomputing costs nothing. What is no pointwise op or reduction is not recomputed, nor are
    random ops, what a library call of the backward reads, reductions to less than a quarter, and
    what reads a value again after a library call has had it: the value would live till then.
    """
    values, fuses = problem.values, problem.fuses
    weights = []
    for v, value in enumerate(values):
        inside = value.producer >= 0 and fuses[value.producer]
        inside = inside and all(fuses[i] for i in problem.readers[v])
        weights.append(float(value.bytes * (2 if inside else 1)))
    banned = 1.0 + 2 * sum(weights)
    late = _late_readers(problem)
    prices = []
    for i, op in enumerate(problem.ops):
        made, read = (sum(values[v].bytes for v in vs) for vs in (op.outputs, op.inputs))
        to_library = any(problem.read_by_library[v] for v in op.outputs)
        shrinks = fuses[i] and not problem.is_pointwise[i] and 4 * made < read
        drawn = op.random or "inductor_random" in op.target
        ban = not fuses[i] or drawn or to_library or shrinks or i in late
        prices.append(banned if ban else 0.0)
    return min_cut(problem, weights, prices)


def _late_readers(problem: Problem) -> set[int]:
    """Return what reads a fused result that a library call of the forward has read by then."""
    late: set[int] = set()
    first = [len(problem.ops)] * len(problem.ops)  # library call that has read an op's result
    for i in reversed(problem.forward_order):
        readers = [j for v in problem.ops[i].outputs for j in problem.readers[v]]
        readers = [j for j in readers if not problem.is_backward[j]]
        if problem.fuses[i] and readers:
            first[i] = min(first[j] if problem.fuses[j] else j for j in readers)
            late.update(j for j in readers if problem.fuses[j] and j > first[i])
    return late


def _cut(problem: Problem, factor: int) -> frozenset[int]:
    prices = [
        again + (factor - 1) * (op.seconds - op.arithmetic) if fuses else again
        for op, again, fuses in zip(
            problem.ops, problem.again_seconds, problem.is_pointwise, strict=True
        )
    ]
    return min_cut(problem, problem.save_seconds, prices)
