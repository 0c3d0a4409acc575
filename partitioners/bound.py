"""A lower bound on the time that any plan under a budget adds.

At the end of the forward everything is alive at once that the backward will read of it. Let s_v = 1
where value v is kept until then, and r_o = 1 where the backward runs op o of the forward again.
Every schedule within the budget satisfies

    minimise   sum_o c_o r_o + sum_v p_v s_v
    subject to s_v + r_o >= 1      for v, made by o, that the backward reads or returns
               s_u + r_p >= r_o    for every input u, made by p, of an op o that may run again
               sum_v m_v s_v <= budget

with s_v = 1, at no cost, for what the forward returns. The linear relaxation is the bound: a
minimum cut with one knapsack row. An op that only the backward needs costs nothing: it runs once in
any case. The bound holds for any number of recomputations and any order of the backward.

It knows one moment only. For the order that the planners give the backward, the same can be said of
the moment at which one of the backward's own ops runs: of what this op and those behind it read,
some was kept or made before, and the rest is made from then on. What the op needs (``needs.py``)
is alive then whatever a plan does. What was recomputed before that moment and is kept over it
counts as kept, at no more than its share of the price of its op, which may make several.

In whole numbers the same programs say more where a few large values decide: of MOCCASIN's training
graphs half of the plans are proven optimal so, in 20 to 50 ms.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import coo_array

from recut.partitioners.needs import Need
from recut.partitioners.problem import Phase, Problem, Rule
from recut.partitioners.solver import LinearProgram
from recut.partitioners.tables import Floats

# Nodes of a search tree: more have not been of use.
_NODES = 200


def seconds_bound(
    problem: Problem, budget: int, need: Need | None = None, whole: bool = False
) -> float:
    """Return seconds that no plan within ``budget`` bytes can do without.

    In the terms of ``Schedule.seconds``. Infinite where no plan can fit.

    Args:
        problem: the problem.
        budget: bytes.
        need: what is in memory while one of the backward's own ops runs; the bound is then one for
            ``problem.backward_order``. The end of the forward where it is not given.
        whole: solve the program in whole numbers: sharper, and for small problems.
    """
    if need is not None and need.bytes > budget:
        return math.inf
    ops, values, is_backward = problem.ops, problem.values, problem.is_backward
    made = [v for v, x in enumerate(values) if x.producer >= 0 and not is_backward[x.producer]]
    column = {v: k for k, v in enumerate(made)}
    forward = [i for i in range(len(ops)) if not is_backward[i]]
    again = {i: len(made) + k for k, i in enumerate(forward)}
    count = len(made) + len(again)
    if not count:
        return 0.0
    order = problem.backward_order
    late = order if need is None else order[order.index(need.op) :]
    low, high, cost = np.zeros(count), np.ones(count), np.zeros(count)
    cost[: len(made)] = problem.tables.save[made]
    for i, k in again.items():
        cost[k] = 0.0 if ops[i].phase is Phase.EITHER else problem.again_seconds[i]
        if ops[i].rule is Rule.MUST_SAVE and ops[i].phase is not Phase.EITHER:
            high[k] = 0
        for v in ops[i].outputs:
            never_saved = ops[i].rule is Rule.MUST_RECOMPUTE
            share = cost[k] / len(ops[i].outputs)
            if need is None:
                high[column[v]] = not never_saved
            elif never_saved or share < cost[column[v]]:
                cost[column[v]] = share
    for v in problem.forward_made(problem.forward_outputs):
        low[column[v]] = high[column[v]] = 1
        cost[column[v]] = 0
    rows: list[tuple[int, int, float]] = []
    least: list[float] = []

    def require(v: int, by: int | None) -> None:
        row = len(least)
        rows.extend([(row, column[v], 1.0), (row, again[values[v].producer], 1.0)])
        if by is not None:
            rows.append((row, by, -1.0))
        least.append(1.0 if by is None else 0.0)

    for i in (*forward, *late):
        for v in problem.forward_made(ops[i].inputs):
            if values[v].producer != i:
                require(v, None if is_backward[i] else again[i])
    for v in problem.forward_made(problem.backward_outputs):
        require(v, None)
    size = np.array([values[v].bytes for v in made], dtype=np.float64)
    if need is None:
        # What is read of an input's copy in the backward is alive at the end of the forward.
        copies = {v for i in late for v in ops[i].inputs if values[v].producer < 0}
        room = budget - sum(values[v].bytes for v in copies)
    else:
        room = budget - need.bytes
        size[[column[v] for v in problem.forward_made(need.values)]] = 0
    scale = max(1.0, float(size.max(initial=0)))
    row = len(least)
    rows.extend((row, k, -x / scale) for k, x in enumerate(size.tolist()) if x)
    least.append(-room / scale)
    return _least(cost, rows, np.array(least), low, high, whole)


def _least(
    cost: Floats,
    rows: list[tuple[int, int, float]],
    least: Floats,
    low: Floats,
    high: Floats,
    whole: bool,
) -> float:
    """Return the least cost, 0 where nothing costs anything, infinity where nothing fits."""
    total = float(cost.sum())
    at, column, share = (np.array(x) for x in zip(*rows, strict=True)) if rows else ([], [], [])
    matrix = coo_array((share, (at, column)), shape=(len(least), len(cost))).tocsr()
    scaled = cost * (1e3 / total) if total else cost
    # Without an answer nothing is known.
    program = LinearProgram(scaled, matrix, low, high)
    answer = program.whole(least, np.inf, _NODES) if whole else program.solve(least, np.inf)
    bound = max(0.0, answer.bound)
    return bound * (total / 1e3 if math.isfinite(bound) else 1.0)
