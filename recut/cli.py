"""The command line: ``recut calibrate`` and ``recut doctor``."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    That is 0, 1 where a script failed or broke its budget, or 2 for a request that cannot be met.
    """
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
    doctor = commands.add_parser(
        "doctor",
        help="run a training script, and compare predicted peaks and times with measured ones",
        usage="recut doctor [--steps N] [--full] [--json] (script | -m module) [arguments ...]",
        description="Run a script that trains under recut, and compare the predicted peak and "
        "step time of each of its compiled graphs with measured ones. The script is ended once "
        "they are known. Environment variables for torch have to be set outside of it: torch is "
        "imported first. Exit status: 1 where the script failed or a budget was broken.",
    )
    doctor.add_argument(
        "--steps", type=_positive, default=5, metavar="N", help="steps to time; default: 5"
    )
    doctor.add_argument("--full", action="store_true", help="let the script run to its end")
    doctor.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document; what the script prints goes to standard error",
    )
    doctor.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, help="run a module instead of a script"
    )
    doctor.add_argument("script", nargs=argparse.REMAINDER, help="the script and its arguments")
    doctor.set_defaults(run=_doctor)
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


def _doctor(options: argparse.Namespace) -> int:
    from recut import doctor

    command = options.module or options.script
    if not command:
        return _refuse("doctor: name the script to run, or a module with -m")
    target = doctor.Target(command[0], bool(options.module), tuple(command[1:]))
    with doctor.stdout_to_stderr() if options.json else nullcontext():
        outcome = doctor.examine(target, options.steps, options.full)
    if isinstance(outcome, str):
        return _refuse(outcome)
    findings = [doctor.finding(figures) for figures in outcome.graphs]
    failed = outcome.ending == "failed"
    if not findings and not failed:
        return _refuse(
            f"{target.name}: no training graph was compiled with recut and Inductor; the script "
            'has to use torch.compile(..., backend="recut") or recut.ckpt_backend, and train'
        )
    if options.json:
        print(json.dumps(doctor.to_json(findings, outcome.ending), indent=1))
    elif findings:
        console = Console()
        console.print(doctor.table(findings))
        for text in doctor.sentences(findings, outcome.ending):
            console.print(text, soft_wrap=True, highlight=False, markup=False)
    return int(failed or any(found.held is False for found in findings))


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _refuse(text: str) -> int:
    print(f"recut: {text}", file=sys.stderr)
    return 2
