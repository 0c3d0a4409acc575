"""A lower bound on the time that any plan under a budget adds, whatever its order.

At the end of the forward everything is alive at once that the backward will read of it. Let s_v = 1
where value v is kept until then, and r_o = 1 where the backward runs op o of the forward again.
Every schedule within the budget satisfies

    minimise   sum_o c_o r_o + sum_v p_v s_v
    subject to s_v + r_o >= 1      for v, made by o, that the backward reads or returns
               s_u + r_p >= r_o    for every input u, made by p, of an op o that may run again
               sum_v m_v s_v <= budget

with s_v = 1, at no cost, for what the forward returns. The linear relaxation is the bound: a
minimum cut with one knapsack row. An op that only the backward needs costs nothing: it runs once in
any case. The bound holds for any number of recomputations and any order of the backward. It knows
one moment only, so a plan that is far above it may still be the best there is.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from recut.partitioners.problem import Phase, Problem, Rule


def seconds_bound(problem: Problem, budget: int) -> float:
    """Return seconds that no plan within ``budget`` bytes can do without.

    In the terms of ``Schedule.seconds``. Infinite where no plan can fit.
    """
    ops, values, is_backward = problem.ops, problem.values, problem.is_backward
    made = [v for v, x in enumerate(values) if x.producer >= 0 and not is_backward[x.producer]]
    column = {v: k for k, v in enumerate(made)}
    forward = [i for i in range(len(ops)) if not is_backward[i]]
    again = {i: len(made) + k for k, i in enumerate(forward)}
    count = len(made) + len(again)
    if not count:
        return 0.0
    low, high, cost = np.zeros(count), np.ones(count), np.zeros(count)
    cost[: len(made)] = problem.tables.save[made]
    for v in problem.forward_made(problem.forward_outputs):
        low[column[v]] = 1
        cost[column[v]] = 0
    for i, k in again.items():
        cost[k] = 0.0 if ops[i].phase is Phase.EITHER else ops[i].seconds
        if ops[i].rule is Rule.MUST_SAVE and ops[i].phase is not Phase.EITHER:
            high[k] = 0
        if ops[i].rule is Rule.MUST_RECOMPUTE:
            for v in ops[i].outputs:
                high[column[v]] = max(0, low[column[v]])
    rows: list[tuple[int, int, float]] = []
    least: list[float] = []

    def need(v: int, by: int | None) -> None:
        row = len(least)
        rows.extend([(row, column[v], 1.0), (row, again[values[v].producer], 1.0)])
        if by is not None:
            rows.append((row, by, -1.0))
        least.append(1.0 if by is None else 0.0)

    for i, op in enumerate(ops):
        for v in problem.forward_made(op.inputs):
            if values[v].producer != i:
                need(v, None if is_backward[i] else again[i])
    for v in problem.forward_made(problem.backward_outputs):
        need(v, None)
    # What is read of an input's copy in the backward is alive at the end of the forward as well.
    copies = {v for i, op in enumerate(ops) if is_backward[i] for v in op.inputs}
    room = budget - sum(values[v].bytes for v in copies if values[v].producer < 0)
    scale = max(1, *(values[v].bytes for v in made)) if made else 1
    row = len(least)
    rows.extend((row, column[v], -values[v].bytes / scale) for v in made if values[v].bytes)
    least.append(-room / scale)
    return _least(cost, rows, np.array(least), Bounds(low, high))


def _least(
    cost: np.ndarray[tuple[int], np.dtype[np.float64]],
    rows: list[tuple[int, int, float]],
    least: np.ndarray[tuple[int], np.dtype[np.float64]],
    bounds: Bounds,
) -> float:
    """Return the least cost, 0 where nothing costs anything, infinity where nothing fits."""
    total = float(cost.sum())
    at, column, share = (np.array(x) for x in zip(*rows, strict=True)) if rows else ([], [], [])
    matrix = coo_array((share, (at, column)), shape=(len(least), len(cost))).tocsr()
    result = milp(
        cost * (1e3 / total) if total else cost,
        constraints=LinearConstraint(matrix, least, np.inf),
        bounds=bounds,
    )
    if result.status == 2:
        return float("inf")
    # Without an answer nothing is known. The dual bound is safe against the solver's tolerances.
    found = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
    return max(0.0, float(found or 0.0)) * total / 1e3
