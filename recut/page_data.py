"""What the report page shows of a planned graph, as plain data: rows, points and arrays.

The chart's data is one JSON document: each buffer once, with its first and last moment, and the
page adds them up by use, module or kind. So a graph of 16,000 ops stays at a megabyte or two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recut.partitioners.decisions import Use, pattern, use_of
from recut.partitioners.evaluator import Instance
from recut.partitioners.plan import Plan
from recut.partitioners.problem import Phase, Problem
from recut.planned import PlannedGraph

# Rows of a table; the rest is in the text files and the JSON.
ROWS = 300
# Series that colours can still tell apart; the last one takes what is left.
SERIES = 8
# What may be left to that one, as a share of the bytes that ops make.
_REST = 0.25


@dataclass(frozen=True)
class TensorRow:
    """One tensor: bytes, what makes it, what became of it and why."""

    name: str
    bytes: int
    became: str
    why: str
    op: str
    module: str
    source: str


@dataclass(frozen=True)
class AgainRow:
    """One op that runs again: how often, its predicted time (seconds) in all, bytes it makes."""

    name: str
    runs: int
    seconds: float
    bytes: int
    why: str
    op: str
    module: str
    source: str


@dataclass(frozen=True)
class Point:
    """One plan of the frontier: peak in bytes, step in seconds."""

    peak: int
    seconds: float
    budget: int
    planner: str
    chosen: bool


def tensors(graph: PlannedGraph) -> list[TensorRow]:
    """Return a graph's largest tensors, the largest first."""
    problem = graph.problem
    in_memory: dict[int, int] = {}
    for instance in graph.timeline.instances:
        in_memory[instance.value] = max(instance.bytes, in_memory.get(instance.value, 0))
    order = sorted(range(len(problem.values)), key=lambda v: (-problem.values[v].bytes, v))
    rows = []
    for v in order[:ROWS]:
        value = problem.values[v]
        if not value.bytes:
            break
        if value.producer < 0:
            why = "the compiler's copy of an input in another layout, or the loss's own gradient"
            rows.append(TensorRow(value.name, value.bytes, "input", why, "", "", ""))
            continue
        op, decision = problem.ops[value.producer], graph.decisions[value.producer]
        became, why = decision.choice.value, decision.reason
        if v in in_memory and not in_memory[v]:
            became, why = "inside a kernel", "its readers compute it, so it takes no memory"
        rows.append(
            TensorRow(value.name, value.bytes, became, why, op.target, op.module, op.source)
        )
    return rows


def run_again(graph: PlannedGraph) -> list[AgainRow]:
    """Return all ops that the backward runs again, the dearest first."""
    problem = graph.problem
    again = graph.plan.schedule.recomputed(problem)
    rows = []
    for i, times in again.items():
        op = problem.ops[i]
        made = sum(problem.values[v].bytes for v in op.outputs)
        rows.append(
            AgainRow(
                name=op.name,
                runs=times,
                seconds=times * op.seconds,
                bytes=made,
                why=graph.decisions[i].reason,
                op=op.target,
                module=op.module,
                source=op.source,
            )
        )
    return sorted(rows, key=lambda row: (-row.seconds, row.name))


def points(graph: PlannedGraph) -> list[Point]:
    """Return the frontier with the plan itself, by rising peaks and without repeats."""
    plans: dict[tuple[int, float], Plan] = {}
    for plan in (graph.plan, *graph.frontier):
        plans.setdefault((plan.peak, graph.seconds(plan)), plan)
    return [
        Point(peak, seconds, plan.budget, plan.planner, plan is graph.plan)
        for (peak, seconds), plan in sorted(plans.items(), key=lambda item: item[0])
    ]


def uses_at_peak(graph: PlannedGraph) -> list[tuple[str, int]]:
    """Return the bytes at the worst moment by use, the largest first."""
    worst = graph.timeline.worst
    held = [(use.value, bytes_[worst]) for use, bytes_ in graph.memory.items() if bytes_[worst]]
    return sorted(held, key=lambda item: (-item[1], item[0]))


