"""The benchmark table: ``python -m benchmarks.table --models gpt12,unet --rounds 5``.

Each model's result is one JSON file, so an interrupted run goes on where it stopped; the Markdown
table is always made from every JSON file in the folder.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scipy.stats import spearmanr

from benchmarks.contest import BLOCK_FACTORS, INFEASIBLE, PERCENTS, Result, Row, run_model
from benchmarks.models import MODELS
from recut.files import write_atomic
from recut.machines import this_host

RESULTS = Path(__file__).parent / "results"
# eager, stock, per block, two torch budgets, recut at 1.0 and at the floor, four races.
TICKS = 7 + len(PERCENTS) + len(BLOCK_FACTORS) + 4
HEADER = (
    "contestant",
    "asked MiB",
    "predicted MiB",
    "measured MiB",
    "within",
    "step / stock",
    "fastest rounds",
    "added ms",
    "planned ms",
    "gradient error",
    "planning s",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the models that have no result yet, then write the table of all results."""
    options = _parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    todo = [n for n in options.models if options.force or not _settled(_file(options.output, n))]
    for name in options.models:
        if name not in todo:
            print(f"{name}: kept {_file(options.output, name)} (--force measures again)")
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # No thread of its own that draws: it would slow down what is measured here.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        for name in todo:
            task = progress.add_task(name, total=TICKS)

            def tick(text: str, name: str = name, task: Any = task) -> None:
                progress.update(task, description=f"{name}: {text}", advance=1, refresh=True)

            result = run_model(MODELS[name], options.rounds, tick)
            progress.update(task, description=f"{name}: done", completed=TICKS)
            write_atomic(
                _file(options.output, name), json.dumps(_document(result), indent=1) + "\n"
            )
            write_atomic(options.output / "table.md", markdown(options.output))
    write_atomic(options.output / "table.md", markdown(options.output))
    print(f"table: {options.output / 'table.md'}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument(
        "--models", type=names_of, default=list(MODELS), help=f"of {','.join(MODELS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each race (default 5)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--force", action="store_true", help="measure models with a result again")
    return parser.parse_args(arguments)


def names_of(text: str) -> list[str]:
    """The models that an argument names, with commas between them."""
    names = text.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {unknown}, choose from {', '.join(MODELS)}")
    return names


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _settled(path: Path) -> bool:
    """Whether a model's result stands: a contestant that crashed is measured again next time."""
    if not path.exists():
        return False
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return all(row["failure"] in (None, INFEASIBLE) for row in rows)


def _document(result: Result) -> dict[str, Any]:
    """The stored form: the result and what it was measured on."""
    command = f"python -m benchmarks.table --models {result.model} --rounds {result.rounds}"
    return {**asdict(result), "measured": environment(command)}


def environment(command: str) -> dict[str, str]:
    """Date, versions, processor and command: what a reader needs to judge or repeat a figure."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else this_host("cpu").product
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device}, {torch.get_num_threads()} threads",
        "command": command,
    }


def markdown(folder: Path) -> str:
    """The table of every result in ``folder``, in the order of ``MODELS``."""
    parts = [
        "# Benchmarks",
        "Peak: the most bytes one forward and backward hold at once beyond what was alive before. "
        "Step: the median over stock Inductor's in the same race of alternating steps, and the "
        "fastest round over stock's fastest; times taken on a shared machine carry its noise, "
        "peaks repeat to the byte. Gradient error: the "
        "largest difference of an entry over the largest entry of that parameter's gradient. "
        "Percentages are of stock's measured peak; `recut 1.0` is the fastest plan.",
    ]
    for name in MODELS:
        path = _file(folder, name)
        if path.exists():
            parts += _section(json.loads(path.read_text(encoding="utf-8")))
    return "\n\n".join(parts) + "\n"


def _section(document: dict[str, Any]) -> list[str]:
    measured = document["measured"]
    rows = [Row(**row) for row in document["rows"]]
    stock = next(row for row in rows if row.kind == "stock")
    planning = [row.planning_seconds for row in rows if row.planning_seconds is not None]
    summary = (
        f"Gradients against {document['reference']}; medians of {document['rounds']} rounds. "
        f"torch's own partitioner: {document['partition_seconds']:.2f} s on this graph"
        + (f", recut: {min(planning):.2f} to {max(planning):.2f} s." if planning else ".")
    )
    summary += times(rows)
    lines = [_line(HEADER), _line(["---"] + ["--:"] * (len(HEADER) - 1))]
    lines += [_line(cells(row, stock)) for row in rows]
    title = f"## {document['model']}: {document['note']}"
    return [title, summary, "\n".join(lines), origin(measured)]


def origin(measured: Mapping[str, str]) -> str:
    """What :func:`environment` tells, in words."""
    return (
        f"{measured['date']}, torch {measured['torch']}, Python {measured['python']}, "
        f"{measured['device']}: `{measured['command']}`"
    )


def times(rows: list[Row]) -> str:
    """How well recut predicted the step times of its plans, in words."""
    timed = [
        (r.predicted_seconds, r.seconds, r.ratio)
        for r in rows
        if r.predicted_seconds and r.seconds and r.ratio
    ]
    if len(timed) < 3:
        return ""
    predicted, measured, ratios = zip(*timed, strict=True)
    # Ratios to stock of one race each: seconds of different races are not of one machine's mood.
    rank = spearmanr(predicted, ratios).statistic
    shares = sorted(p / s for p, s in zip(predicted, measured, strict=True))
    return (
        f" Predicted step times: rank correlation {rank:.2f} with the measured, "
        f"{statistics.median(shares):.2f} of them in the median ({shares[0]:.2f} to "
        f"{shares[-1]:.2f})."
    )


def cells(row: Row, stock: Row) -> list[str]:
    """One row of the table as text; a contestant that did not run says why instead."""
    if row.failure:
        floor = "" if row.floor is None else f" (floor {mib(row.floor)} MiB)"
        reason = row.failure.replace("|", "/") + floor
        return [row.label, mib(row.asked), "", reason, *[""] * (len(HEADER) - 4)]
    added = None
    if row.ratio is not None and stock.seconds is not None:
        added = (row.ratio - 1.0) * stock.seconds
    return [
        row.label,
        mib(row.asked),
        mib(row.predicted),
        mib(row.measured),
        {None: "", True: "yes", False: "**no**"}[row.within],
        "" if row.ratio is None else f"{row.ratio:.3f}",
        "" if row.least_ratio is None else f"{row.least_ratio:.3f}",
        "" if added is None else f"{added * 1e3:+.1f}",
        "" if row.planned_added_seconds is None else f"{row.planned_added_seconds * 1e3:.1f}",
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.planning_seconds is None else f"{row.planning_seconds:.2f}",
    ]


def mib(value: int | None) -> str:
    """Bytes as MiB in a cell of a table; empty where unknown."""
    return "" if value is None else f"{value / 2**20:.1f}"


def _line(values: Any) -> str:
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    sys.exit(main())
