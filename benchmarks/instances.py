"""Published instances: ``python -m benchmarks.instances FOLDER`` plans them and says how well.

FOLDER holds the graphs that MOCCASIN (arXiv 2304.14463) publishes under ``data`` of its repository
``haoming-codes/moccasin``: Checkmate's training graphs (arXiv 1910.02653) and random layered ones,
one value for each operation, costs in made-up units. They are read there and never kept here. A
budget is a share of the peak of the plain order that recomputes nothing; what is added is a share
of all operations.

A training graph is planned as any problem. A random one has no backward, so that all its operations
may run again wherever that is of use; the exact tier plans it alone, with what each operation reads
and what that reads for candidates.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
from rich.console import Console
from rich.table import Table

from benchmarks import figures
from benchmarks.table import RESULTS, environment
from recut.files import write_atomic
from recut.partitioners import exact
from recut.partitioners.effort import HIGH
from recut.partitioners.errors import InfeasibleBudget
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Kind, Op, Phase, Problem, Rule, Value
from recut.partitioners.schedule import Schedule
from recut.partitioners.stages import StageProgram, Stages

PERCENTS = (90, 80, 60, 50, 40)
# Added compute in per cent, and seconds, by instance and budget in per cent of the plain peak.
PUBLISHED = {
    ("ResNet50", 90): "MOCCASIN 0.2 in 65 s, Checkmate 0.1 in 434 s",
    ("ResNet50", 80): "MOCCASIN 0.3 in 69 s, Checkmate 0.3 in 485 s",
    ("fcn_8_vgg", 90): "MOCCASIN 0.0 in 3 s",
    ("fcn_8_vgg", 80): "MOCCASIN 0.1 in 3 s",
    ("random 250", 90): "MOCCASIN 0.9 in 55 s",
    ("random 250", 80): "MOCCASIN 4.9 in 640 s",
    ("random 1000", 90): "MOCCASIN 0.7 in 3600 s",
    ("random 1000", 80): "MOCCASIN 3.4 in 3600 s",
}


# Random graphs are published at these budgets.
_RANDOM_PERCENTS = (90, 80)
# Nodes of a search tree for a random graph, and how far from a reader candidates are.
_NODES, _DEPTH = 10, 1
# What is this much over its bound, relatively, is the least: the solver is no more precise.
_SAME = 1e-4


@dataclass(frozen=True)
class Row:
    """One instance under one budget; shares of the step's operations, seconds of planning."""

    name: str
    nodes: int
    percent: int
    added: float | None
    bound: float | None
    seconds: float
    floor: float | None = None
    proven: bool = False

    def figures(self) -> tuple[str, str, str]:
        """Return what is added, at least, and whether that is proven to be the least."""
        if self.floor is not None:
            return "none fits", f"floor {100 * self.floor:.1f} %", "proven" * self.proven
        if self.added is None:
            return "none found", "", ""
        if self.bound is None:
            return f"{100 * self.added:.3f} %", "", ""
        optimal = "optimal" if self.added <= self.bound * (1 + _SAME) else ""
        return f"{100 * self.added:.3f} %", f"{100 * self.bound:.3f} %", optimal


def read(path: Path) -> nx.DiGraph:
    """Return an instance as a graph; a random one has an ``order`` in which it runs.

    Raises:
        ValueError: it is none of these graphs.
    """
    data = json.loads(path.read_text())
    random = data["links"] and "source" not in data["links"][0]
    source, target = ("0", "1") if random else ("source", "target")
    graph = nx.node_link_graph(data, edges="links", source=source, target=target)
    if random and "order" in graph.graph:
        for _, node in graph.nodes(data=True):
            node["cost_ram"], node["cost_cpu"] = node["out_cost"], node["duration"]
    elif not all("backward" in node for _, node in graph.nodes(data=True)):
        raise ValueError(f"{path.name} does not say which of its operations are the backward's")
    return graph


