"""What a schedule recomputes, who reads it, and the schedule without some of that."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from recut.partitioners.evaluator import Liveness
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule, forward_order
from recut.partitioners.tables import Floats, Ints
from recut.partitioners.trace import asked_at


class Again:
    """The instances that a schedule's recomputations make, and who reads them.

    Attributes:
        made: for each instance, whether a recomputation makes it.
        entry: for each instance the moment of the schedule at which it is made.
        previous: for each instance the one of the same value before it, -1 without one.
        before: the same if a recomputation makes both, -1 if the forward does or could.
        passed_on: which instances are the one before another.
        edges: (instance, moment): a recomputation reads what a recomputation makes.
        needed: which instances the backward's own ops read, or the step returns.
        readers: for each instance how many recomputations read it.
        seconds: for each moment what a recomputation takes, in seconds; an op that the forward
            does not run is run once in any case, and that is free.
    """

    def __init__(self, problem: Problem, lives: Liveness) -> None:
        self.problem = problem
        trace = lives.trace
        self.order, self.split = trace.order, trace.split
        own = problem.tables.backward[trace.order]
        own[: trace.split] = True
        self.entry = trace.start
        self.made = self.entry >= trace.split
        self.made[self.made] = ~own[self.entry[self.made]]
        which = np.argsort(lives.value, kind="stable")
        same = lives.value[which[1:]] == lives.value[which[:-1]]
        self.previous = np.full(len(self.made), -1)
        self.previous[which[1:][same]] = which[:-1][same]
        twice = self.made & (self.previous >= 0) & self.made[self.previous]
        self.before = np.where(twice, self.previous, -1)
        self.passed_on = np.zeros(len(self.made), dtype=np.bool_)
        self.passed_on[self.before[self.before >= 0]] = True
        inside = self.made[trace.read]
        read, at = trace.read[inside], trace.at[inside]
        by_own = own[at]
        self.edges = read[~by_own], at[~by_own]
        # What has to be there: for the backward's own ops, and what the step returns at its end.
        returned = np.flatnonzero(trace.returned & self.made)
        self._asked = np.concatenate([read[by_own], returned])
        when = asked_at(problem, trace, read[by_own], at[by_own])
        self._when = np.concatenate([when, np.full(len(returned), len(trace.order))])
        self.needed = np.zeros(len(self.made), dtype=np.bool_)
        self.needed[self._asked] = True
        self._own = own
        self.readers = np.bincount(self.edges[0], minlength=len(self.made))
        tables = problem.tables
        self.seconds: Floats = np.where(own, 0.0, tables.again[self.order])
        again = np.flatnonzero(~own)
        first = again[np.unique(self.order[again], return_index=True)[1]]
        self.seconds[first[~np.isin(self.order[first], self.order[: self.split])]] = 0.0

    @cached_property
    def makes(self) -> dict[int, list[int]]:
        """By moment of a recomputation what it makes and somebody reads, or could carry on."""
        makes: dict[int, list[int]] = {}
        used = self.needed | self.passed_on | (self.readers > 0)
        for instance in np.flatnonzero(self.made & used).tolist():
            makes.setdefault(int(self.entry[instance]), []).append(instance)
        return makes

    @cached_property
    def reads(self) -> dict[int, list[int]]:
        """By moment of a recomputation the recomputed instances that it reads, each once."""
        reads: dict[int, list[int]] = {}
        for instance, at in zip(*(x.tolist() for x in self.edges), strict=True):
            reads.setdefault(at, []).append(instance)
        return reads

    def carrying(self, carried: Ints) -> Schedule:
        """Return the schedule with some instances carried from the one before instead of made."""
        order, split, never = self.order, self.split, len(self.order)
        # Where each instance is made then; -1 for what the forward makes.
        skip = np.zeros(len(self.made) + 1, dtype=np.bool_)  # the last entry is the forward's -1
        skip[carried] = True
        final = np.arange(len(self.made))
        while (skipped := skip[final]).any():
            final[skipped] = self.before[final[skipped]]
        place = np.where(final >= 0, self.entry[final], -1)
        # The stage at which an entry runs: the place of the own op that it runs in front of.
        stage = np.full(never + 1, never + 1)
        np.minimum.at(stage, place[self._asked], self._when)
        stages = stage.tolist()
        read, at = self.edges
        from_backward = place[read] >= 0
        pairs = (place[read[from_backward]].tolist(), at[from_backward].tolist())
        # Reads stand in the order of their moments, and what is read was made before.
        for source, reader in zip(*map(reversed, pairs), strict=True):
            stages[source] = min(stages[source], stages[reader])
        stage = np.array(stages[:never])
        again = np.flatnonzero(~self._own & (stage <= never))
        own = np.arange(split, never)[self._own[split:]]
        count = len(self.problem.ops)
        # At each stage what is recomputed for it, in joint-graph order and once, then its own op.
        keys = np.concatenate(
            [stage[again] * 2 * count + order[again], (own * 2 + 1) * count + order[own]]
        )
        backward = tuple((np.unique(keys) % count).tolist())
        saved = Schedule((), backward).saved(self.problem)
        return Schedule(forward_order(self.problem, saved), backward)
