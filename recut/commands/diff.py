"""``recut diff``: what differs between two plans, or between the graphs that they are of."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from recut.commands.console import FOUND, WELL, add_json, answer, refuse
from recut.files import graph_folder, read_plan, read_problem
from recut.partitioners.difference import graph_difference, plan_difference
from recut.partitioners.errors import PlanningError
from recut.partitioners.plan import Plan
from recut.partitioners.problem import Problem
from recut.planned import PLAN, PROBLEM


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its arguments."""
    parser.description = (
        "Compare two plans of a graph, op by op, in bytes and seconds. Of plans for "
        "different graphs the graphs are compared. Exit status, as diff(1) has it: 0 where they "
        "are the same, 1 where they differ."
    )
    for name in ("first", "second"):
        parser.add_argument(
            name, type=Path, help="folder of a graph, or a plan.json with its problem.json beside"
        )
    add_json(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class _Side:
    """A plan, and its graph where that lies beside it."""

    plan: Plan
    problem: Problem | None


def _read(path: Path) -> _Side:
    file = path if path.is_file() else graph_folder(path, PLAN) / PLAN
    beside = file.parent / PROBLEM
    return _Side(read_plan(file), read_problem(beside) if beside.is_file() else None)


def run(options: argparse.Namespace) -> int:
    """Compare and tell."""
    one, other = _read(options.first), _read(options.second)
    if one.plan.digest != other.plan.digest:
        return _graphs(options, one, other)
    problem = one.problem or other.problem
    if problem is None:
        return refuse(f"diff: neither {options.first} nor {options.second} has {PROBLEM} beside it")
    try:
        one.plan.check(problem)
        other.plan.check(problem)
    except PlanningError as error:
        return refuse(f"diff: {error}")
    found = plan_difference(problem, one.plan, other.plan)
    if options.json:
        answer({"graph": "same", **asdict(found)})
    else:
        print("\n".join(found.lines()))
    return FOUND if found else WELL


def _graphs(options: argparse.Namespace, one: _Side, other: _Side) -> int:
    if one.problem is None or other.problem is None:
        return refuse(
            "diff: the plans are of different graphs, and to tell these apart each needs its "
            f"{PROBLEM} beside it"
        )
    found = graph_difference(one.problem, other.problem)
    if options.json:
        answer({"graph": "other", **asdict(found)})
    else:
        print("the plans are of different graphs:")
        print("\n".join(f"  {line}" for line in found.lines()))
    return FOUND
