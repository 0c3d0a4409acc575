"""Problems and schedules for tests: by hand through :class:`Net`, at random from a seed.

The random ones are what ``passes.capture`` can produce and more: the phases follow from dataflow,
as they do there; rules, kinds, sizes, flags, effects and unused results are drawn freely.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations

from recut.partitioners.machine import CPU
from recut.partitioners.problem import Kind, Op, Phase, Problem, Rule, Value
from recut.partitioners.schedule import Schedule, forward_order, lazy_schedule

# Few sizes, so that an op often finds an input of its own size to write over.
_SIZES = (0, 16, 16, 64, 64, 64, 100, 256)


class Net:
    """Collects ops and values; ``op`` returns the values that it makes."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.values: list[Value] = []

    def input(self, name: str = "x", copy: int = 0) -> int:
        """Add an input of the joint graph, of which the compiler makes a copy of some bytes."""
        self.values.append(Value(name, copy, -1))
        return len(self.values) - 1

    def op(
        self,
        name: str,
        inputs: tuple[int, ...],
        *sizes: int,
        phase=Phase.FORWARD,
        kind=Kind.COMPUTE,
        **more,
    ) -> tuple[int, ...]:
        """Add an op that makes one value for each size (bytes) and return those values."""
        first = len(self.values)
        names = [name] if len(sizes) == 1 else [f"{name}_{k}" for k in range(len(sizes))]
        for text, size in zip(names, sizes, strict=True):
            self.values.append(Value(text, size, len(self.ops)))
        outputs = tuple(range(first, len(self.values)))
        more.setdefault("seconds", 1e-6)
        self.ops.append(Op(name, f"call {name}", inputs, outputs, kind=kind, phase=phase, **more))
        return outputs

    def problem(self, forward_outputs=(), backward_outputs=(), compiler="eager") -> Problem:
        """Return the Problem; under Inductor kernels take their time to write and read values."""
        rate = CPU.bandwidth if compiler == "inductor" else math.inf
        return Problem(
            tuple(self.ops),
            tuple(
                replace(v, store=v.store + v.bytes / rate, load=v.load + v.bytes / rate)
                for v in self.values
            ),
            tuple(forward_outputs),
            tuple(backward_outputs),
            compiler,
        )


