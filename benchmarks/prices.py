"""What prices are worth: ``python -m benchmarks.prices --models gpt12,unet``.

For each model, the same budgets planned twice: by recut's prices, and by FLOPs alone (a machine
that moves bytes, starts kernels and computes functions for nothing). All are raced with stock in
one process. The rows of recut's own prices say as well how well peaks and times are predicted.
Each model's rows are one JSON file, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks import measure
from benchmarks.contest import FLOOR, Entry, Row, ask, enter_recut, take
from benchmarks.models import MODELS, ModelSpec
from benchmarks.table import RESULTS, environment, names_of
from benchmarks.turns import turns
from recut.files import write_atomic
from recut.machines import calibrated, this_host
from recut.partitioners.machine import CPU, Machine, described

# Budgets by their way from the floor to the fastest plan's peak.
WAYS = (0.75, 0.5, 0.25)
FLOPS_ALONE = Machine("flops alone", {"default": CPU.flops["default"]}, 1e18, 1e-15)
OURS, THEIRS = "prices", "flops"


def compare(spec: ModelSpec, rounds: int, device: torch.device) -> list[Row]:
    """Return the rows of one model: stock, then recut by its prices and by FLOPs at each budget."""

    def made() -> nn.Module:
        return spec.make(False)[0].to(device)

    inputs = tuple(x.to(device) for x in spec.make(False)[1])
    stock, reference = take(Row("stock", "stock"), measure.compile_stock(made()), inputs, None)
    flops_alone = replace(FLOPS_ALONE, device=device.type)

    def enter(row: Row, budget: int | float, **options: Any) -> Entry:
        model = measure.compile_recut(made(), budget, **options)
        return enter_recut(row, model, inputs, reference)

    fastest = enter(Row(f"{OURS} 1.0", "recut"), 1.0)
    floor = enter(Row(f"{OURS} floor", "recut"), FLOOR)
    entries = [stock, fastest, floor]
    low, high = (max(e.row.kernels or 0, e.row.predicted or 0) for e in (floor, fastest))
    for way in WAYS:
        budget = int(low + way * (high - low))
        entries.append(enter(ask(f"{OURS} {way}", budget), budget))
        entries.append(enter(ask(f"{THEIRS} {way}", budget), budget, machine=flops_alone))
    racers = {e.row.label: e.run for e in entries if e.run}
    times = measure.race(racers, rounds, device=device)
    return [
        replace(e.row, seconds=times[e.row.label].median, ratio=times[e.row.label].ratio)
        if e.run
        else e.row
        for e in entries
    ]


def own(rows: Iterable[Row]) -> list[Row]:
    """Return the rows by recut's own prices that ran."""
    return [r for r in rows if r.label.startswith(OURS) and r.ratio is not None]


