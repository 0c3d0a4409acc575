"""A slow second reading of the evaluator's documented model, definition by definition."""

from __future__ import annotations

from functools import cached_property

from recut.partitioners.limits import MAX_ALL_SOURCES, MAX_SOURCES, MAX_WEIGHT
from recut.partitioners.problem import Kind, Problem, Value
from recut.partitioners.schedule import Schedule


class Reference:
    """The model; an instance is (value, moment of its making), -1 for the copy of an input."""

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.problem = problem
        self.split = len(schedule.forward)
        self.order = schedule.forward + schedule.backward
        self.ops = [problem.ops[i] for i in self.order]
        self.end = len(self.ops)
        values = enumerate(problem.values)
        self.instances = [(v, -1) for v, x in values if x.producer < 0 and x.bytes]  # copies
        self.instances += [(v, t) for t, op in enumerate(self.ops) for v in op.outputs]

    def next_made(self, inst):
        """Return when the value is made the next time."""
        value, start = inst
        later = [t for v, t in self.instances if v == value and t > start]
        return min(later, default=self.end)

    @cached_property
    def readers(self):
        """The moments that read each instance: behind its making, up to the next one."""
        out = {}
        for inst in self.instances:
            value, start = inst
            last = min(self.next_made(inst) + 1, self.end)
            out[inst] = [t for t in range(start + 1, last) if value in self.ops[t].inputs]
        return out

    @cached_property
    def returned(self):
        """What the forward returns at its end, and the backward at its own."""
        out = set()
        for inst in self.instances:
            value, start = inst
            at_split = start < self.split <= self.next_made(inst)
            if value in self.problem.forward_outputs and at_split:
                out.add(inst)
            if value in self.problem.backward_outputs and self.next_made(inst) == self.end:
                out.add(inst)
        return out

    def fuses(self, moments):
        return all(self.ops[t].kind in (Kind.POINTWISE, Kind.REDUCTION) for t in moments)

    def is_saved(self, inst, moments):
        """Return whether an instance of the forward is needed at a moment of the backward."""
        return inst[1] < self.split and any(t >= self.split for t in moments)

    @cached_property
    def fate(self):
        """For each instance whether its readers evaluate it anew, sources, weight, heaviness."""
        out = {}
        for (
            inst
        ) in self.instances:  # in the order of their making: what one reads is decided before
            _, start = inst
            readers = self.readers[inst]
            read = [k for k in self.instances if start in self.readers[k]]
            sources = set().union(*(out[r][1] for r in read))
            weight = 1 + sum(out[r][2] for r in read)
            light = len(sources) <= MAX_SOURCES and weight <= MAX_WEIGHT
            heavy = (start >= 0 and self.ops[start].heavy) or any(out[r][3] for r in read)
            light = light and not heavy
            anew = (
                self.problem.compiler == "inductor"
                and start >= 0
                and self.ops[start].kind is Kind.POINTWISE
                and not self.ops[start].realized
                and self.order[start] not in self.problem.written
                and len(readers) > 0
                and inst not in self.returned
                and not self.is_saved(inst, readers)
                and self.fuses(readers)
                and len(sources) <= MAX_ALL_SOURCES
                and (len(readers) == 1 or light)
            )
            out[inst] = (True, sources, weight, heavy) if anew else (False, {inst}, 0, False)
        return out

    @cached_property
    def needed(self):
        """The moments that need each instance: its readers', those of what is evaluated from it."""
        out = {inst: set(readers) for inst, readers in self.readers.items()}
        for inst, (anew, sources, _, _) in self.fate.items():
            for source in sources if anew else ():
                out[source].update(self.readers[inst])
        return out

    def in_one_kernel(self, inst):
        """Return whether an instance is made and last needed with only fusing ops in between."""
        needed = self.needed[inst]
        return (
            self.problem.compiler == "inductor"
            and inst[1] >= 0
            and len(needed) > 0
            and inst not in self.returned
            and not self.is_saved(inst, needed)
            and self.fuses(range(inst[1], max(needed) + 1))
        )

    @cached_property
    def inside(self):
        """What takes no memory."""
        return {
            i
            for i in self.instances
            if self.fate[i][0] or (self.in_one_kernel(i) and not self.is_kept_apart(i))
        }

    def is_kept_apart(self, inst):
        """Return whether no kernel makes an instance that reads it."""
        if not self.ops[inst[1]].flat:
            return False
        reduces = {t for t, op in enumerate(self.ops) if op.kind is Kind.REDUCTION}
        readers = {t for t in self.needed[inst] if not self.in_readers(t)}
        sides = {self.side(t) for t in reduces}
        several = len(readers) > 1 and any(self.side(t) in sides for t in readers)
        return several or bool(readers & reduces)

    def bytes(self, inst):
        return 0 if inst in self.inside else self.problem.values[inst[0]].bytes

    def access(self, inst):
        """Return the value that a kernel writes or reads; one without a price inside a kernel."""
        return Value("", 0, -1) if inst in self.inside else self.problem.values[inst[0]]

    def side(self, t):
        """Return what divides kernels: the phase, and how many ops before do not fuse."""
        return t >= self.split, sum(not self.fuses([m]) for m in range(t))

    @cached_property
    def place(self):
        """For each moment the last one of its kernel, at which the kernel runs."""
        place = list(range(self.end))
        pairs = [(i[1], r) for i in self.inside for r in self.readers[i]]
        pairs = [(t, r) for t, r in pairs if self.side(t) == self.side(r)]
        for _ in place:
            for t, r in pairs:
                place[t] = place[r] = max(place[t], place[r])
        return place

    def started(self, inst):
        return self.place[inst[1]] if inst[1] >= 0 else -1

    def alive(self, inst, t):
        """Return whether an instance is in memory at a moment; ``end`` is behind the step."""
        moments = {*self.needed[inst], inst[1]} - {-1}
        last = max((self.place[m] for m in moments), default=-1)
        last = self.end if inst in self.returned else last
        return self.bytes(inst) > 0 and max(self.started(inst), 0) <= t <= last

    def live(self, t):
        return [inst for inst in self.instances if self.alive(inst, t)]

    def taken_over(self, t):
        """Return the bytes that ops of the kernel at a moment write over inputs that die there."""
        dying = [i for i in self.live(t) if 0 <= self.started(i) < t and not self.alive(i, t + 1)]
        total = 0
        for inst in self.live(t):
            if self.started(inst) != t or not self.ops[inst[1]].inplace:
                continue
            fits = [d for d in dying if self.last_reader(d) == inst[1]]
            fits = [d for d in fits if self.bytes(d) == self.bytes(inst)]
            if fits:
                dying.remove(fits[0])
                total += self.bytes(inst)
        return total

    def last_reader(self, inst):
        """Return the moment that reads an instance last, kernel by kernel."""
        runs = [t for t in self.needed[inst] if not self.in_readers(t)]
        last = max(runs, key=lambda t: (self.place[t], t), default=None)
        beside = [t for t in runs if self.side(t) == self.side(last)]
        beside = [t for t in beside if self.ops[t].kind is not Kind.REDUCTION]
        inductor = self.problem.compiler == "inductor"
        return None if inductor and len(beside) > 1 else last

    def in_readers(self, t):
        """Return whether all that an op makes is evaluated anew by its readers."""
        made = [i for i in self.instances if i[1] == t]
        return bool(made) and all(self.fate[i][0] for i in made)

    def total(self, t):
        """Return the bytes in memory while the op at a moment runs."""
        return sum(map(self.bytes, self.live(t))) + self.ops[t].workspace - self.taken_over(t)

    def seconds(self, machine):
        """Return the time of the step: ops by their prices, kernels by what goes in and out."""
        if self.problem.compiler != "inductor":
            return sum(op.seconds for op in self.ops)
        anew = {i for i, (inlined, *_) in self.fate.items() if inlined}
        kernels = {}
        for t, op in enumerate(self.ops):
            made = [i for i in self.instances if i[1] == t]
            if self.fuses([t]) and (not op.outputs or any(i not in anew for i in made)):
                kernels.setdefault(self.place[t], []).append(t)
        fused = [self.fuses([t]) for t in range(self.end)]
        total = sum(o.arithmetic if f else o.seconds for o, f in zip(self.ops, fused, strict=True))
        for place, members in kernels.items():
            written = [i for i in self.instances if i[1] in members]
            read = [i for i in self.instances if self.needed[i].intersection(members)]
            read = [i for i in read if i[1] < 0 or self.place[i[1]] != place]
            total += machine.launch
            total += sum(self.access(i).store for i in written)
            total += sum(self.access(i).load for i in read)
        return total