def to_sequence(graph: nx.DiGraph) -> Problem:
    """Return a random instance as a problem: behind each operation stands one that cannot move.

    An operation belongs to the backward as what only that needs: it runs there the first time for
    nothing, and may run again.
    """
    ops: list[Op] = []
    values: list[Value] = []
    made: dict[Any, int] = {}
    for n in graph.graph["order"]:
        node = graph.nodes[n]
        pace = (len(values) - 1,) if values else ()
        reads = tuple(sorted(made[p] for p in graph.predecessors(n)))
        made[n] = v = len(values)
        first = Op(
            name=f"op{n}",
            target="op",
            inputs=reads,
            outputs=(v,),
            seconds=float(node["cost_cpu"]),
            kind=Kind.COMPUTE,
            phase=Phase.EITHER,
            rule=Rule.MUST_RECOMPUTE,
            reason="of no forward",
        )
        then = Op(f"then{n}", "pace", (v, *pace), (v + 1,), 0.0, Kind.OTHER, Phase.BACKWARD)
        values += [
            Value(first.name, int(node["cost_ram"]), len(ops)),
            Value(then.name, 0, len(ops) + 1),
        ]
        ops += [first, then]
    return Problem(tuple(ops), tuple(values), (), (len(values) - 1,), "eager")


def to_problem(graph: nx.DiGraph) -> Problem:
    """Return an instance as a problem: each operation makes one value, run op by op."""
    order = list(nx.topological_sort(graph))
    late: set[Any] = set()  # what the backward's own operations lead to is the backward's
    for n in order:
        if graph.nodes[n]["backward"] or not late.isdisjoint(graph.predecessors(n)):
            late.add(n)
    place = {n: i for i, n in enumerate(order)}
    ops = tuple(
        Op(
            name=f"op{i}",
            target=str(graph.nodes[n].get("name", n)),
            inputs=tuple(sorted(place[p] for p in graph.predecessors(n))),
            outputs=(i,),
            seconds=float(graph.nodes[n]["cost_cpu"]),
            kind=Kind.COMPUTE,
            phase=Phase.BACKWARD if n in late else Phase.FORWARD,
        )
        for i, n in enumerate(order)
    )
    values = tuple(Value(f"op{i}", int(graph.nodes[n]["cost_ram"]), i) for i, n in enumerate(order))
    return Problem(ops, values, (), (), "eager")


def peak(problem: Problem, runs: Iterable[int]) -> int:
    """Return the peak of a sequence by MOCCASIN's definition, without recut's evaluator.

    While an operation runs, its result is in memory, and so are those that it or a later one
    reads before they are made again.
    """
    runs = list(runs)
    reads = [[problem.values[v].producer for v in problem.ops[i].inputs] for i in runs]
    latest: dict[int, int] = {}
    last = list(range(len(runs)))
    for k, i in enumerate(runs):
        for p in reads[k]:
            last[latest[p]] = k
        latest[i] = k
    change = [0] * (len(runs) + 1)
    for k, i in enumerate(runs):
        change[k] += problem.values[i].bytes
        change[last[k] + 1] -= problem.values[i].bytes
    held = most = 0
    for x in change:
        held += x
        most = max(most, held)
    return most


def solve_sequence(name: str, problem: Problem, percent: int) -> Row:
    """Plan a random instance under a share of its plain peak.

    Raises:
        AssertionError: the plan is over the budget by a count of its own.
    """
    whole = sum(op.seconds for op in problem.ops)
    plain = peak(problem, range(len(problem.ops)))
    budget = math.ceil(plain * percent / 100)  # as its authors round it
    start = time.perf_counter()
    stages = Stages(problem, Schedule((), tuple(range(len(problem.ops)))))
    answer = exact.solve(StageProgram(stages, stages.within(_DEPTH)), budget, _NODES)
    seconds = time.perf_counter() - start
    nodes = len(problem.ops) // 2
    if answer.candidate is None:
        return Row(name, nodes, percent, None, None, seconds)
    _check(name, problem, percent, answer.candidate.schedule, budget)
    return Row(name, nodes, percent, answer.candidate.seconds / whole, None, seconds)


def _check(name: str, problem: Problem, percent: int, schedule: Schedule, budget: int) -> None:
    """Count a plan's peak without the evaluator."""
    held = peak(problem, schedule.forward + schedule.backward)
    if held > budget:
        raise AssertionError(f"{name} at {percent} %: {held} bytes of {budget}")


