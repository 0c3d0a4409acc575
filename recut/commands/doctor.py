"""``recut doctor``: does recut hold here? Of a script, or of the installation by itself."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import asdict

from rich.console import Console

from recut import doctor
from recut.commands.console import FOUND, WELL, answer, positive, refuse


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its arguments."""
    parser.usage = (
        "recut doctor [--json] | recut doctor [--steps N] [--full] [--json] "
        "(script | -m module) [arguments ...]"
    )
    parser.description = (
        "Alone: check versions, compiler, caches and torch's hooks, and hold a small "
        "run against its prediction. With a script that trains under recut: compare the predicted "
        "peak and step time of each of its compiled graphs with measured ones. The script is ended "
        "once they are known. Environment variables for torch have to be set outside of it: torch "
        "is imported first. Exit status: 1 where a check or the script failed, or a budget was "
        "broken."
    )
    parser.add_argument(
        "--steps", type=positive, default=5, metavar="N", help="steps to time; default: 5"
    )
    parser.add_argument("--full", action="store_true", help="let the script run to its end")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document; what the script prints goes to standard error",
    )
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, help="run a module instead of a script"
    )
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script and its arguments")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the script, or the checks, and tell."""
    command = options.module or options.script
    if not command:
        if options.module is not None:
            return refuse("doctor: name the module to run behind -m")
        return _check(options.json)
    target = doctor.Target(command[0], bool(options.module), tuple(command[1:]))
    with doctor.stdout_to_stderr() if options.json else nullcontext():
        outcome = doctor.examine(target, options.steps, options.full)
    if isinstance(outcome, str):
        return refuse(outcome)
    findings = [doctor.finding(figures) for figures in outcome.graphs]
    failed = outcome.ending == "failed"
    if not findings and not failed:
        return refuse(
            f"{target.name}: no training graph was compiled with recut and Inductor; the script "
            'has to use torch.compile(..., backend="recut") or recut.ckpt_backend, and train'
        )
    if options.json:
        answer(doctor.to_json(findings, outcome.ending))
    elif findings:
        console = Console()
        console.print(doctor.table(findings))
        for text in doctor.sentences(findings, outcome.ending):
            console.print(text, soft_wrap=True, highlight=False, markup=False)
    return int(failed or any(found.held is False for found in findings))


def _check(as_json: bool) -> int:
    """Check the installation and tell of each check as it ends."""
    from recut.checkup import checks

    found = []
    marks = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}
    with doctor.stdout_to_stderr() if as_json else nullcontext():
        for check in checks():
            found.append(check)
            if not as_json:
                print(f"{marks[check.state]}  {check.name}: {check.text}", flush=True)
    if as_json:
        answer({"checks": [asdict(check) for check in found]})
    return FOUND if any(check.state == "failed" for check in found) else WELL
