"""The fastest plan: a minimum cut between what the forward makes and what the backward reads.

    minimise   sum_v save_v * s_v + sum_o recompute_o * r_o
    subject to s_v + r_o >= a_v      for the op o that makes v       (edge r_o -> a_v)
               a_u >= r_o            for every input u of o          (edge a_u -> r_o, infinite)
               a_v = 1               for every v the backward reads  (edge a_v -> sink, infinite)

where a_v says that the backward has v, s_v that it is saved, r_o that o is recomputed. Saving costs
the write (where the forward's own fusion would not have written it) and the read; recomputing costs
the op's price. This is the graph of torch's ``min_cut_rematerialization_partition`` with finite
prices in the place of its bans, so that whatever fuses into its reader is recomputed for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from recut.partitioners.problem import Phase, Problem, Rule

# scipy's flows are 32-bit: prices are scaled so that their sum stays far below infinity.
_INFINITE = 1_000_000_000
_TOTAL = 400_000_000


def min_cut(
    problem: Problem,
    save: Sequence[float],
    recompute: Sequence[float],
) -> frozenset[int]:
    """Return the values to save at the least total price.

    Args:
        problem: the problem.
        save: seconds (or any one unit) that saving each value costs.
        recompute: price of recomputing each op, in the same unit; ignored where it must be saved.
    """
    n_ops = len(problem.ops)
    source, sink = 0, 1
    rows: list[int] = []
    cols: list[int] = []
    caps: list[float] = []

    def edge(a: int, b: int, cap: float) -> None:
        rows.append(a)
        cols.append(b)
        caps.append(cap)

    for i, op in enumerate(problem.ops):
        if op.phase is Phase.BACKWARD:
            continue
        node = 2 + i
        if op.rule is Rule.MUST_SAVE:
            edge(source, node, np.inf)
        elif op.phase is Phase.FORWARD:
            edge(source, node, recompute[i])
        for v in op.outputs:
            price = np.inf if op.rule is Rule.MUST_RECOMPUTE else save[v]
            edge(node, 2 + n_ops + v, price)
        for v in op.inputs:
            if problem.values[v].producer >= 0:
                edge(2 + n_ops + v, node, np.inf)
            # inputs of the joint graph are always there
    for v in problem.backward_reads:
        edge(2 + n_ops + v, sink, np.inf)
    return _saved_side(problem, rows, cols, caps, 2 + n_ops + len(problem.values))


def _saved_side(
    problem: Problem, rows: list[int], cols: list[int], caps: list[float], size: int
) -> frozenset[int]:
    cap = np.asarray(caps)
    finite = np.isfinite(cap)
    total = cap[finite].sum()
    scaled = np.full(len(cap), _INFINITE, dtype=np.int64)
    if total > 0:
        scaled[finite] = np.ceil(cap[finite] * (_TOTAL / total)).astype(np.int64)
    else:
        scaled[finite] = 0
    graph = csr_array((scaled.astype(np.int32), (rows, cols)), shape=(size, size))
    result = maximum_flow(graph, 0, 1)
    residual = (graph - result.flow).tocsr()
    residual.data = (residual.data > 0).astype(np.int8)
    residual.eliminate_zeros()
    reachable = np.zeros(size, dtype=bool)
    reachable[breadth_first_order(residual, 0, return_predecessors=False)] = True
    n_ops = len(problem.ops)
    saved = []
    for v, value in enumerate(problem.values):
        p = value.producer
        if p < 0 or problem.ops[p].phase is Phase.BACKWARD:
            continue
        if reachable[2 + p] and not reachable[2 + n_ops + v]:
            saved.append(v)
    return frozenset(saved)
