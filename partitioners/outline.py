"""Other plans of a problem, for a report beside the plan that was chosen: found in little time.

A sweep (:meth:`Planner.sweep`) gives the whole frontier; this is what planning has come across, and
what can be had while a graph compiles, without looking for the floor.
"""

from __future__ import annotations

import time

from recut.partitioners.evaluator import measure
from recut.partitioners.plan import Plan, make_plan
from recut.partitioners.planner import Planner
from recut.partitioners.timing import trace_seconds

# Budgets that are asked for, as shares of the fastest plan's peak, and the time for all of them.
_SHARES = (0.5, 0.75, 0.35, 0.62, 0.88, 0.42, 0.25)
_SECONDS = 2.0
# Of problems with more ops only what needs no search: one would take longer than that.
_OPS = 5000
# Peaks this near to one another, as a share of the fastest plan's, are one.
_HAIR = 0.005


def outline(planner: Planner, seconds: float = _SECONDS) -> tuple[Plan, ...]:
    """Return plans by rising peaks, each with a faster step than the one before.

    The last one is the fastest plan. Of none is a bound computed.

    Args:
        planner: the planner of the problem; what it knows is not looked for again.
        seconds: no further budget is asked for after this long, seconds. One may take longer.
    """
    end = time.monotonic() + seconds
    problem, high = planner.problem, planner.fastest_peak
    known = planner.known()
    for share in _SHARES:
        if len(problem.ops) > _OPS or time.monotonic() > end:
            break
        if found := planner.sketch(int(high * share)):
            known.setdefault(*found)
    peaks, steps = [], {}
    for k, schedule in enumerate(known):
        lives = measure(problem, schedule)
        peaks.append((lives.peak, k, schedule))
        steps[schedule] = trace_seconds(lives.trace, lives.kernels, planner.machine)
    chosen: list[Plan] = []
    least = float("inf")
    for peak, _, schedule in sorted(peaks):
        # The fastest plan has the last word, whatever a schedule's own step is said to be.
        if peak >= high and schedule != planner.fastest:
            continue
        if steps[schedule] < least or schedule == planner.fastest:
            least = steps[schedule]
            # Of two with the same peak but for a hair, the faster one.
            if chosen and peak - chosen[-1].peak < _HAIR * high:
                chosen.pop()
            added = max(0.0, schedule.seconds(problem) - planner.cheapest_seconds)
            chosen.append(make_plan(problem, schedule, peak, known[schedule], added))
    return tuple(chosen)


__all__ = ["outline"]
