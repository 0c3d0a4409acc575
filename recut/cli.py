"""The command line: ``recut calibrate``."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, or 2 for a request that cannot be met."""
    parser = argparse.ArgumentParser(
        prog="recut", description="Train under a peak-memory budget with torch.compile."
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    calibrate = commands.add_parser(
        "calibrate",
        help="measure this machine, so that plans are priced by it",
        description="Measure this machine in under a minute and keep the result in the cache "
        "folder, where recut finds it. Close what else runs on it before.",
    )
    calibrate.add_argument(
        "--device", choices=("cpu", "cuda"), help="what to measure; default: a GPU if there is one"
    )
    calibrate.add_argument(
        "--output", type=Path, help="write the description to this file instead, for RECUT_MACHINE"
    )
    calibrate.add_argument("--json", action="store_true", help="print the description as JSON")
    calibrate.set_defaults(run=_calibrate)
    options = parser.parse_args(arguments)
    return int(options.run(options))


def _calibrate(options: argparse.Namespace) -> int:
    import torch

    from recut.calibrate import Calibration
    from recut.files import write_atomic
    from recut.machines import store, this_host, to_text

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        return _refuse("--device=cuda: torch sees no GPU here; leave it out to measure the CPU")
    if options.output and not options.output.resolve().parent.is_dir():
        return _refuse(f"--output={options.output}: make the folder {options.output.parent} first")
    host = this_host(device)
    calibration = Calibration(host)
    steps = list(calibration.steps())
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        for label, run in steps:
            progress.update(task, description=f"{label:<20}", refresh=True)
            run()
            progress.advance(task)
    machine = calibration.machine()
    if options.output:
        path = options.output
        write_atomic(path, json.dumps(machine.to_json(), indent=1) + "\n")
    else:
        path = store(machine, host, datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
    if options.json:
        print(json.dumps(machine.to_json(), indent=1))
        return 0
    table = Table(title=machine.name, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in to_text(machine):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"kept in {path}", soft_wrap=True)
    return 0


def _refuse(text: str) -> int:
    print(f"recut: {text}", file=sys.stderr)
    return 2