def layers(depth: int, compiler: str = "inductor", width: int = 2**20) -> Problem:
    """Return a residual network: per layer a matmul, two pointwise ops, a matmul and the sum.

    The hidden values are four times as wide as the residual stream (``width`` bytes). A
    matmul costs eight times what its traffic does on ``machine.CPU``, a pointwise op a twentieth.
    """
    net = Net()
    x, weight, tangent = net.input("x"), net.input("weight"), net.input("tangent")
    saved = []
    for k in range(depth):
        (up,) = net.op(f"up{k}", (x, weight), 4 * width, seconds=4e-3, source=f"net.py:{10 + k}")
        (bias,) = net.op(
            f"bias{k}", (up,), 4 * width, seconds=2e-5, kind=Kind.POINTWISE, inplace=True
        )
        (act,) = net.op(
            f"act{k}",
            (bias,),
            4 * width,
            seconds=2e-5,
            kind=Kind.POINTWISE,
            inplace=True,
            heavy=True,
        )
        (down,) = net.op(f"down{k}", (act, weight), width, seconds=4e-3)
        saved.append((x, bias, act))
        (x,) = net.op(f"add{k}", (x, down), width, seconds=5e-6, kind=Kind.POINTWISE, inplace=True)
    (loss,) = net.op("loss", (x,), 4, seconds=1e-5, kind=Kind.REDUCTION)
    back = {"phase": Phase.BACKWARD}
    (grad,) = net.op("grad", (tangent, x), width, kind=Kind.POINTWISE, **back)
    grads = []
    for k, (x, bias, act) in reversed(list(enumerate(saved))):
        (g_act,) = net.op(f"g_act{k}", (grad, weight), 4 * width, **back)
        grads += net.op(f"g_down{k}", (grad, act), width // 8, **back)
        (g_up,) = net.op(
            f"g_up{k}", (g_act, bias), 4 * width, kind=Kind.POINTWISE, inplace=True, **back
        )
        grads += net.op(f"g_weight{k}", (g_up, x), width // 8, **back)
        (g_x,) = net.op(f"g_x{k}", (g_up, weight), width, **back)
        (grad,) = net.op(f"g_add{k}", (grad, g_x), width, kind=Kind.POINTWISE, inplace=True, **back)
    return net.problem((loss,), (*grads, grad), compiler)


def small_chain(seed: int, compiler: str = "eager", length: int = 6) -> Problem:
    """Return a chain whose backward reads each link; sizes and prices are random."""
    rng = random.Random(f"chain {seed}")
    net = Net()
    x, tangent = net.input("x"), net.input("tangent")
    links = [x]
    for k in range(length):
        skip = (rng.choice(links[:-1]),) if len(links) > 1 and rng.random() < 0.2 else ()
        kind = rng.choice((Kind.COMPUTE, Kind.POINTWISE, Kind.REDUCTION))
        size, price = rng.choice((10, 20, 40, 80)), rng.randint(1, 9) * 1e-6
        links += net.op(f"f{k}", (links[-1], *skip), size, kind=kind, seconds=price)
    (grad,) = net.op("b", (tangent, links[-1]), 10, phase=Phase.BACKWARD)
    grads = []
    for k in reversed(range(length)):
        (grad,) = net.op(f"b{k}", (grad, links[k]), rng.choice((10, 20)), phase=Phase.BACKWARD)
        if rng.random() < 0.5:
            grads += net.op(f"w{k}", (grad, links[k + 1]), 5, phase=Phase.BACKWARD)
    return net.problem((links[-1],), (*grads, grad), compiler)


def random_problem(seed: int, compiler: str = "eager", most: int = 20) -> Problem:
    """Return a random problem of up to ``most`` ops; equal arguments give equal problems."""
    rng = random.Random(f"problem {seed}")
    net = Net()
    for k in range(rng.randint(1, 3)):
        net.input(f"in{k}", copy=rng.choice((0, 0, 0, 0, 64)))
    tangent = net.input("tangent")
    in_backward = {tangent}
    n = rng.randint(3, most)
    for i in range(n):
        late = rng.random() < (0.9 if i >= n // 2 else 0.05)
        readable = [v for v in range(len(net.values)) if late or v not in in_backward]
        near = readable[-6:]
        count = rng.choice((0, 1, 1, 2, 2, 3, 6))
        inputs = {rng.choice(near if rng.random() < 0.7 else readable) for _ in range(count)}
        if late and rng.random() < 0.6:
            inputs.add(rng.choice(sorted(in_backward)))
        backward = bool(inputs & in_backward) or (late and rng.random() < 0.2)
        outputs = net.op(
            f"op{i}",
            tuple(sorted(inputs, key=lambda v: rng.random())),
            *(rng.choice(_SIZES) for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 2, 3, 0)))),
            phase=Phase.BACKWARD if backward else Phase.EITHER,
            **_flags(rng, may_rule=not backward),
        )
        if backward:
            in_backward.update(outputs)
    return _finish(rng, net, in_backward, compiler)


def _flags(rng: random.Random, *, may_rule: bool) -> dict:
    rule = rng.choices(tuple(Rule), (6, 2, 1))[0] if may_rule else Rule.MAY_RECOMPUTE
    kind = rng.choices(tuple(Kind), (6, 2, 2, 1))[0]
    seconds = rng.randint(0, 9) * 1e-6
    return {
        "kind": kind,
        "seconds": seconds,
        "arithmetic": min(seconds, rng.randint(0, 3) * 1e-7),
        "rule": rule,
        "reason": "" if rule is Rule.MAY_RECOMPUTE else f"{rule.value} by the test",
        "random": may_rule and rng.random() < 0.1,
        "heavy": rng.random() < 0.15,
        "realized": rng.random() < 0.1,
        "flat": rng.random() < 0.1,
        "inplace": rng.random() < 0.4,
        "workspace": rng.choice((0, 0, 0, 32)),
    }


def _finish(rng: random.Random, net: Net, in_backward: set[int], compiler: str) -> Problem:
    """Draw what is returned; what only the backward needs stays EITHER."""
    plain = [v for v in range(len(net.values)) if v not in in_backward]
    forward_outputs = rng.sample(plain, min(len(plain), rng.randint(1, 3)))
    made = [v for v in in_backward if net.values[v].producer >= 0]
    backward_outputs = rng.sample(sorted(made), min(len(made), rng.randint(1, 3)))
    if rng.random() < 0.3:
        backward_outputs.append(
            rng.choice([v for v in range(len(net.values)) if v not in backward_outputs])
        )
    extra = random.Random(f"access {len(net.ops)}")
    net.values = [
        replace(v, store=extra.choice((0, 0, 1e-7)), load=extra.choice((0, 0, 1e-7)))
        for v in net.values
    ]
    draft = net.problem(forward_outputs, backward_outputs, compiler)
    roots = {net.values[v].producer for v in forward_outputs} - {-1}
    for i, op in enumerate(net.ops):
        effect = not op.outputs or rng.random() < 0.1
        if op.phase is Phase.EITHER and effect:
            roots.add(i)
    for i in draft.ancestors(roots):
        fields = {**vars(net.ops[i]), "phase": Phase.FORWARD}
        net.ops[i] = Op(**fields)
    return net.problem(forward_outputs, backward_outputs, compiler)


