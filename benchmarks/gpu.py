"""The benchmark for a GPU: a Llama in bf16 with flash attention and generated Triton kernels.

Three parts, each resumable: ``calibration`` measures the device's prices, ``table`` every way to
spend memory at one batch size, ``memory`` the largest batch and the tokens per second under fixed
memory.  On a machine that is lent for commands of ten minutes, with the folder of results in
``$OUT``::

    export PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    python -m benchmarks.gpu --size small --output $OUT                          # does it run?
    python -m benchmarks.gpu --part calibration --part table --output $OUT --minutes 8.5
    python -m benchmarks.gpu --part memory --output $OUT --minutes 8.5

Where there are cores enough, one command runs the table and the memory under each cap side by side,
since most of the time is compiling (``--turns``: a lock that a process leaves only to compile)::

    run="python -m benchmarks.gpu --size lent --output $OUT --turns /tmp/gpu.lock"
    $run --part table & $run --part memory --cap 40 & $run --part memory --cap 80 & wait

A part can be divided further, by ``--kind``: of the table, the methods of that kind and recut under
their peaks (and stock); of the memory, the methods.  The report puts the pieces together.

``small`` takes two or three minutes, the table two or three commands, memory two or three.  A part
that is not finished says so and exits with 75: run the same command again, in a folder that holds
the files of the command before (``cp gpu-results/* $OUT/`` first where ``$OUT`` is emptied between
commands).  Every row is written as it comes, so a killed command loses one row.

Exit status: 0 when the parts are complete, 75 when they are to be continued, 2 when the request
cannot be met.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import gpu_memory, gpu_report, gpu_table, measure
from benchmarks.contest import KINDS, Kind
from benchmarks.gpu_setup import GIB, SIZES, Bench, Tell
from benchmarks.resume import Clock, ForeignRecordError, Record
from benchmarks.table import environment
from benchmarks.turns import turns
from recut.files import write_atomic
from recut.machines import this_host
from recut.partitioners.machine import Machine

RESULTS = Path(__file__).parent / "results"
CONTINUED = 75  # sysexits.h: a temporary failure, try again
MACHINE = "machine.json"
CALIBRATION_SECONDS = 60.0

Part = Callable[[Bench, Record, Clock, Tell, Collection[Kind]], bool]
_NAMES: dict[str, Kind] = {kind.replace(" ", "-"): kind for kind in KINDS if kind != "eager"}
PARTS: dict[str, Part] = {"table": gpu_table.run, "memory": gpu_memory.run}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are not complete yet; returns the exit status."""
    options = _parse(arguments)
    clock = Clock(options.minutes)
    if options.device == "cuda" and not torch.cuda.is_available():
        return _refuse("torch sees no GPU here: --device cpu --size tiny runs the same code")
    options.output.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    columns = (
        TextColumn("{task.description:<60}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    size = SIZES[options.size]
    if options.cap:
        size = replace(size, caps=tuple(cap * GIB for cap in options.cap))
    complete = True
    # No thread of its own that draws: it would slow down what is measured here.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        for part in options.part:
            if part == "calibration":
                complete = _calibrate(options, clock, progress)
            else:
                machine = options.machine or _own_machine(options.output)
                bench = Bench(size, device, machine)
                try:
                    with turns(options.turns):
                        complete = _run(part, bench, options, clock, progress)
                except ForeignRecordError as error:
                    return _refuse(str(error))
            if not complete:
                break
    report = options.output / "gpu.md"
    write_atomic(report, gpu_report.markdown(options.output))
    print(f"report: {report}")
    if complete:
        return 0
    print(f"{part}: to be continued, run the same command again")
    return CONTINUED


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ["calibration", *PARTS]
    parser.add_argument(
        "--part", action="append", choices=names, help="may be given again; default: all"
    )
    parser.add_argument("--size", choices=list(SIZES), default="full", help="default: full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="begin no row that ends later (default 8.5)"
    )
    parser.add_argument(
        "--cap", action="append", type=int, metavar="GIB", help="of the part memory, this cap only"
    )
    parser.add_argument(
        "--kind",
        action="append",
        choices=list(_NAMES),
        help="may be given again; of the parts table and memory, these methods only",
    )
    parser.add_argument(
        "--turns", type=Path, metavar="FILE", help="share the device by a lock on this file"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "gpu", help="folder of the results and state"
    )
    parser.add_argument(
        "--machine",
        help="name or file of a machine description; default: what the part calibration left in "
        "the output folder, or the best that recut knows",
    )
    options = parser.parse_args(arguments)
    options.part = [name for name in names if name in (options.part or names)]
    return options


def _refuse(text: str) -> int:
    print(f"benchmarks.gpu: {text}", file=sys.stderr)
    return 2


def _own_machine(folder: Path) -> str | None:
    path = folder / MACHINE
    return str(path) if path.exists() else None


def _run(
    part: str, bench: Bench, options: argparse.Namespace, clock: Clock, progress: Progress
) -> bool:
    """Go on with one part; returns whether it is complete."""
    caps = "".join(f"-{cap}" for cap in options.cap or () if part == "memory")
    piece = "".join(f"-{kind}" for kind in options.kind or ())
    kinds = [_NAMES[name] for name in options.kind or _NAMES]
    record = Record(
        options.output / f"{part}{caps}{piece}.json",
        _setting(bench),
        environment(_command(options, part)),
    )
    if record.document["complete"]:
        progress.console.print(f"{part}: kept {record.path}, it is complete")
        return True
    task = progress.add_task(part, total=None, left="")

    def tell(text: str, rows: int) -> None:
        done = len(record.rows)
        if done:
            progress.console.print(f"  {json.dumps(record.rows[-1])}", soft_wrap=True)
        spent = [row["spent"] for row in record.rows] or [bench.size.row_seconds]
        left = f"about {statistics.fmean(spent) * rows / 60:.0f} min left"
        progress.console.print(f"{part} {done + 1}/{done + rows}, {left}: {text}")
        progress.update(
            task,
            description=f"{part}: {text}",
            completed=done,
            total=done + rows,
            left=left,
            refresh=True,
        )

    measure.prepare()
    complete = PARTS[part](bench, record, clock, tell, kinds)
    if complete:
        record.finish()
    done = len(record.rows)
    text = f"{part}: {'complete' if complete else 'to be continued'}"
    total = done if complete else None
    progress.update(task, description=text, completed=done, total=total, left="", refresh=True)
    return complete


def _setting(bench: Bench) -> dict[str, Any]:
    """What all rows of a record have in common."""
    host = this_host(bench.device.type)
    return {
        "size": bench.size.name,
        "shape": vars(bench.size.shape),
        "batch": bench.size.batch,
        "rounds": bench.size.rounds,
        "device": host.product,
        "torch": host.torch,
    }


def _command(options: argparse.Namespace, part: str) -> str:
    device = "" if options.device == "cuda" else f" --device {options.device}"
    caps = "".join(f" --cap {cap}" for cap in options.cap or () if part == "memory")
    caps += "".join(f" --kind {kind}" for kind in options.kind or ())
    turn = " --turns FILE" if options.turns else ""
    return f"python -m benchmarks.gpu --part {part} --size {options.size}{device}{caps}{turn}"


def _calibrate(options: argparse.Namespace, clock: Clock, progress: Progress) -> bool:
    """Measure the device unless that has been done on this one; returns whether it is there."""
    from recut.calibrate import Calibration

    path = options.output / MACHINE
    host = this_host(options.device)
    calibration = Calibration(host, SIZES[options.size].calibration_scale)
    if path.exists():
        machine = Machine.from_json(json.loads(path.read_text(encoding="utf-8")))
        if machine.name == host.product and f"torch {host.torch}," in machine.source:
            progress.console.print(f"calibration: kept {path}")
            return True
    if not clock.allows(CALIBRATION_SECONDS):
        return False
    steps = list(calibration.steps())
    task = progress.add_task("calibration", total=len(steps), left="")
    for label, run in steps:
        progress.update(task, description=f"calibration: {label}", refresh=True)
        run()
        progress.advance(task)
    write_atomic(path, json.dumps(calibration.machine().to_json(), indent=1) + "\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