def chart(graph: PlannedGraph) -> dict[str, Any]:
    """Return what the page draws the memory of the step from."""
    problem, schedule, line = graph.problem, graph.plan.schedule, graph.timeline
    order = (*schedule.forward, *schedule.backward)
    targets, sources, modules = _Names(), _Names(), _Names()
    kinds = _Names(["pointwise", "reduction", "compute", "other", "inputs"])
    roles = _roles(problem)
    choices = _Names()
    ops = {
        "name": [op.name for op in problem.ops],
        "target": [targets.index(op.target) for op in problem.ops],
        "source": [sources.index(op.source) for op in problem.ops],
        "module": [modules.index(op.module) for op in problem.ops],
        "role": roles[1],
        "kind": [kinds.index(op.kind.value) for op in problem.ops],
        "choice": [choices.index(d.choice.value) for d in graph.decisions],
        "backward": [int(op.phase is Phase.BACKWARD) for op in problem.ops],
    }
    return {
        "budget": graph.plan.budget,
        "split": line.split,
        "worst": line.worst,
        "live": line.live,
        "order": order,
        "ops": ops,
        "workspace": [[t, w] for t, i in enumerate(order) if (w := problem.ops[i].workspace)],
        "targets": targets.all,
        "sources": sources.all,
        "modules": modules.all,
        "roles": roles[0],
        "kinds": kinds.all,
        "choices": choices.all,
        "uses": [use.value for use in Use],
        "buffers": _buffers(graph),
    }


def _buffers(graph: PlannedGraph) -> Mapping[str, Any]:
    """Return what is in memory, as columns: op (-1: an input), moments, bytes, use, odd names."""
    problem, line = graph.problem, graph.timeline
    kept: list[Instance] = sorted(
        (i for i in line.instances if i.bytes), key=lambda i: (max(i.start, 0), i.value)
    )
    uses = {use: k for k, use in enumerate(Use)}
    last = max(len(line.live) - 1, 0)
    names = {}
    for k, instance in enumerate(kept):
        value = problem.values[instance.value]
        if value.producer < 0 or problem.ops[value.producer].name != value.name:
            names[k] = value.name
    return {
        "op": [problem.values[i.value].producer for i in kept],
        "start": [max(i.start, 0) for i in kept],
        # As lengths, which are shorter to write.
        "length": [min(i.end, last) - max(i.start, 0) for i in kept],
        "bytes": [i.bytes for i in kept],
        "use": [uses[use_of(problem, line, i)] for i in kept],
        "names": names,
    }


class _Names:
    """Texts, each once."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.all: list[str] = list(known)
        self._place = {text: k for k, text in enumerate(self.all)}

    def index(self, text: str) -> int:
        if text not in self._place:
            self._place[text] = len(self.all)
            self.all.append(text)
        return self._place[text]


def _roles(problem: Problem) -> tuple[list[str], list[int]]:
    """Return what modules play which part, layers of one kind together, and the part of each op.

    ``blocks.3.attn`` plays the part ``blocks.*.attn``: as deep as the largest parts are most of it.
    """
    general = {op.module: pattern(op.module).split(".") for op in problem.ops}
    depth = max((len(parts) for parts in general.values()), default=1)
    while True:
        part = {m: ".".join(parts[:depth]) or "(no module)" for m, parts in general.items()}
        made: Counter[str] = Counter()
        for op in problem.ops:
            made[part[op.module]] += sum(problem.values[v].bytes for v in op.outputs)
        order = sorted(made, key=lambda name: (-made[name], name))
        rest = sum(made[name] for name in order[SERIES - 1 :])
        if depth == 1 or rest <= _REST * made.total():
            break
        depth -= 1
    names = order[: SERIES - 1] + (["other modules"] if len(order) > SERIES - 1 else [])
    place = {name: min(k, len(names) - 1) for k, name in enumerate(order)}
    return names, [place[part[op.module]] for op in problem.ops]
