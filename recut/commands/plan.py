"""``recut plan``: what a training step would hold and take under a budget, without running it."""

from __future__ import annotations

import argparse
from pathlib import Path

from recut.commands.console import WELL, add_json, answer, working
from recut.commands.factory import add_factory, traced
from recut.files import checked_folder, write_folder
from recut.planning import planned, read_settings


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its arguments."""
    parser.description = (
        "Plan a training step under a memory budget: its peak, its expected time, and "
        "what is recomputed. The model is traced without memory, nothing runs, and the machine may "
        "be another one. Exit status: 1 where no plan fits the budget."
    )
    parser.epilog = (
        "example: recut plan train.py:make --budget 40GiB --machine h200 --dump plans/first"
    )
    add_factory(parser)
    parser.add_argument(
        "--budget",
        help='bytes ("40GiB"), a share of the fastest plan\'s peak ("60%%"), or "auto"; '
        "default: RECUT_MEMORY_BUDGET, or the fastest plan",
    )
    parser.add_argument(
        "--dump",
        type=Path,
        metavar="FOLDER",
        help="write the plan and a report here, for a browser, `recut explain` and `recut diff`",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plan and tell."""
    settings = read_settings(options.budget, options.machine)
    folder = options.dump and checked_folder("dump", options.dump)
    with working("tracing the model"):
        graph = traced(options, settings)
    with working(f"planning {len(graph.problem.ops)} operations"):
        found = planned(graph, settings)
    if folder:
        from recut.dump import REPORT, texts  # jinja2 and networkx, which telling does not need

        with working("drawing the report"):
            write_folder(folder, texts(found, {}))
    explained = found.explain()
    if options.json:
        answer({**explained.to_json(), "folder": str(folder) if folder else None})
        return WELL
    print("\n".join(explained.summary()))
    if folder:
        print(f"written to {folder}: open {REPORT} in a browser, or run `recut explain {folder}`")
    return WELL
