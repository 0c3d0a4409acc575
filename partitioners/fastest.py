"""The fastest plan: what a minimum cut by traffic and recompute prices saves.

The cut adds up ops, and kernels are more than their sum: what recomputes for nothing inside its
reader may need a chain of others, each a buffer again (the cell of a recurrent net at its last
step, and so at all steps before). So the cut is made for several shares of an op's traffic, the
schedules are timed by their kernels, and of those that are as fast as the first the one with the
lowest peak is taken.
"""

from __future__ import annotations

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
    cuts = dict.fromkeys([first, *(_cut(problem, factor) for factor in _FACTORS)])
    schedules = [lazy_schedule(problem, saved) for saved in cuts]
    if len(schedules) == 1:
        return schedules[0]
    seconds = [step_seconds(problem, schedule, machine) for schedule in schedules]
    fast = [s for s, t in zip(schedules, seconds, strict=True) if t <= seconds[0]]
    return min(fast, key=lambda schedule: measure(problem, schedule).peak)


def _cut(problem: Problem, factor: int) -> frozenset[int]:
    prices = [
        op.arithmetic + factor * (op.seconds - op.arithmetic) if fuses else op.seconds
        for op, fuses in zip(problem.ops, problem.is_pointwise, strict=True)
    ]
    return min_cut(problem, problem.save_seconds, prices)
