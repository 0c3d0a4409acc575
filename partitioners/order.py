"""In which order the backward runs its own ops: as in the joint graph, with two exceptions.

**Weight gradients** run early, or last.

Autograd lists a layer's input gradient before its weight gradient. The weight gradient is returned
and read by nobody else. Where it is no larger than what it reads, all that it can do for memory is
to run early: what it reads of the forward is then gone before the input gradient is made. Nothing
is alive longer for it but the result, which stays to the end anyway.

Example, for ``y = gelu(x) @ w``, gelu(x) recomputed::

    joint graph: dg = dy @ w.T; dw = gelu(x).T @ dy; dx = dg * gelu'(x)      at worst dg, gelu(x), x
    here:        dw = gelu(x).T @ dy; dg = dy @ w.T; dx = dg * gelu'(x)      gelu(x), x or dg, x

Where it is larger than what it reads (the head of a convolutional net, a table of embeddings), it
is *put off* to the end of the backward: what it reads is held that long, and is less. It is still
made, or saved, where the gradient would have run early, since other layers' values are gone later.

With a weight gradient goes what makes of it what is returned, a cast under autocast.

A weight that is used several times has its gradient summed up. Such a sum runs right behind the
matmul that it adds, before the next matmul: Inductor makes one library call of the two then, and
the sum before is gone. Further apart they are two kernels, and Inductor evaluates the sums of all
uses at the end, with every use's gradient alive until then.

**Ops that would be one kernel** but for the matmuls of a layer between them run before these. So
both factors of a gated layer, ``silu(g) * u``, get their gradients at once: g, u and the gradient
behind them are read once, and gone. That is done where what the ops make is no larger than the
gradients that are gone with it, so that memory cannot grow by it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recut.partitioners.problem import Problem


@dataclass(frozen=True)
class BackwardOrder:
    """The ops that set the pace of the backward.

    Attributes:
        ops: in the order in which they run.
        put_off: for each op that is put off the one before which it would have run.
        held: what is there by then, and held: its inputs, but for those of the step, and what is
            made of nothing, which can be made anywhere.
    """

    ops: tuple[int, ...]
    put_off: dict[int, int]
    held: dict[int, tuple[int, ...]]


def backward_order(problem: Problem) -> BackwardOrder:
    """Return the ops that set the pace of the backward, in the order in which they run.

    Only what depends on a tangent (or has an effect of the backward) is in it: ``detach`` and its
    like stand at the end of the forward in the joint graph, yet belong to no tangent, and taking
    them as backward ops would force every layer's recomputation at the start.
    """
    return _Walk(problem).order()


class _Walk:
    """A walk over the backward's own ops in the joint graph's order.

    Attributes:
        own: these ops.
        gradients: by weight gradient, itself and what makes of it what is returned.
        units: these and the sums of gradients, which run as soon as they can.
        out: what has run, in its order.
        kernel: what fuses and has run behind the last library call.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.own = [i for i, backward in enumerate(problem.is_backward) if backward]
        among = frozenset(self.own)
        self.gradients = {i: unit for i in self.own if (unit := _gradient(problem, i))}
        self.units = {i: (i,) for i in self.own if _sums(problem, i)} | self.gradients
        self._waits = {i: _makers(problem, i) & among for i in self.units}
        self.out: list[int] = []
        self.kernel: set[int] = set()
        self._done: set[int] = set()
        self._ready: list[int] = []  # units whose inputs are there
        self._late: list[tuple[int, ...]] = []
        self._put_off: dict[int, int] = {}
        self._waiting: list[int] = []  # what is put off, until something else runs

    def order(self) -> BackwardOrder:
        """Return the order that the walk makes."""
        problem = self.problem
        for place, i in enumerate(self.own):
            if i in self._done:
                continue
            # Between two ops that fuse, a matmul would divide their kernel.
            if i in self.units or not (problem.fuses[i] or _is_laid_out(problem, i, self.kernel)):
                self._before_library_call(place, i)
            if i not in self._done:
                self._take((i,))
            if problem.fuses[i]:
                self.kernel.add(i)
        # Everything returned is in memory behind the last of them, and what that one reads.
        self._late.sort(key=lambda unit: -_needed(problem, unit[0]))
        held = {i: _held(problem, i) for i in self._put_off}
        return BackwardOrder((*self.out, *chain.from_iterable(self._late)), self._put_off, held)

    def _take(self, ops: tuple[int, ...]) -> None:
        self._put_off.update(dict.fromkeys(self._waiting, ops[0]))
        self._waiting.clear()
        self.out.extend(ops)
        self._done.update(ops)
        readers = {r for v in _made(self.problem, ops) for r in self.problem.readers[v]}
        waits = self._waits
        self._ready.extend(sorted(r for r in readers if r in waits and waits[r] <= self._done))

    def _before_library_call(self, place: int, i: int) -> None:
        """Run what belongs before op ``i``: the rest of the kernel, and units, ``i`` among them."""
        for j in _siblings(self.problem, self.own, place, self.kernel, self._done):
            self._take((j,))
        self.kernel.clear()
        early = [*sorted({*self._ready} - {i}), *([i] if i in self._waits else [])]
        self._ready.clear()
        for j in early:
            if j in self._done:
                continue
            if j in self.gradients and _is_put_off(self.problem, self.gradients[j]):
                self._late.append(self.gradients[j])
                self._done.update(self.gradients[j])
                self._waiting.append(j)
            else:
                self._take(self.units[j])