def solve(name: str, problem: Problem, percent: int) -> Row:
    """Plan an instance under a share of its plain peak.

    Raises:
        AssertionError: the plan is over the budget by a count of its own.
    """
    whole = sum(op.seconds for op in problem.ops)
    plain = peak(problem, range(len(problem.ops)))
    budget = plain * percent // 100
    start = time.perf_counter()
    planner = Planner(problem, CPU, effort=HIGH)
    try:
        plan = planner.plan(budget)
    except InfeasibleBudget as error:
        seconds = time.perf_counter() - start
        proven = error.proof is not None and error.proof.bytes > budget
        floor = error.floor / plain
        return Row(name, len(problem.ops), percent, None, None, seconds, floor, proven)
    seconds = time.perf_counter() - start
    _check(name, problem, percent, plan.schedule, budget)
    return Row(
        name,
        len(problem.ops),
        percent,
        plan.added_seconds / whole,
        plan.bound_seconds / whole,
        seconds,
    )


def markdown(rows: Sequence[Row], made: Mapping[str, str]) -> str:
    """Return the results as a page."""
    lines = [
        "# Published instances",
        "",
        "Added compute, in per cent of all operations, of recut's plans with `effort=high` for "
        "MOCCASIN's training graphs,",
        "and what every plan in the order of the backward adds at least: *optimal* where that is "
        "the same. A budget is a share of",
        "the plain order's peak. Where none fits, the share of the lowest plan is given, and "
        "*proven* where no plan can do with less",
        "than the budget. Random layered graphs have no backward; the exact tier plans them alone, "
        "without a bound.",
        "",
        "| instance | ops | budget | added | at least | | seconds | published |",
        "| --- | --: | --: | --: | --: | --- | --: | --- |",
    ]
    for row in rows:
        cells = [row.name, str(row.nodes), f"{row.percent} %", *row.figures(), f"{row.seconds:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {PUBLISHED.get((row.name, row.percent), '')} |")
    text = "\n".join(lines)
    return (
        f"{text}\n\n{made['date']}, HiGHS {made['highs']}, {made['device']}: `{made['command']}`\n"
    )


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draw what plans add, and at least, against the budget: a panel for each that has any."""
    names = list(dict.fromkeys(row.name for row in rows if row.bound is not None))
    if not names:
        return
    figure, grid = figures.panels(len(names))
    for axes, name in zip(grid, names, strict=True):
        own = [(row.percent, row.added, row.bound) for row in rows if row.name == name]
        found = [(x, 100 * y, 100 * z) for x, y, z in own if y is not None and z is not None]
        x, added, bound = zip(*found, strict=True)
        axes.plot(x, added, "o-", label="recut")
        axes.plot(x, bound, "_", markersize=12, label="at least")
        axes.set_title(name)
        axes.set_yscale("log")
        axes.set_xlabel("budget, % of the plain peak")
        axes.set_ylabel("added compute, %")
        axes.grid(alpha=0.3)
        axes.legend()
    figures.save(figure, path)


def _size(path: Path) -> int:
    """Return how many operations a random graph has by its name."""
    return int(path.name.split("_n", maxsplit=1)[1].split("_", maxsplit=1)[0])


def _solved(files: Iterable[Path], random: Iterable[Path]) -> Iterator[Row]:
    """Yield a row for each instance and budget."""
    for path in files:
        problem = to_problem(read(path))
        for percent in PERCENTS:
            yield solve(path.name.split(" (", maxsplit=1)[0], problem, percent)
    for path in random:
        problem = to_sequence(read(path))
        for percent in _RANDOM_PERCENTS:
            yield solve_sequence(f"random {_size(path)}", problem, percent)


def main(arguments: list[str] | None = None) -> int:
    """Plan every graph of a folder under every budget, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="data of haoming-codes/moccasin")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    files = sorted(options.folder.glob("*_train_nx.json"))
    random = sorted(options.folder.glob("random_layered_*.json"), key=_size)
    if not files and not random:
        parser.error(
            f"{options.folder} holds no *_train_nx.json and no random_layered_*.json: "
            "it should be MOCCASIN's data"
        )
    table = Table("instance", "ops", "budget", "added", "at least", "", "seconds", "published")
    rows = []
    for row in _solved(files, random):
        rows.append(row)
        published = PUBLISHED.get((row.name, row.percent), "")
        cells = (str(row.nodes), f"{row.percent} %", *row.figures(), f"{row.seconds:.2f}")
        table.add_row(row.name, *cells, published)
    Console(width=130).print(table)
    made = environment("python -m benchmarks.instances FOLDER")
    made["highs"] = importlib.metadata.version("highspy")
    write_atomic(options.output / "instances.md", markdown(rows, made))
    picture(rows, options.output / "instances.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
