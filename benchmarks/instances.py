"""Published instances: ``python -m benchmarks.instances FOLDER`` plans them and says how well.

FOLDER holds the graphs that MOCCASIN (arXiv 2304.14463) publishes under ``data`` of its repository
``haoming-codes/moccasin``: Checkmate's training graphs (arXiv 1910.02653), one value for each
operation, costs in made-up units. They are read there and never kept here. A budget is a share of
the peak of the plain order that recomputes nothing; what is added is a share of all operations.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
from rich.console import Console
from rich.table import Table

from recut.partitioners.effort import HIGH
from recut.partitioners.errors import InfeasibleBudget
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Kind, Op, Phase, Problem, Value

PERCENTS = (90, 80, 60, 50, 40)
# Added compute in per cent, and seconds, by instance and budget in per cent of the plain peak.
PUBLISHED = {
    ("ResNet50", 90): "MOCCASIN 0.2 in 65 s, Checkmate 0.1 in 434 s",
    ("ResNet50", 80): "MOCCASIN 0.3 in 69 s, Checkmate 0.3 in 485 s",
    ("fcn_8_vgg", 90): "MOCCASIN 0.0 in 3 s",
    ("fcn_8_vgg", 80): "MOCCASIN 0.1 in 3 s",
}


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


def read(path: Path) -> nx.DiGraph:
    """Return an instance as a graph.

    Raises:
        ValueError: it is none of the training graphs.
    """
    graph = nx.node_link_graph(json.loads(path.read_text()), edges="links")
    if not all("backward" in data for _, data in graph.nodes(data=True)):
        raise ValueError(f"{path.name} does not say which of its operations are the backward's")
    return graph


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
        return Row(name, len(problem.ops), percent, None, None, seconds, error.floor / plain)
    seconds = time.perf_counter() - start
    held = peak(problem, plan.schedule.forward + plan.schedule.backward)
    if held > budget:
        raise AssertionError(f"{name} at {percent} %: {held} bytes of {budget}")
    return Row(
        name,
        len(problem.ops),
        percent,
        plan.added_seconds / whole,
        plan.bound_seconds / whole,
        seconds,
    )


def main(arguments: list[str] | None = None) -> int:
    """Plan every training graph of a folder under every budget, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="data of haoming-codes/moccasin")
    options = parser.parse_args(arguments)
    files = sorted(options.folder.glob("*_train_nx.json"))
    if not files:
        parser.error(f"{options.folder} holds no *_train_nx.json: it should be MOCCASIN's data")
    table = Table("instance", "ops", "budget", "added", "at least", "seconds", "published")
    for path in files:
        name = path.name.split(" (", maxsplit=1)[0]
        problem = to_problem(read(path))
        for percent in PERCENTS:
            row = solve(name, problem, percent)
            added = f"{100 * row.added:.3f} %" if row.added is not None else "none fits"
            bound = f"{100 * row.bound:.3f} %" if row.bound is not None else ""
            if row.floor is not None:
                bound = f"floor {100 * row.floor:.1f} %"
            published = PUBLISHED.get((name, percent), "")
            cells = (str(row.nodes), f"{percent} %", added, bound, f"{row.seconds:.2f}", published)
            table.add_row(name, *cells)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
