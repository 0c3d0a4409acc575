"""``recut explain``: a dumped plan in words."""

from __future__ import annotations

import argparse
from pathlib import Path

from recut.commands.console import WELL, add_json, answer
from recut.files import graph_folder
from recut.planned import GRAPH, load


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its arguments."""
    parser.description = (
        "Say of a dumped plan where its peak is and what is in memory there, what is "
        "saved and recomputed and why, and what would help."
    )
    parser.add_argument(
        "folder", type=Path, help="of one graph: what RECUT_DUMP or `recut plan --dump` wrote"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read and tell."""
    found = load(graph_folder(options.folder, GRAPH)).explain()
    if options.json:
        answer(found.to_json())
    else:
        print(found)
    return WELL
