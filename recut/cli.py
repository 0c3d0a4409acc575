"""The command line: each command is a file of ``recut.commands``.

torch takes seconds to import, so nothing here needs it: help is told at once, and an interruption
while a command's file is imported is answered like any other.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from recut.commands.console import FOUND, STOPPED, WELL, refuse
from recut.errors import RecutError
from recut.partitioners.errors import InfeasibleBudget, PlanningError

_COMMANDS = {
    "plan": "plan a model's training step for a machine, without running it",
    "sweep": "what each budget costs: peaks and step times from the least memory to the fastest",
    "fit": "find the largest batch or length that trains under a budget, without running it",
    "explain": "say in words what a dumped plan does, and what would help",
    "diff": "tell two plans apart: what is saved or recomputed otherwise, and what it costs",
    "doctor": "check what recut needs here, or what it predicts of a script against measurements",
    "calibrate": "measure this machine, so that plans are priced by it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    That is 0, 1 for what a command was asked to find (a script that failed or broke its budget, a
    budget that no plan fits, plans that differ), 2 for a request that cannot be met, or 130 where
    it was interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(arguments).parse_args(arguments)
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except InfeasibleBudget as error:
        print(f"recut: {error}", file=sys.stderr)
        return FOUND
    except (RecutError, PlanningError) as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        print("recut: stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        # Whoever reads has had enough (`recut explain ... | head`); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WELL


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return what reads the arguments of the command that is asked for, and only of that one."""
    parser = argparse.ArgumentParser(
        prog="recut",
        description="Train under a peak-memory budget with torch.compile: plan a step without "
        "running it, read plans, and check them here.",
        epilog="exit status: 0, or 1 for what was found (a budget that no plan fits or that was "
        "broken, plans that differ), or 2 for a request that cannot be met; `recut COMMAND --help` "
        "tells more",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == asked:
            importlib.import_module(f"recut.commands.{name}").add(command)
    return parser
