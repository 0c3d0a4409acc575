"""The planning problem: a step's operations, the storages they read and make, and what may be done.

A :class:`Problem` is all that planners see of a joint graph. It holds integers, floats, text and
tuples only, so that it can be printed, compared, stored as JSON and replayed without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from recut.partitioners.order import BackwardOrder, backward_order
from recut.partitioners.sums import written_where_made

if TYPE_CHECKING:
    from recut.partitioners.tables import Tables


class Kind(StrEnum):
    """How an operation runs, as far as its cost and its memory depend on it."""

    POINTWISE = "pointwise"  # one output element from one element of each input: fuses into readers
    REDUCTION = "reduction"  # a kernel of its own, bound by the bytes it reads
    COMPUTE = "compute"  # matmul, convolution, attention: bound by FLOPs
    OTHER = "other"  # everything whose behaviour is not known


class Phase(StrEnum):
    """In which graph an operation has to run."""

    FORWARD = "forward"  # the forward outputs or effects need it
    BACKWARD = "backward"  # it depends on a tangent, or has an effect of the backward
    EITHER = "either"  # only the backward needs it, yet it depends on no tangent


class Rule(StrEnum):
    """What a planner may decide for a forward operation."""

    MAY_RECOMPUTE = "may recompute"
    MUST_SAVE = "must save"
    MUST_RECOMPUTE = "must recompute"  # the user's checkpoint region: the results are never saved


@dataclass(frozen=True)
class Value:
    """One storage. Views and aliases of it are not values of their own.

    Attributes:
        name: name of the node that makes it.
        bytes: size at the hint, in bytes; 0 for what does not count against the budget. Of an
            input it is what a copy in another layout takes that the compiler makes of it.
        expr: ``bytes`` as a sympy expression of the free symbols ("" where it is a constant).
        producer: index of the op that makes it, or -1 for an input of the joint graph.
        store: seconds that a generated kernel takes to write it; 0 without generated kernels.
        load: seconds that a generated kernel takes to read it.
    """

    name: str
    bytes: int
    producer: int
    expr: str = ""
    store: float = 0.0
    load: float = 0.0


@dataclass(frozen=True)
class Op:
    """One operation of the joint graph that makes storages or has an effect.

    Attributes:
        name: name of its node.
        target: what it calls.
        inputs: indices of the values it reads, without repeats.
        outputs: indices of the values it makes.
        seconds: time that running it once more costs.
        arithmetic: how much of ``seconds`` is computing: fused into a reader's kernel, the op costs
            that all the same.
        kind: how it runs.
        phase: where it has to run.
        rule: what may be decided.
        reason: why ``rule`` is not MAY_RECOMPUTE ("" otherwise).
        random: it draws from a generator, so a recomputation has to replay the generator's state.
        heavy: Inductor keeps its result where several ops read it, rather than evaluate it anew.
        realized: Inductor writes its result down before anything reads it (random numbers).
        flat: Inductor computes it in one loop, which not every kernel that reduces can take in.
        inplace: it can write its output over an input of the same size that dies with it.
        workspace: bytes that it allocates while it runs.
        observed: how many bytes of ``workspace`` no formula knows: the compiled code was seen to
            hold them.
        source: the user's source line.
        module: path of the module that the op is of, such as "blocks.3.attn" ("": not known).
    """

    name: str
    target: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: float
    kind: Kind
    phase: Phase
    rule: Rule = Rule.MAY_RECOMPUTE
    reason: str = ""
    random: bool = False
    heavy: bool = False
    realized: bool = False
    flat: bool = False
    inplace: bool = False
    arithmetic: float = 0.0
    workspace: int = 0
    observed: int = 0
    source: str = ""
    module: str = ""


@dataclass(frozen=True)
class Size:
    """A size that the graph takes as a symbol.

    Attributes:
        symbol: its name in ``Value.expr``.
        hint: what it stands for in ``Value.bytes``.
        source: the input that it is of, such as ``x.size()[0]`` ("": not known).
    """

    symbol: str
    hint: int
    source: str = ""


# Fields of an op that do not identify a problem: names, what was only observed of its code, and the
# price, which is the machine's: a plan made by other prices is as right as it was.
NO_MATTER = frozenset({"name", "source", "module", "reason", "observed", "seconds", "arithmetic"})


@dataclass(frozen=True)
class Problem:
    """A joint graph as planners see it.

    Attributes:
        ops: operations in joint-graph order, which is a topological order.
        values: storages.
        forward_outputs: values that the forward returns to the user; alive to the end of the step.
        backward_outputs: values that the backward returns (gradients); alive to the end.
        compiler: "inductor" or "eager": who runs the graphs.
        sizes: the symbols in the values' sizes.
    """

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    forward_outputs: tuple[int, ...]
    backward_outputs: tuple[int, ...]
    compiler: str = "inductor"
    sizes: tuple[Size, ...] = ()

    @cached_property
    def tables(self) -> Tables:
        """The problem as arrays."""
        from recut.partitioners.tables import Tables

        return Tables(self)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each value the indices of the ops that read it, in joint-graph order."""
        out: list[list[int]] = [[] for _ in self.values]
        for i, op in enumerate(self.ops):
            for v in op.inputs:
                out[v].append(i)
        return tuple(map(tuple, out))

    @cached_property
    def is_backward(self) -> tuple[bool, ...]:
        """For each op whether it runs in the backward only."""
        return tuple(op.phase is Phase.BACKWARD for op in self.ops)

    @cached_property
    def is_pointwise(self) -> tuple[bool, ...]:
        """For each op whether it computes element by element."""
        return tuple(op.kind is Kind.POINTWISE for op in self.ops)

    @cached_property
    def is_compute(self) -> tuple[bool, ...]:
        """For each op whether it is a matmul, a convolution or attention: a library call."""
        return tuple(op.kind is Kind.COMPUTE for op in self.ops)

    @cached_property
    def save_seconds(self) -> tuple[float, ...]:
        """For each value what saving it costs: its reading, and its writing where fusion spares it.

        A pointwise op's result is written in any case where an op of the forward reads it that
        is not pointwise, or the forward returns it. What only library calls of the backward read
        is read at their price, saved or not.
        """
        pointwise, returned = self.is_pointwise, set(self.forward_outputs)
        out = []
        for v, value in enumerate(self.values):
            fused = value.producer >= 0 and pointwise[value.producer] and v not in returned
            spared = fused and all(
                pointwise[i] or self.ops[i].phase is not Phase.FORWARD for i in self.readers[v]
            )
            late = [self.fuses[i] for i in self.readers[v] if self.is_backward[i]]
            load = value.load if any(late) or not late else 0.0
            out.append(load + (value.store if spared else 0.0))
        return tuple(out)

    @cached_property
    def again_seconds(self) -> tuple[float, ...]:
        """For each op what running it once more costs, in seconds.

        A pointwise op's result is written where a library call of the backward reads it, whatever
        else fuses.
        """
        written = [
            value.store if library else 0.0
            for value, library in zip(self.values, self.read_by_library, strict=True)
        ]
        return tuple(
            op.seconds + (sum(written[v] for v in op.outputs) if pointwise else 0.0)
            for op, pointwise in zip(self.ops, self.is_pointwise, strict=True)
        )

    @cached_property
    def read_by_library(self) -> tuple[bool, ...]:
        """For each value whether an op of the backward reads it that runs in no kernel."""
        return tuple(
            any(self.is_backward[i] and not self.fuses[i] for i in readers)
            for readers in self.readers
        )

    @cached_property
    def fuses(self) -> tuple[bool, ...]:
        """For each op whether it can run in one kernel with what it reads."""
        return tuple(op.kind in (Kind.POINTWISE, Kind.REDUCTION) for op in self.ops)

    @cached_property
    def backward_order(self) -> tuple[int, ...]:
        """The ops that set the pace of the backward, in the order in which they run."""
        return self.pace.ops

    @cached_property
    def pace(self) -> BackwardOrder:
        """The order of the backward's own ops, and what is held for those that are put off."""
        return backward_order(self)

    @cached_property
    def is_evaluated(self) -> tuple[bool, ...]:
        """For each op whether kernels that read its result may evaluate it anew."""
        return tuple(
            pointwise and not op.realized and i not in self.written
            for i, (op, pointwise) in enumerate(zip(self.ops, self.is_pointwise, strict=True))
        )

    @cached_property
    def written(self) -> frozenset[int]:
        """Ops of the backward whose result is written down, not evaluated in what reads it."""
        return written_where_made(self)

    @cached_property
    def forward_wanted(self) -> tuple[tuple[int, ...], ...]:
        """For each op what the forward makes of what has to be there before it runs."""
        wanted = list(self.forward_inputs)
        for i, before in self.pace.put_off.items():
            wanted[before] += self.forward_made(self.pace.held[i])
        return tuple(wanted)

    def forward_made(self, values: Iterable[int]) -> tuple[int, ...]:
        """Return those of some values that ops outside the backward make."""
        return tuple(
            v for v in values if (p := self.values[v].producer) >= 0 and not self.is_backward[p]
        )

    @cached_property
    def forward_inputs(self) -> tuple[tuple[int, ...], ...]:
        """For each op what it reads of what ops outside the backward make."""
        return tuple(self.forward_made(op.inputs) for op in self.ops)

    @cached_property
    def backward_reads(self) -> tuple[int, ...]:
        """Values made by ops outside the backward that the backward reads or returns."""
        seen = {v for i in self.backward_order for v in self.ops[i].inputs}
        return tuple(sorted(self.forward_made(seen.union(self.backward_outputs))))

    @cached_property
    def forward_required(self) -> frozenset[int]:
        """Ops that the forward runs whatever is saved."""
        need = [i for i, op in enumerate(self.ops) if op.phase is Phase.FORWARD]
        return frozenset(self.ancestors(need))

    @cached_property
    def forward_order(self) -> tuple[int, ...]:
        """The ops that the forward runs whatever is saved, in joint-graph order."""
        return tuple(sorted(self.forward_required))

    @cached_property
    def forward_places(self) -> tuple[int, ...]:
        """For each op the last of the forward's own at or before it that it depends on.

        What only the backward needs belongs where its inputs are made.
        """
        need = self.forward_required
        place: list[int] = []
        for i, op in enumerate(self.ops):
            parents = (p for v in op.inputs if (p := self.values[v].producer) >= 0)
            place.append(i if i in need else max((place[p] for p in parents), default=0))
        return tuple(place)

    def ancestors(self, ops: Iterable[int]) -> set[int]:
        """Return ``ops`` and every op that they depend on."""
        todo = list(ops)
        seen = set(todo)
        while todo:
            for v in self.ops[todo.pop()].inputs:
                p = self.values[v].producer
                if p >= 0 and p not in seen:
                    seen.add(p)
                    todo.append(p)
        return seen

    @cached_property
    def digest(self) -> str:
        """Hash of the graph and its memory; names, prices and observations are no part."""
        names = [f.name for f in fields(Op) if f.name not in NO_MATTER]
        plain = [
            replace(o, workspace=o.workspace - o.observed) if o.observed else o for o in self.ops
        ]
        ops = [tuple(getattr(o, name) for name in names) for o in plain]
        values = [(v.bytes, v.producer) for v in self.values]
        text = json.dumps(
            [ops, values, self.forward_outputs, self.backward_outputs, self.compiler],
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def with_observed(self, extra: Mapping[int, int]) -> Problem:
        """Return the problem with bytes that compiled code was seen to hold beyond ``workspace``.

        Args:
            extra: bytes by op; they take the place of what was observed before.
        """
        if not extra and not any(o.observed for o in self.ops):
            return self
        ops = tuple(
            replace(
                o, workspace=o.workspace - o.observed + extra.get(i, 0), observed=extra.get(i, 0)
            )
            for i, o in enumerate(self.ops)
        )
        return replace(self, ops=ops)

    def to_json(self) -> dict[str, Any]:
        """Return the Problem as plain JSON data; :meth:`from_json` reads it back."""
        return {
            "version": 1,
            "ops": list(map(_plain, self.ops)),
            "values": list(map(_plain, self.values)),
            "forward_outputs": list(self.forward_outputs),
            "backward_outputs": list(self.backward_outputs),
            "compiler": self.compiler,
            "sizes": list(map(_plain, self.sizes)),
        }

    @staticmethod
    def from_json(data: Any) -> Problem:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: an unknown version, or something that is no problem.
        """
        if not isinstance(data, Mapping) or data.get("version") != 1:
            raise ValueError("this is not a problem of version 1")
        try:
            problem = Problem(
                tuple(map(_read_op, data["ops"])),
                tuple(Value(**v) for v in data["values"]),
                tuple(data["forward_outputs"]),
                tuple(data["backward_outputs"]),
                data["compiler"],
                tuple(Size(**s) for s in data.get("sizes", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field of the problem is missing or unknown ({error})") from error
        problem.check()
        return problem

    def check(self) -> None:
        """Raise where indices point nowhere, or sizes are none.

        Raises:
            ValueError: the text names what is wrong.
        """
        lists = [(op.name, (*op.inputs, *op.outputs)) for op in self.ops]
        lists += [("the forward", self.forward_outputs), ("the backward", self.backward_outputs)]
        for name, values in lists:
            for v in values:
                if type(v) is not int or not 0 <= v < len(self.values):
                    raise ValueError(f"{name} names value {v!r}, of {len(self.values)}")
        for value in self.values:
            _check_fields(value.name, value)
            if not -1 <= value.producer < len(self.ops):
                raise ValueError(f"{value.name} is made by op {value.producer!r}")
            _check_size(value.name, value.bytes)
        for op in self.ops:
            _check_fields(op.name, op)
            _check_size(op.name, op.workspace)
            _check_size(op.name, op.workspace - op.observed)
        for size in self.sizes:
            _check_fields(str(size.symbol), size)
            _check_size(size.symbol, size.hint)


def _read_op(given: Mapping[str, Any]) -> Op:
    o = dict(given, inputs=tuple(given["inputs"]), outputs=tuple(given["outputs"]))
    kinds = {"kind": Kind(o["kind"]), "phase": Phase(o["phase"]), "rule": Rule(o["rule"])}
    return Op(**o | kinds)


def _plain(thing: Op | Value | Size) -> dict[str, Any]:
    """Return a flat value by field; ``asdict`` copies every number of it, which takes tenfold."""
    return {k: list(v) if type(v) is tuple else v for k, v in vars(thing).items()}


def _check_size(name: str, size: int) -> None:
    if not 0 <= size < 2**62:
        raise ValueError(f"{name} has {size!r} bytes")


_TYPES: Mapping[Any, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


def _check_fields(name: str, thing: Op | Value | Size) -> None:
    """Raise where a field is of another type than it is declared to be, or a time is none."""
    for f in fields(thing):
        value, kinds = getattr(thing, f.name), _TYPES.get(f.type)
        if kinds and type(value) not in kinds:
            raise ValueError(f"{name}: {f.name} is {value!r}")
        if f.type == "float" and not 0 <= value < float("inf"):
            raise ValueError(f"{name}: {f.name} is {value!r} seconds")
