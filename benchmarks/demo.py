"""The demo: one character-level GPT, trained under six ways to spend memory.

Run it with ``python -m benchmarks.demo``.  Every row trains the same net from the same seed on the
same batches of Python's own standard library, so the losses have to agree; what differs is the peak
memory and the time of a step.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from benchmarks import figures, measure
from benchmarks.models import Transformer

LAYERS, WIDTH, LENGTH, BATCH, VOCAB = 12, 256, 256, 4, 128
LEARNING_RATE = 1e-3
TAIL = 5  # steps that the last loss is averaged over: single batches differ by half a nat
CHARACTERS = 4_000_000  # enough for thousands of batches, read in well under a second
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Entry:
    """One row: how to compile, then what came of it (bytes; ``ratio`` is over stock's step)."""

    label: str
    checkpoint: bool = False
    budget: str | float | None = None
    asked: int | None = None
    predicted: int | None = None
    measured: int | None = None
    ratio: float | None = None
    first_loss: float = float("nan")
    loss: float = float("nan")


ENTRIES = (
    Entry("stock Inductor"),
    Entry("Inductor, checkpoint per block", checkpoint=True),
    Entry("recut 100 %", budget="100%"),
    Entry("recut 50 %", budget="50%"),
    Entry("recut 30 %", budget="30%"),
    Entry("recut floor", budget=0.01),
)


def main(arguments: list[str] | None = None) -> int:
    """Train every row, race their steps, print the table and draw the plot."""
    options = _parse(arguments)
    console, start = Console(), time.perf_counter()
    batches = list(_batches(options.steps))
    measure.prepare()
    columns = (
        TextColumn("{task.description:<42}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as progress:
        trained = [_train(entry, batches, progress) for entry in ENTRIES]
        task = progress.add_task("race of alternating steps", total=options.rounds, loss="")
        racers = {e.label: partial(measure.step, model, batches[0]) for e, model in trained}
        times = measure.race(racers, options.rounds, lambda _: progress.advance(task))
    entries = [replace(entry, ratio=times[entry.label].ratio) for entry, _ in trained]
    stock_seconds = times[entries[0].label].median
    _show(console, entries, options.steps, stock_seconds)
    _plot(entries, options.output)
    console.print(f"plot: {options.output / 'demo.svg'}, {options.output / 'demo.png'}")
    console.print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="training steps per row (30)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the race (7)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the plot")
    return parser.parse_args(arguments)


def _batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """``steps`` pairs of characters and the characters after them, each ``BATCH`` x ``LENGTH``."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        # Every byte under 128 is one token; the others are names and test data in other scripts.
        text += bytes(byte for byte in path.read_bytes() if byte < VOCAB)
        if len(text) >= CHARACTERS:
            break
    data = torch.frombuffer(text, dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(len(data) - LENGTH - 1, (steps, BATCH), generator=generator)
    windows = data[starts[..., None] + torch.arange(LENGTH + 1)]
    return [(w[:, :-1].contiguous(), w[:, 1:].contiguous()) for w in windows]


def _train(
    entry: Entry, batches: list[tuple[Tensor, Tensor]], progress: Progress
) -> tuple[Entry, nn.Module]:
    """Compile and train one row; its peak is of forward and backward, the optimizer outside."""
    torch.manual_seed(0)
    net = Transformer(LAYERS, WIDTH, LENGTH, vocab=VOCAB, checkpoint=entry.checkpoint)
    # Larger embeddings than GPT-2's: the loss then leaves the plateau of letter frequencies within
    # twenty steps instead of a hundred.
    nn.init.normal_(net.token.weight, std=0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    model = _compile(entry, net)
    task = progress.add_task(f"{entry.label}: compiling", total=len(batches), loss="")
    losses: list[float] = []
    for batch in batches:
        with warnings.catch_warnings():
            # The floor is asked for with a fraction far below it, which recut answers with a
            # warning; the final table's footnote says so instead.
            warnings.simplefilter("ignore")
            losses.append(measure.step(model, batch).item())
        optimizer.step()
        progress.update(task, advance=1, description=entry.label, loss=f"loss {losses[-1]:.3f}")
    del optimizer
    entry = replace(entry, first_loss=losses[0], loss=fmean(losses[-TAIL:]))
    return _reported(replace(entry, measured=measure.peak_bytes(model, batches[0]))), model


def _compile(entry: Entry, net: nn.Module) -> nn.Module:
    if entry.budget is None:
        return measure.compile_stock(net)
    import recut

    recut.clear_reports()
    return measure.compile_recut(net, entry.budget)


def _reported(entry: Entry) -> Entry:
    """``entry`` with the budget in bytes and the peak that recut promised."""
    if entry.budget is None:
        return entry
    import recut

    report = recut.reports()[-1]
    return replace(entry, asked=max(report.budget, report.floor or 0), predicted=report.peak)


def _show(console: Console, entries: list[Entry], steps: int, stock_seconds: float) -> None:
    table = Table(
        title=f"GPT, {LAYERS} x {WIDTH}, {BATCH} x {LENGTH} characters of Python's library",
        caption="MiB beyond what is alive before the step. Percentages are of the fastest plan's "
        "peak. The floor is asked for as the fraction 0.01, which recut raises to the lowest "
        f"feasible budget. The last loss is the mean of the last "
        f"{TAIL} steps. Stock's step: {stock_seconds * 1e3:.0f} ms.",
    )
    table.add_column("")
    for header in ("budget", "predicted", "measured", "step / stock"):
        table.add_column(header, justify="right")
    table.add_column(f"loss 1 → {steps}", justify="right")
    for entry in entries:
        table.add_row(
            entry.label,
            _mib(entry.asked),
            _mib(entry.predicted),
            _mib(entry.measured),
            f"{entry.ratio:.3f}",
            f"{entry.first_loss:.3f} → {entry.loss:.3f}",
        )
    console.print(table)


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f}"


def _plot(entries: list[Entry], folder: Path) -> None:
    """Peak against step time: recut as a line, what it competes with as single points."""
    figure, (axes,) = figures.panels(1, size=(7, 4.5))
    recut = sorted((e for e in entries if e.budget is not None), key=lambda e: e.measured or 0)
    _points(axes, recut, "o-", "recut")
    for entry, marker in zip((e for e in entries if e.budget is None), ("s", "D"), strict=True):
        _points(axes, [entry], marker, entry.label)
    axes.set_xlabel("peak of forward and backward, MiB")
    axes.set_ylabel("step time / stock Inductor")
    widest = max(entry.measured or 0 for entry in entries) / 2**20
    axes.set_xlim(0, 1.15 * widest)  # room for the label of the rightmost point
    axes.grid(alpha=0.3)
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figures.save(figure, folder / "demo.svg", folder / "demo.png")


def _points(axes: Any, entries: list[Entry], style: str, label: str) -> None:
    xs = [(entry.measured or 0) / 2**20 for entry in entries]
    axes.plot(xs, [entry.ratio for entry in entries], style, label=label, markersize=7)
    # Budgets under the floor give the floor plan: one point, one label.
    labels: dict[float, list[Entry]] = {}
    for x, entry in zip(xs, entries, strict=True):
        if entry.budget is not None:
            labels.setdefault(x, []).append(entry)
    for x, same in labels.items():
        text = ", ".join(entry.label.removeprefix("recut ") for entry in same)
        top = max(entry.ratio for entry in same)
        axes.annotate(text, (x, top), (4, 6), textcoords="offset points")


if __name__ == "__main__":
    sys.exit(main())