def random_schedule(problem: Problem, seed: int) -> Schedule:
    """Return a random valid schedule: any order, ops recomputed any number of times."""
    return _Draw(problem, random.Random(f"schedule {seed}")).schedule()


class _Draw:
    """Draws one schedule, forward then backward."""

    def __init__(self, problem: Problem, rng: random.Random) -> None:
        self.problem = problem
        self.rng = rng
        self.order: list[int] = []
        self.ran: set[int] = set()
        self.made: set[int] = set()  # in the phase that is being drawn

    def run(self, i: int) -> None:
        """Append an op, with whatever recomputations it needs and some that it does not."""
        for v in self.problem.ops[i].inputs:
            p = self.problem.values[v].producer
            if p >= 0 and self._has_to_run(p, v):
                self.run(p)
        self.order.append(i)
        self.ran.add(i)
        self.made.update(self.problem.ops[i].outputs)

    def _has_to_run(self, p: int, v: int) -> bool:
        if p not in self.ran:
            return True
        op = self.problem.ops[p]
        if op.phase is Phase.BACKWARD or op.rule is Rule.MUST_SAVE or v in self.made:
            return self._again(p) and self.rng.random() < 0.1
        return op.rule is Rule.MUST_RECOMPUTE or self.rng.random() < 0.4

    def _again(self, p: int) -> bool:
        op = self.problem.ops[p]
        return op.phase is not Phase.BACKWARD and op.rule is not Rule.MUST_SAVE

    def _pick(self, todo: set[int]) -> int:
        """Return an op of ``todo`` that needs no other op of it."""
        ready = [i for i in sorted(todo) if not (self.problem.ancestors([i]) - {i}) & todo]
        return self.rng.choice(ready)

    def schedule(self) -> Schedule:
        """Return the schedule."""
        p = self.problem
        either = [
            i for i, op in enumerate(p.ops) if op.phase is Phase.EITHER and self.rng.random() < 0.3
        ]
        todo = set(p.forward_required) | p.ancestors(either)
        while todo:
            i = self._pick(todo)
            todo.remove(i)
            self.ran.add(i)
            self.order.append(i)
        forward = tuple(self.order)
        self.order = []
        todo = set(p.backward_order)
        while todo:
            if self.rng.random() < 0.3:
                more = [i for i in forward if self._again(i)]
                if more:
                    self.run(self.rng.choice(more))
            i = self._pick(todo)
            todo.remove(i)
            self.run(i)
        for v in p.backward_outputs:
            if p.values[v].producer >= 0 and self._has_to_run(p.values[v].producer, v):
                self.run(p.values[v].producer)
        return Schedule(forward, tuple(self.order))


def subsets(items: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield every subset."""
    return chain.from_iterable(combinations(items, k) for k in range(len(items) + 1))


def in_order(problem, seed):
    """Return a schedule that recomputes at random before each op of the backward's order."""
    rng = random.Random(f"in order {seed}")
    values = forward_values(problem)
    lean = lazy_schedule(problem, rng.sample(values, rng.randint(0, len(values))))
    keep = frozenset(lean.saved(problem))
    may = [i for i in set(lean.backward) if not problem.is_backward[i]]
    backward, made = [], set()
    for i in lean.backward:
        for again in rng.sample(sorted(may), rng.randint(0, len(may))):
            read = problem.forward_made(problem.ops[again].inputs)
            if rng.random() < 0.3 and made.issuperset(v for v in read if v not in keep):
                backward.append(again)
                made.update(problem.ops[again].outputs)
        backward.append(i)
        made.update(problem.ops[i].outputs)
    drawn = Schedule((), tuple(backward))
    return Schedule(forward_order(problem, drawn.saved(problem)), drawn.backward)


def forward_values(problem: Problem) -> list[int]:
    """Return the values that ops outside the backward make."""
    return [
        v
        for v, value in enumerate(problem.values)
        if value.producer >= 0 and not problem.is_backward[value.producer]
    ]
