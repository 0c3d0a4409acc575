"""The command line: each command is a file of ``recut.commands``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from recut.commands import calibrate, diff, doctor, explain, fit, plan, sweep
from recut.commands.console import FOUND, STOPPED, WELL, refuse
from recut.errors import RecutError
from recut.partitioners.errors import InfeasibleBudget, PlanningError

_COMMANDS = (plan, sweep, fit, explain, diff, doctor, calibrate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    That is 0, 1 for what a command was asked to find (a script that failed or broke its budget, a
    budget that no plan fits, plans that differ), 2 for a request that cannot be met, or 130 where
    it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="recut",
        description="Train under a peak-memory budget with torch.compile: plan a step without "
        "running it, read plans, and check them here.",
        epilog="exit status: 0, or 1 for what was found (a budget that no plan fits or that was "
        "broken, plans that differ), or 2 for a request that cannot be met; `recut COMMAND --help` "
        "tells more",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for command in _COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
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
