"""``recut calibrate``: measure this machine, so that plans are priced by it."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from recut import calibrate
from recut.commands.console import WELL, add_json, answer, refuse
from recut.files import write_atomic
from recut.machines import store, this_host, to_text


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its arguments."""
    parser.description = (
        "Measure this machine in under a minute and keep the result in the cache "
        "folder, where recut finds it. Close what else runs on it before."
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="what to measure; default: a GPU if there is one"
    )
    parser.add_argument(
        "--output", type=Path, help="write the description to this file instead, for RECUT_MACHINE"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, keep and show."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        return refuse("--device=cuda: torch sees no GPU here; leave it out to measure the CPU")
    if options.output and not options.output.resolve().parent.is_dir():
        return refuse(f"--output={options.output}: make the folder {options.output.parent} first")
    host = this_host(device)
    calibration = calibrate.Calibration(host)
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
        answer(machine.to_json())
        return WELL
    table = Table(title=machine.name, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in to_text(machine):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"kept in {path}", soft_wrap=True)
    return WELL
