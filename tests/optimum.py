"""The cheapest schedule of a small problem by search over all of them: a planner's oracle.

A state is how far the backward's own ops are and which values of the forward are in memory; from
there an op of the forward may run again, a value may be let go, or the next own op may run. So an
op may run any number of times. Run op by op, in the order that the planners give the backward.
"""

from __future__ import annotations

import heapq
from itertools import count

from problems import forward_values, subsets

from recut.partitioners.problem import Phase, Problem


class Optimum:
    """Costs of the cheapest schedules of a problem."""

    def __init__(self, problem: Problem) -> None:
        assert problem.compiler == "eager"
        assert not any(op.inplace or op.phase is Phase.EITHER for op in problem.ops)
        assert not any(v.bytes for v in problem.values if v.producer < 0)
        self.problem = problem
        self.bytes = [v.bytes for v in problem.values]
        self.own = problem.backward_order
        self.kept = frozenset(problem.forward_made(problem.forward_outputs))
        backward = {v for i in self.own for v in problem.ops[i].outputs}
        self.gradients = []  # alive in front of each own op
        for k in range(len(self.own) + 1):
            made = {v for i in self.own[:k] for v in problem.ops[i].outputs}
            read = {v for i in self.own[k:] for v in problem.ops[i].inputs}
            self.gradients.append(made & backward & (read | set(problem.backward_outputs)))

    def size(self, values) -> int:
        return sum(self.bytes[v] for v in values)

    def forward_peak(self, saved: frozenset[int]) -> int:
        """The most bytes that the forward holds if it keeps ``saved``."""
        order = self.problem.forward_order
        peak = 0
        made: set[int] = set()
        for k, i in enumerate(order):
            op = self.problem.ops[i]
            made.update(op.outputs)
            read = {v for j in order[k:] for v in self.problem.ops[j].inputs}
            alive = made & (read | saved | self.kept | set(op.outputs))
            peak = max(peak, self.size(alive) + op.workspace)
        return peak

    def starts(self, budget: int):
        """Yield what the forward may keep within a budget, and what that costs."""
        for saved in map(frozenset, subsets(forward_values(self.problem))):
            if self.forward_peak(saved) <= budget:
                new = saved - self.kept
                yield saved | self.kept, sum(self.problem.save_seconds[v] for v in new)

    def seconds(self, budget: int) -> float | None:
        """What recomputing and saving cost at least within a budget, None where nothing fits."""
        number = count()
        todo = [(cost, next(number), 0, saved) for saved, cost in self.starts(budget)]
        heapq.heapify(todo)
        done = set()
        while todo:
            cost, _, place, held = heapq.heappop(todo)
            if place == len(self.own):
                return cost
            if (place, held) in done:
                continue
            done.add((place, held))
            for more, after, now in self.moves(budget, place, held):
                heapq.heappush(todo, (cost + more, next(number), after, now))
        return None

    def moves(self, budget: int, place: int, held: frozenset[int]):
        """Yield what may happen next: its cost, the place behind it, what is held then."""
        problem = self.problem
        for v in held - self.kept:
            yield 0.0, place, held - {v}
        for i in problem.forward_order:
            op = problem.ops[i]
            now = held.union(op.outputs)
            room = budget - op.workspace - self.size(self.gradients[place])
            if held.issuperset(problem.forward_inputs[i]) and self.size(now) <= room:
                yield op.seconds, place, now
        op = problem.ops[self.own[place]]
        alive = held | self.gradients[place] | set(op.outputs)
        fits = self.size(alive) + op.workspace <= budget
        if fits and held.issuperset(problem.forward_inputs[self.own[place]]):
            yield 0.0, place + 1, held
