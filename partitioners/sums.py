"""Which gradients are written down where they are made, rather than in the kernel that reads them.

Inductor evaluates what is computed element by element inside the kernel that reads it, however far
behind that kernel runs, and keeps what it is computed from until then. Where a table of embeddings
is looked up in several places, each look-up's gradient is as large as the table, and the sum of
them is read by the next sum only::

    mm = head gradient; a = first look-up; s = mm + a; ...; b = second look-up; t = s + b

evaluates t as ``mm + a + b``, with three tables in memory from there on. Written down, s takes the
memory of mm, and a is gone. It is so wherever what only such a sum reads takes more than the sum,
and an op that does not fuse runs between it and what reads it.

An activation's gradient is left to Inductor: to write it down costs time, and peaks elsewhere hide
the gain (by the model a Llama's step takes 0.4 % longer at any budget, and no less memory).
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from recut.partitioners.limits import MAX_ALL_SOURCES

if TYPE_CHECKING:
    from recut.partitioners.problem import Problem


def written_where_made(problem: Problem) -> frozenset[int]:
    """Return the sums of weights' gradients that take less memory written down where they are made.

    Args:
        problem: the problem, whose own order the backward runs in.
    """
    order, size = problem.backward_order, problem.values
    returned = _returned(problem)
    libraries = list(accumulate(not problem.fuses[i] for i in order))
    place = {i: k for k, i in enumerate(order)}
    found: set[int] = set()
    # By value what is in memory for it alone, until the last kernel that reads it.
    behind: dict[int, set[int]] = {}
    for k, i in enumerate(order):
        op = problem.ops[i]
        alone = [v for v in op.inputs if v in behind and {*problem.readers[v]} == {i}]
        gone = set[int]().union(*(behind[v] for v in alone))
        behind |= {v: {v} for v in op.outputs if v not in problem.backward_outputs}
        if not problem.is_pointwise[i] or op.random or len(op.outputs) != 1:
            continue
        (made,) = op.outputs
        if made not in behind or len(gone) > MAX_ALL_SOURCES:
            continue
        last = max((place[r] for r in problem.readers[made]), default=k)
        gains = sum(size[v].bytes for v in gone) > size[made].bytes
        if gains and made in returned and libraries[last] > libraries[k]:
            found.add(i)
        else:
            behind[made] = gone
    return frozenset(found)


def _returned(problem: Problem) -> set[int]:
    """Return what the backward returns, and what pointwise ops make such of and nothing else."""
    out = set(problem.backward_outputs)
    for i in reversed(problem.backward_order):
        if problem.is_pointwise[i] and out.issuperset(problem.ops[i].outputs):
            out.update(v for v in problem.ops[i].inputs if {*problem.readers[v]} == {i})
    return out
