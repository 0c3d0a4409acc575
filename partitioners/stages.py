"""Small problems run op by op: what to recompute in front of which op, known at every moment.

The programs of segmentations (``program.py``) know what one base recomputes, and 64 moments. Here
each of the backward's own ops is a *stage* (Checkmate, arXiv 1910.02653) in front of which some
candidates may run. Let r_ot = 1 where op o of the forward runs at stage t, and s_vk = 1 where value
v is held up to its kth *event*, a stage at which somebody may read it or make it again.

    minimise   sum_ot c_o r_ot + sum_v p_v s_v0
    subject to s_vk + r_ot >= 1         for v, made by o, that stage t, its kth event, reads
               s_vk + r_ot >= r_ft      for v that the candidate f reads
               s_vk + r_ot >= s_v(k+1)  what is held on was held or made
               fixed_t + sum of m_v of what is held over t <= budget

What the forward saves is s_v0. A value comes and goes at its events alone, so it has a column for
each of these and not for each stage: a graph of a thousand ops takes 30,000, and its relaxation
half a second. Only r has to be in whole numbers, the rest then is.

Between the ops of one stage more is held in passing, and the forward holds what it saves. There are
too many such moments for a row each: rows are added for those at which an answer is over the
budget, and the program is solved again. Where a row says less than the evaluator (what is written
over an input), it is tightened by what was too much.

With all that a stage or a later one depends on among its candidates this is the whole problem, and
what the solver proves of it holds for every plan in this order of the backward.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from functools import cached_property
from itertools import takewhile

import numpy as np
from scipy.sparse import coo_array, csr_array

from recut.partitioners.evaluator import measure
from recut.partitioners.problem import Phase, Problem, Rule
from recut.partitioners.schedule import Schedule, forward_order
from recut.partitioners.tables import Flags, Floats, held_bytes

# An op, and the stage in front of whose own op it runs.
Entry = tuple[int, int]
# Columns with what is in memory where they are 1, in bytes.
Bytes = list[tuple[int, int]]


class Rows:
    """Rows of a program under construction."""

    def __init__(self) -> None:
        self._row: list[int] = []
        self._column: list[int] = []
        self._share: list[float] = []
        self._least: list[float] = []

    def add(self, entries: Iterable[tuple[int, float]], least: float) -> None:
        """Add a row: the sum of some columns, each with its share, is at least something."""
        for column, share in entries:
            self._row.append(len(self._least))
            self._column.append(column)
            self._share.append(share)
        self._least.append(least)

    def fits(self, may: Bytes, room: int) -> None:
        """Add a row: what may be in memory is no more than some room, in bytes."""
        most = sum(size for _, size in may)
        if most > room:
            unit = max(most, 1)
            self.add([(column, -size / unit) for column, size in may], -room / unit)

    @property
    def least(self) -> Floats:
        """What each row is at least."""
        return np.array(self._least)

    def matrix(self, columns: int) -> csr_array:
        """Return the rows as a matrix."""
        entries = (self._share, (self._row, self._column))
        return coo_array(entries, shape=(len(self._least), columns)).tocsr()


class Stages:
    """The stages of a problem.

    Args:
        problem: the problem.
        schedule: the order of the backward's own ops, and what is held of theirs.

    Attributes:
        own: the own op of each stage; behind the last one is another stage, of what is returned.
        wanted: what has to be there at each stage of what the forward makes and does not return.
        always: what the forward returns, and the backward may read.
    """

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.problem = problem
        self.schedule = schedule
        self.lives = measure(problem, schedule)
        order, split = self.lives.trace.order, self.lives.split
        self._moments = split + np.flatnonzero(problem.tables.backward[order[split:]])
        self.own: list[int] = order[self._moments].tolist()
        returned = problem.forward_made(problem.forward_outputs)
        never = problem.tables.never_saved
        self.always = frozenset(v for v in returned if not never[v])
        self.wanted = [frozenset(problem.forward_inputs[i]) - self.always for i in self.own]
        gradients = problem.forward_made(problem.backward_outputs)
        self.wanted.append(frozenset(gradients) - self.always)

    def reads(self, op: int) -> set[int]:
        """Return what an op of the forward reads that may not be there."""
        return set(self.problem.forward_inputs[op]) - self.always

    def within(self, depth: int) -> set[Entry]:
        """Return what the stages depend on, through no more than ``depth`` ops in between."""
        producer = self.problem.tables.producer
        found: set[Entry] = set()
        for t, wanted in enumerate(self.wanted):
            level: Collection[int] = wanted
            seen: set[int] = set()
            for _ in range(depth + 1):
                ops = {int(producer[v]) for v in level} - seen
                ops = {o for o in ops if self._may_run(o)}
                if not ops:
                    break
                seen |= ops
                level = {v for o in ops for v in self.reads(o)}
            found.update((o, t) for o in seen)
        return found

    @cached_property
    def everything(self) -> set[Entry]:
        """What may be of use at some stage: what it or a later one depends on."""
        last: dict[int, int] = {}  # by op the last stage that depends on it
        for o, t in self.within(len(self.problem.ops)):
            last[o] = max(t, last.get(o, 0))
        return {(o, t) for o in last for t in range(last[o] + 1)}

    def some(self, count: int) -> set[Entry]:
        """Return ``count`` candidates at most: everything, or what is nearest to the stages."""
        if len(self.everything) <= count:
            return self.everything
        near: set[Entry] = set()
        for depth in range(len(self.problem.ops)):
            found = self.within(depth)
            if len(found) > count or len(found) == len(near):
                break
            near = found
        return near

    def _may_run(self, op: int) -> bool:
        """Return whether an op may run in the backward."""
        return self.problem.ops[op].rule is not Rule.MUST_SAVE

    def entries(self) -> set[Entry]:
        """Return what the schedule runs in front of its stages."""
        tables = self.problem.tables
        backward = np.array(self.schedule.backward, dtype=np.int64)
        again = ~tables.backward[backward]
        stages = tables.stages(backward)[again]
        return set(zip(backward[again].tolist(), stages.tolist(), strict=True))

    def running(self, entries: Iterable[Entry]) -> Schedule:
        """Return the schedule that runs some ops in front of the stages."""
        ahead: list[list[int]] = [[] for _ in self.wanted]
        for o, t in entries:
            ahead[t].append(o)
        backward = []
        for ops, own in zip(ahead, [*self.own, None], strict=True):
            backward += sorted(ops)
            backward += [] if own is None else [own]
        saved = Schedule((), tuple(backward)).saved(self.problem)
        return Schedule(forward_order(self.problem, saved), tuple(backward))

    @cached_property
    def _comes(self) -> Flags:
        """For each instance of the schedule whether it is of a value that is held or not."""
        problem, lives = self.problem, self.lives
        returned = np.isin(lives.value, problem.forward_outputs) & (lives.start < lives.split)
        return problem.tables.of_forward[lives.value] & ~returned

    @cached_property
    def at_own(self) -> list[int]:
        """For each stage the bytes in memory at its own op but for what is held or not."""
        lives, comes = self.lives, self._comes
        fields = (lives.start[comes], lives.end[comes], lives.bytes[comes])
        live = lives.live - held_bytes(*fields, len(lives.live))
        return [*live[self._moments].tolist(), self.before_own[-1]]

    @cached_property
    def before_own(self) -> list[int]:
        """For each stage the same right before its own op."""
        lives, rest = self.lives, ~self._comes
        start, end, size = lives.start[rest], lives.end[rest], lives.bytes[rest]
        moments = [*self._moments.tolist(), len(lives.live)]
        return [int(size[(start < m) & (m <= end)].sum()) for m in moments]


class StageProgram:
    """The program of some candidates.

    Args:
        stages: the stages.
        candidates: what may run at which stage, beside what the stages' schedule runs there.

    Attributes:
        candidates: all that may run, by stages and in the order of the joint graph; each has a
            column, and these are the first ones.
        columns: how many columns there are.
    """

    def __init__(self, stages: Stages, candidates: Collection[Entry]) -> None:
        self.stages = stages
        self.problem = problem = stages.problem
        both = stages.entries().union(candidates)
        self.candidates = sorted(both, key=lambda entry: (entry[1], entry[0]))
        self.run = {entry: k for k, entry in enumerate(self.candidates)}
        self.reads = {o: sorted(stages.reads(o)) for o in {o for o, _ in self.candidates}}
        events: dict[int, set[int]] = {}
        for t, wanted in enumerate(stages.wanted):
            for v in wanted:
                events.setdefault(v, set()).add(t)
        for o, t in self.candidates:
            for v in self.reads[o]:
                events.setdefault(v, set()).add(t)
        for o, t in self.candidates:
            for v in problem.ops[o].outputs:
                if v in events:
                    events[v].add(t)
        self.events = {v: sorted(events[v]) for v in sorted(events)}
        self.columns = len(self.candidates)
        self.held: dict[int, int] = {}  # the column of each value's first event
        for v, places in self.events.items():
            self.held[v] = self.columns
            self.columns += len(places)
        # What only the backward needs runs once for nothing, in the forward if it is saved.
        either = {problem.values[v].producer for v in self.events}
        self._either = sorted(o for o in either if problem.ops[o].phase is Phase.EITHER)
        self._by_forward = {o: self.columns + k for k, o in enumerate(self._either)}
        self.columns += len(self._either)

    @cached_property
    def whole(self) -> bool:
        """Whether all that may run is among the candidates, and counts as it is."""
        problem = self.problem
        tables = problem.tables
        either = (v for o in self._either for v in problem.ops[o].outputs)
        if any(not tables.never_saved[v] for v in either):
            return False
        if problem.compiler != "eager" or len(tables.copies) or tables.inplace.any():
            return False
        return self.stages.everything.issubset(self.candidates)

    @cached_property
    def cost(self) -> Floats:
        """What each column costs, in seconds; all of it is ``free`` too much."""
        problem = self.problem
        cost = np.zeros(self.columns)
        cost[: len(self.candidates)] = [problem.again_seconds[o] for o, _ in self.candidates]
        for v, column in self.held.items():
            cost[column] = problem.save_seconds[v]
        for o, column in self._by_forward.items():
            cost[column] = problem.again_seconds[o]
        return cost

    @property
    def free(self) -> float:
        """What the first runs cost of what only the backward needs, in seconds."""
        return sum(self.problem.again_seconds[o] for o in self._either)

    @cached_property
    def high(self) -> Floats:
        """What each column is at most."""
        high = np.ones(self.columns)
        for v, column in self.held.items():
            high[column] = not self.problem.tables.never_saved[v]
        return high

    def _there(self, v: int, t: int) -> list[tuple[int, float]]:
        """Return the columns that make a value be there at one of its events."""
        run = self.run.get((self.problem.values[v].producer, t))
        held = self.held[v] + bisect_left(self.events[v], t)
        return [(held, 1.0)] if run is None else [(held, 1.0), (run, 1.0)]

    def dataflow(self, rows: Rows) -> None:
        """Add the rows that let everything have what it reads."""
        for v, places in self.events.items():
            for k, t in enumerate(places[:-1]):
                rows.add([*self._there(v, t), (self.held[v] + k + 1, -1.0)], 0.0)
        for t, wanted in enumerate(self.stages.wanted):
            for v in sorted(wanted):
                rows.add(self._there(v, t), 1.0)
        for k, (o, t) in enumerate(self.candidates):
            for v in self.reads[o]:
                rows.add([*self._there(v, t), (k, -1.0)], 0.0)
        for o, column in self._by_forward.items():
            for v in self.problem.ops[o].outputs:
                if v in self.events:
                    rows.add([(column, 1.0), (self.held[v], -1.0)], 0.0)

    @cached_property
    def at_own(self) -> list[tuple[Bytes, int]]:
        """For each stage what may be in memory at its own op, and what is, in bytes."""
        stages, values = self.stages, self.problem.values
        may: list[Bytes] = [[] for _ in stages.wanted]
        for v, places in self.events.items():
            size = values[v].bytes
            since = 0
            for k, t in enumerate(places if size else ()):
                column = self.held[v] + k
                for between in range(since, t):
                    may[between].append((column, size))
                if v not in stages.wanted[t] and k + 1 < len(places):
                    may[t].append((column + 1, size))
                since = t + 1
        fixed = [
            held + sum(values[v].bytes for v in wanted)
            for held, wanted in zip(stages.at_own, stages.wanted, strict=True)
        ]
        return list(zip(may, fixed, strict=True))

    def in_passing(self, o: int, t: int, column: int) -> tuple[Bytes, int, list[tuple[int, int]]]:
        """Return what may be in memory while a candidate runs, what is, and pairs of columns.

        The first of a pair is new, and no less than the second.

        Args:
            o: the candidate's op.
            t: its stage.
            column: the number of the first new column.
        """
        stages, values = self.stages, self.problem.values
        may: Bytes = []
        pairs: list[tuple[int, int]] = []
        fixed = stages.before_own[t] + self.problem.ops[o].workspace
        readers: dict[int, list[int]] = {}
        first = self.run[o, t]
        later = takewhile(lambda entry: entry[1] == t, self.candidates[first:])
        for run, (reader, _) in enumerate(later, first):
            for v in self.reads[reader]:
                readers.setdefault(v, []).append(run)
        for v in self.problem.ops[o].outputs:
            if v in self.events:
                readers.setdefault(v, []).append(self.run[o, t])
            elif values[v].bytes:
                may.append((self.run[o, t], values[v].bytes))
        for v, places in self.events.items():
            k, size = bisect_left(places, t), values[v].bytes
            if k == len(places) or not size:
                continue
            held = self.held[v] + k
            if places[k] > t or (values[v].producer > o and (values[v].producer, t) in self.run):
                may.append((held, size))
                continue
            if v in stages.wanted[t]:
                fixed += size
                continue
            keep = readers.get(v, []) + ([held + 1] if k + 1 < len(places) else [])
            if keep:
                may.append((column, size))
                pairs += [(column, other) for other in keep]
                column += 1
        return may, fixed, pairs

    def in_forward(self, schedule: Schedule, place: int) -> Bytes:
        """Return what may be in memory at a moment of the forward because it is saved.

        Args:
            schedule: the schedule.
            place: index of the moment.
        """
        problem = self.problem
        made = {v for i in schedule.forward[:place] for v in problem.ops[i].outputs}
        read = {v for i in schedule.forward[place:] for v in problem.ops[i].inputs}
        saved = made.intersection(self.held) - read
        return [(self.held[v], x) for v in sorted(saved) if (x := problem.values[v].bytes)]


__all__ = ["Bytes", "Entry", "Rows", "StageProgram", "Stages"]