def pairs(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Return the steps over stock by prices and by FLOPs at each budget that both met."""
    ratio = {r.label: r.ratio for r in rows}
    both = [(ratio.get(f"{OURS} {way}"), ratio.get(f"{THEIRS} {way}")) for way in WAYS]
    return [(a, b) for a, b in both if a is not None and b is not None]


def errors(rows: Iterable[Row], field: str) -> list[float]:
    """Return how far a predicted peak lies from the measured one, as signed shares of it."""
    found = ((getattr(r, field), r.measured) for r in own(rows))
    return [p / m - 1 for p, m in found if p and m]


def markdown(folder: Path) -> str:
    """Return the report of every model in the folder."""
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in MODELS
        if (path := _file(folder, name)).exists()
    }
    rows = {name: [Row(**row) for row in document["rows"]] for name, document in found.items()}
    out = [
        "# Prices",
        "",
        "Budgets at three quarters, half and a quarter of the way from recut's floor to its "
        "fastest plan's peak; step over stock by recut's prices / by FLOPs alone, in one race. "
        "Peaks: predicted over measured, less one, as planned and as counted of the generated "
        "kernels before they run; the worst of five budgets. Times: rank correlation of predicted "
        "and measured, and predicted over measured in the median.",
        "",
        "| model | 1.0 | 0.75 | 0.5 | 0.25 | floor | planned | counted | held | rank | times |",
        "| --- |" + " --- |" * 10,
    ]
    out += [_line(name, model) for name, model in rows.items()]
    every = [r for model in rows.values() for r in own(model)]
    both = [pair for model in rows.values() for pair in pairs(model)]
    if both:
        out += ["", _summary(every, both)]
    for document in found.values():
        made = document["measured"]
        text = (
            f"{made['date']}, torch {made['torch']}, {made['device']}, priced by {made['machine']}"
        )
        out += ["", f"`{made['command']}`: {text}"]
    return "\n".join(out) + "\n"


def _line(name: str, rows: list[Row]) -> str:
    ratio = {r.label: r.ratio for r in rows}

    def cell(way: float) -> str:
        return f"{_ratio(ratio.get(f'{OURS} {way}'))} / {_ratio(ratio.get(f'{THEIRS} {way}'))}"

    timed = [(r.predicted_seconds, r.seconds) for r in own(rows) if r.predicted_seconds]
    rank = spearmanr(*zip(*timed, strict=True)).statistic
    share = statistics.median(p / s for p, s in timed if p and s)
    cells = [
        name,
        _ratio(ratio.get(f"{OURS} 1.0")),
        *map(cell, WAYS),
        _ratio(ratio.get(f"{OURS} floor")),
        *(f"{100 * max(errors(rows, f), key=abs):+.1f} %" for f in ("predicted", "kernels")),
        "yes" if all(r.within is not False for r in own(rows)) else "**no**",
        f"{rank:.2f}",
        f"{share:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _summary(rows: list[Row], both: list[tuple[float, float]]) -> str:
    mean = statistics.geometric_mean(a / b for a, b in both)
    worst = max(a / b for a, b in both)
    planned, counted = ([abs(e) for e in errors(rows, field)] for field in ("predicted", "kernels"))
    return (
        f"By prices over by FLOPs: geometric mean {mean:.3f}, worst {worst:.3f}, of {len(both)} "
        f"budgets. Peaks off, median and worst: planned {100 * statistics.median(planned):.2f} and "
        f"{100 * max(planned):.1f} %, counted {100 * statistics.median(counted):.2f} and "
        f"{100 * max(counted):.1f} %."
    )


def _file(folder: Path, name: str) -> Path:
    return folder / f"prices_{name}.json"


def _measure(name: str, options: argparse.Namespace, machine: Machine) -> None:
    """Measure one model, and keep its rows."""
    measure.prepare()
    rows = compare(MODELS[name], options.rounds, torch.device(options.device))
    command = f"python -m benchmarks.prices --models {name} --rounds {options.rounds}"
    if options.device != "cpu":
        command += f" --device {options.device}"
    measured = {**environment(command), "machine": machine.source or machine.name}
    document = {"measured": measured, "rows": [asdict(row) for row in rows]}
    write_atomic(_file(options.output, name), json.dumps(document, indent=1) + "\n")
    print(_line(name, rows), flush=True)
    torch._dynamo.reset()
    measure.release()


def main(arguments: list[str] | None = None) -> int:
    """Measure the models that have no result yet, then write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prices", description=__doc__)
    parser.add_argument("--models", type=names_of, default=list(MODELS), help="names, with commas")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each race (default 7)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--turns", type=Path, metavar="FILE", help="share the device by a lock on this file"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--force", action="store_true", help="measure models with a result again")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    host = this_host(options.device)
    machine = calibrated(host) or described(host.device, host.product)
    with turns(options.turns):
        for name in options.models:
            if not _file(options.output, name).exists() or options.force:
                _measure(name, options, machine)
    write_atomic(options.output / "prices.md", markdown(options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