def _makers(problem: Problem, i: int) -> set[int]:
    """Return the ops that make what an op reads."""
    return {problem.values[v].producer for v in problem.ops[i].inputs}


def _is_laid_out(problem: Problem, i: int, kernel: Collection[int]) -> bool:
    """Return whether an op copies what a kernel makes, as a concatenation does.

    Inductor may have that kernel write into the copy.
    """
    copies = not problem.is_compute[i] and not problem.ops[i].inplace
    return copies and not _makers(problem, i).isdisjoint(kernel)


def _siblings(
    problem: Problem, own: Sequence[int], place: int, kernel: Collection[int], done: set[int]
) -> list[int]:
    """Return ops from behind the next library calls that a kernel may take in.

    They go on with what the kernel makes, or with what was made along with what it reads. So do the
    library calls, up to the first that does not.

    Args:
        problem: the problem.
        own: the backward's ops in the joint graph's order.
        place: the next one of them.
        kernel: what fuses and has run behind the last library call.
        done: what has run.
    """
    makers = {problem.values[v].producer for i in kernel for v in _gradients_read(problem, i)}
    near = _made(problem, makers.union(kernel))
    found: list[int] = []
    for i in (own[k] for k in range(place, len(own))):
        if i in done:
            continue
        read = _gradients_read(problem, i)
        goes_on = not near.isdisjoint(read)
        if not problem.fuses[i]:
            if not goes_on:
                break
        elif goes_on and not problem.ops[i].random:
            waits = {problem.values[v].producer for v in read} - done
            if waits.issubset(found):
                found.append(i)
                near.update(problem.ops[i].outputs)
    return found if _grown(problem, found, done) <= 0 else []


def _grown(problem: Problem, ops: Sequence[int], done: set[int]) -> int:
    """Return by how many bytes the gradients in memory grow when ``ops`` run behind ``done``."""
    made = _made(problem, ops)
    read = {v for i in ops for v in _gradients_read(problem, i)} - made
    gone = {v for v in read | made if done.issuperset({*problem.readers[v]}.difference(ops))}
    gone.difference_update(problem.backward_outputs)
    size = problem.values
    return sum(size[v].bytes for v in made - gone) - sum(size[v].bytes for v in read & gone)


def _made(problem: Problem, ops: Collection[int]) -> set[int]:
    """Return what some ops make."""
    return {v for i in ops for v in problem.ops[i].outputs}


def _read(problem: Problem, i: int) -> list[tuple[int, int]]:
    """Return what an op reads that ops make, with these."""
    makers = ((v, problem.values[v].producer) for v in problem.ops[i].inputs)
    return [(v, maker) for v, maker in makers if maker >= 0]


def _gradients_read(problem: Problem, i: int) -> set[int]:
    """Return what an op reads that ops of the backward make."""
    return {v for v, maker in _read(problem, i) if problem.is_backward[maker]}


def _sums(problem: Problem, i: int) -> bool:
    """Return whether an op adds a matmul to what was summed up before, in one library call."""
    op = problem.ops[i]
    sizes = {problem.values[v].bytes for v in (*op.inputs, *op.outputs)}
    return op.inplace and not problem.fuses[i] and len(op.inputs) == 2 and len(sizes) == 1


def _gradient(problem: Problem, i: int) -> tuple[int, ...]:
    """Return an op with what makes of its result what the backward returns, if nothing else does.

    That is nothing, or ops of one input each that fuse: a cast. Empty where another op reads it.
    """
    unit: list[int] = []
    if problem.fuses[i] or problem.ops[i].random or not problem.ops[i].outputs:
        return ()
    while True:
        unit.append(i)
        outputs = problem.ops[i].outputs
        readers = {r for v in outputs for r in problem.readers[v]}
        if not readers:
            returned = problem.backward_outputs
            return tuple(unit) if all(v in returned for v in outputs) else ()
        (i, *others) = readers
        alone = len(outputs) == 1 and problem.ops[i].inputs == outputs
        if others or not alone or not problem.fuses[i]:
            return ()


def _held(problem: Problem, i: int) -> tuple[int, ...]:
    """Return what an op reads that ops make of something."""
    return tuple(v for v, maker in _read(problem, i) if problem.ops[maker].inputs)


def _needed(problem: Problem, i: int) -> int:
    """Return the bytes that it takes to run an op at the end of the backward."""
    return sum(problem.values[v].bytes for v in _held(problem, i)) + problem.ops[i].workspace


def _is_put_off(problem: Problem, unit: tuple[int, ...]) -> bool:
    """Return whether a weight gradient is larger than what it takes to make it at the end."""
    made = sum(problem.values[v].bytes for v in problem.ops[unit[-1]].outputs)
    return made > _needed(problem, unit[0])
