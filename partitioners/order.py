"""In which order the backward runs its own ops: as in the joint graph, but weight gradients early.

Autograd lists a layer's input gradient before its weight gradient. The weight gradient is returned
and read by nobody else, so all that it can do for memory is to run early: what it reads of the
forward is then gone before the input gradient is made. Nothing is alive longer for it but the
result, which stays to the end anyway.

Example, for ``y = gelu(x) @ w``, gelu(x) recomputed::

    joint graph: dg = dy @ w.T; dw = gelu(x).T @ dy; dx = dg * gelu'(x)      at worst dg, gelu(x), x
    here:        dw = gelu(x).T @ dy; dg = dy @ w.T; dx = dg * gelu'(x)      gelu(x), x or dg, x

A weight that is used several times has its gradient summed up. Such a sum runs right behind the
matmul that it adds, before the next matmul: Inductor makes one library call of the two then, and
the sum before is gone. Further apart they are two kernels, and Inductor evaluates the sums of all
uses at the end, with every use's gradient alive until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recut.partitioners.problem import Problem


def backward_order(problem: Problem) -> tuple[int, ...]:
    """Return the ops that set the pace of the backward, in the order in which they run.

    Only what depends on a tangent (or has an effect of the backward) is in it: ``detach`` and its
    like stand at the end of the forward in the joint graph, yet belong to no tangent, and taking
    them as backward ops would force every layer's recomputation at the start.
    """
    own = [i for i, backward in enumerate(problem.is_backward) if backward]
    among = frozenset(own)
    waits = {
        i: _makers(problem, i) & among for i in own if _is_last(problem, i) or _sums(problem, i)
    }
    out: list[int] = []
    done: set[int] = set()
    ready: list[int] = []

    def take(i: int) -> None:
        out.append(i)
        done.add(i)
        readers = {r for v in problem.ops[i].outputs for r in problem.readers[v]}
        ready.extend(r for r in readers if r in waits and waits[r] <= done)

    for i in own:
        if i in done:
            continue
        # Between two ops that fuse, a matmul would divide their kernel.
        if not problem.fuses[i]:
            for early in sorted(ready):
                if early not in done:
                    take(early)
            ready.clear()
        if i not in done:
            take(i)
    return tuple(out)


def _makers(problem: Problem, i: int) -> set[int]:
    """Return the ops that make what an op reads."""
    return {problem.values[v].producer for v in problem.ops[i].inputs}


def _sums(problem: Problem, i: int) -> bool:
    """Return whether an op adds a matmul to what was summed up before, in one library call."""
    op = problem.ops[i]
    return op.inplace and not problem.fuses[i]


def _is_last(problem: Problem, i: int) -> bool:
    """Return whether an op's results are returned by the backward and read by none of its ops."""
    op = problem.ops[i]
    if problem.fuses[i] or op.random or not op.outputs:
        return False
    returned = problem.backward_outputs
    return all(v in returned and not problem.readers[v] for v in op.outputs)
