"""``recut sweep``: peak and step time of the best plans, from the least memory to the fastest."""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import astuple, fields

from rich import box
from rich.console import Console
from rich.table import Table

from recut.commands.console import WELL, add_json, answer, positive, working
from recut.commands.factory import add_factory, traced
from recut.partitioners.effort import EFFORTS
from recut.planning import Point, Sweep, read_settings, swept


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its arguments."""
    parser.description = (
        "Plan a training step for budgets from the lowest feasible one to the fastest "
        "plan's peak, without running it."
    )
    parser.epilog = "example: recut sweep train.py:make --machine a100 --points 8"
    add_factory(parser)
    parser.add_argument(
        "--points", type=positive, default=16, metavar="N", help="how many budgets; default: 16"
    )
    parser.add_argument(
        "--csv", action="store_true", help="print rows of bytes and seconds, separated by commas"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sweep and tell."""
    settings = read_settings(machine=options.machine)
    with working("tracing the model"):
        graph = traced(options, settings)
    with working(f"planning {len(graph.problem.ops)} operations for {options.points} budgets"):
        found = swept(graph, options.points, EFFORTS[settings.effort])
    if options.json:
        answer(found.to_json())
    elif options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(field.name for field in fields(Point))
        writer.writerows(astuple(point) for point in found)
    else:
        Console().print(table(found))
    return WELL


def table(found: Sweep) -> Table:
    """Return a frontier as a table, a row per budget."""
    name, machine = found.fastest.name, found.fastest.machine.name
    shown = Table(title=f"{name} on {machine}", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("budget MiB", "peak MiB", "step ms", "added"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("planner")
    whole = max(found.fastest.time, 1e-30)
    for p in found:
        shown.add_row(
            f"{p.budget / 2**20:,.1f}",
            f"{p.peak / 2**20:,.1f}",
            f"{p.seconds * 1e3:,.2f}",
            f"{p.added / whole:.1%}",
            p.planner,
        )
    return shown
