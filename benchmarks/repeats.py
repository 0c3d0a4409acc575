"""Step times to a few per cent: ``python -m benchmarks.repeats --models gpt12,gpt16``.

A machine that is shared runs a step a fifth slower for seconds or minutes, whatever its own load:
then two instances of one compiled step differ by as much in their medians, and what a plan adds is
lost in that. So one race is run in several processes, each of which compiles its contestants in
another order, and beside the medians stands what the fastest round of all took: no neighbour makes
a step faster than it is. Stock Inductor races as two instances, which shows what is noise.

A process that has raced is not run again: the command goes on where its record stands.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.contest import Entry, Row, ask, budget_of, enter_recut, take, timed
from benchmarks.models import MODELS, ModelSpec
from benchmarks.resume import Record
from benchmarks.table import RESULTS, environment, mib, names_of, origin
from recut.files import write_atomic

STOCK = ("stock Inductor", "stock Inductor again")
BLOCK = "checkpoint per block"
# Budgets: shares of stock's measured peak, multiples of per-block checkpoint's.
OF_STOCK = (0.5, 0.4)
OF_BLOCK = (1.5, 1.3, 1.2, 1.0, 0.9)


def budgets(stock: int, block: int | None) -> list[Row]:
    """Return recut's rows for the measured peaks of stock and of per-block checkpoint, bytes."""
    rows = [Row("recut 1.0", "recut")]
    rows += [ask(f"recut {share:.0%} of stock", int(stock * share)) for share in OF_STOCK]
    if block is not None:
        rows += [ask(f"recut {factor} x per block", int(block * factor)) for factor in OF_BLOCK]
    return rows


def race(spec: ModelSpec, turn: int, rounds: int) -> list[Row]:
    """Race a model's contestants once, all of them in this process.

    Args:
        spec: the model.
        turn: which of the processes this is; it sets the order in which contestants are compiled.
        rounds: how often each contestant runs.
    """
    measure.prepare()
    stock, inputs = spec.make(False)

    def enter(row: Row, model: Any) -> Entry:
        if row.kind == "recut":
            return enter_recut(row, measure.compile_recut(model, budget_of(row)), inputs, None)
        return take(row, measure.compile_stock(model), inputs, None)[0]

    entries = [enter(Row(STOCK[0], "stock"), stock)]
    if spec.has_blocks:
        entries.append(enter(Row(BLOCK, "block"), spec.make(True)[0]))
    peaks = [entry.row.measured for entry in entries]
    assert peaks[0] is not None
    rows = [Row(STOCK[1], "stock"), *budgets(peaks[0], peaks[1] if spec.has_blocks else None)]
    first = turn % len(rows)
    entries += [enter(row, spec.make(False)[0]) for row in rows[first:] + rows[:first]]
    times = measure.race({e.row.label: e.run for e in entries if e.run}, rounds)
    return [timed(entry, times) for entry in entries]


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return the median step of each contestant of one process over the mean of stock's two."""
    seconds = {row.label: row.seconds for row in rows if row.seconds is not None}
    stock = statistics.mean(seconds[label] for label in STOCK)
    return {label: spent / stock for label, spent in seconds.items()}


def fastest(processes: Sequence[Sequence[Row]]) -> dict[str, float]:
    """Return the fastest round of each contestant in all processes over stock's fastest."""
    found: dict[str, float] = {}
    for row in (row for rows in processes for row in rows if row.least is not None):
        found[row.label] = min(row.least, found.get(row.label, row.least))
    stock = min(found[label] for label in STOCK)
    return {label: spent / stock for label, spent in found.items()}


def section(spec: ModelSpec, processes: Sequence[Sequence[Row]], made: Mapping[str, str]) -> str:
    """Return the table of one model: medians over its processes, and the fastest rounds."""
    lines = [
        "| contestant | asked MiB | measured MiB | step / stock | fastest rounds | added, of per "
        "block's |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    steps = [ratios(rows) for rows in processes]
    best = fastest(processes)
    every = {row.label: row for rows in reversed(processes) for row in rows}
    order = [STOCK[0], STOCK[1], BLOCK, *(row.label for row in budgets(0, 0))]
    for row in (every[label] for label in order if label in every):
        peaks = [r.measured for rows in processes for r in rows if r.label == row.label]
        cells = [row.label, mib(row.asked)]
        if row.failure:
            cells += [row.failure, "", "", ""]
        else:
            added = (best[row.label] - 1.0) / (best[BLOCK] - 1.0) if BLOCK in best else None
            cells += [
                mib(max(p for p in peaks if p is not None)),
                _spread([found[row.label] for found in steps]),
                f"{best[row.label]:.3f}",
                "" if added is None else f"{added:.2f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join(
        (
            f"## {spec.name}: {spec.note}",
            f"{len(processes)} processes.",
            "\n".join(lines),
            origin(made),
        )
    )


def markdown(folder: Path) -> str:
    """Return the tables of every record in ``folder``, in the order of ``MODELS``."""
    parts = [
        "# Races in several processes",
        "Each process compiles every contestant anew and races them side by side. Step: the median "
        "of its rounds over the mean of two instances of stock Inductor in the same process; of "
        "several processes the median, with the least and the most. Fastest rounds: the fastest of "
        "all processes over stock's fastest, and what that adds to a step as a share of what "
        "per-block checkpoint adds. Peak: the most bytes that one forward and backward hold at "
        "once.",
    ]
    for name, spec in MODELS.items():
        path = _file(folder, name)
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            processes = [[Row(**row) for row in kept["rows"]] for kept in document["rows"]]
            if processes:
                parts.append(section(spec, processes, document["measured"]))
    return "\n\n".join(parts) + "\n"


def _file(folder: Path, name: str) -> Path:
    return folder / f"repeats_{name}.json"


def _spread(values: Sequence[float]) -> str:
    """Return a median with the range around it."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main(arguments: list[str] | None = None) -> int:
    """Run the processes that a record lacks, keep each as it comes, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeats", description=__doc__)
    parser.add_argument("--models", type=names_of, required=True, help=f"of {','.join(MODELS)}")
    parser.add_argument("--processes", type=int, default=3, help="races of a model (default 3)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of a race (default 9)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--turn", type=int, help="race here, once, and print the rows as JSON")
    options = parser.parse_args(arguments)
    if options.turn is not None:
        for name in options.models:
            rows = race(MODELS[name], options.turn, options.rounds)
            print(json.dumps([asdict(row) for row in rows]))
        return 0
    for name in options.models:
        given = f"--models {name} --processes {options.processes} --rounds {options.rounds}"
        made = environment(f"python -m benchmarks.repeats {given}")
        setting = {key: made[key] for key in ("torch", "python", "device")}
        record = Record(
            _file(options.output, name), {**setting, "rounds": options.rounds}, measured=made
        )
        for turn in range(len(record.rows), options.processes):
            start = time.perf_counter()
            rows = _in_process(name, turn, options.rounds)
            record.add({"rows": rows, "spent": time.perf_counter() - start})
            write_atomic(options.output / "repeats.md", markdown(options.output))
            print(f"{name}: process {turn + 1} of {options.processes}", flush=True)
        record.finish()
    return 0


def _in_process(name: str, turn: int, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of a race in a process of its own.

    Raises:
        CalledProcessError: it failed; what it said is on the error stream.
    """
    command = [sys.executable, "-m", "benchmarks.repeats", "--models", name]
    command += ["--turn", str(turn), "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


if __name__ == "__main__":
    sys.exit(main())
