"""recut against the field at the same measured peaks: ``python -m benchmarks.field``.

The field is torch's own ``activation_memory_budget`` with each of its solvers, per-block
``checkpoint``, and per-block ``checkpoint`` that keeps matmuls and attention. Settings that give
one graph are one contestant. Each is compiled by Inductor and its peak is measured; recut gets that
many bytes as its budget; then both race side by side with stock Inductor. Recomputed FLOPs are what
the forward and backward graphs hold beyond stock's.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, fx, nn

from benchmarks import figures, measure
from benchmarks.contest import GROUP, Entry, Row, ask, caught, enter_recut, take, timed
from benchmarks.models import MODELS, ModelSpec
from benchmarks.models.spec import Checkpoint
from benchmarks.table import RESULTS, environment, names_of
from recut.files import write_atomic
from recut.passes.costs import flops_of

SOLVERS = ("dp", "greedy", "ilp", "dp_knapsack_sliding_hirschberg")
RATIOS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
STOCK = "stock Inductor"


@dataclass(frozen=True)
class Field:
    """One way to spend memory that is not recut.

    Attributes:
        label: what it is called.
        checkpoint: how the model's blocks are wrapped.
        config: what is set of torch's ``_functorch.config``.
    """

    label: str
    checkpoint: Checkpoint = False
    config: Mapping[str, Any] | None = None

    def compiled(self, spec: ModelSpec) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return the model as it is compiled, and its inputs."""
        model, inputs = spec.make(self.checkpoint)
        compiled = measure.compile_stock(model)
        return measure.Configured(compiled, self.config) if self.config else compiled, inputs


@dataclass(frozen=True)
class Graphs:
    """What a partitioner gave: a digest of both graphs, and their FLOPs."""

    digest: str
    flops: int


@dataclass(frozen=True)
class Pair:
    """A member of the field and recut at its measured peak; FLOPs beyond stock's."""

    theirs: Row
    ours: Row
    their_flops: int
    our_flops: int | None


def field() -> list[Field]:
    """Everything that recut is compared with, as it is asked for."""
    found = [
        Field("checkpoint per block", checkpoint=True),
        Field("checkpoint that keeps matmuls", checkpoint="matmuls"),
    ]
    for solver in SOLVERS:
        for ratio in RATIOS:
            config = {
                "activation_memory_budget": ratio,
                "activation_memory_budget_solver": solver,
            }
            found.append(Field(f"activation_memory_budget {ratio} {solver}", config=config))
    return found


class _Partitioned(Exception):  # noqa: N818 - an answer, not a failure
    """Ends a compilation behind the partitioner."""


def _graphs(pair: tuple[fx.GraphModule, fx.GraphModule]) -> Graphs:
    text = "\n".join(str(module.graph) for module in pair)
    flops = sum(
        flops_of(node)
        for module in pair
        for node in module.graph.nodes
        if node.op == "call_function"
    )
    return Graphs(hashlib.sha256(text.encode()).hexdigest(), flops)


@contextmanager
def _watched(into: list[Graphs], ends: bool) -> Iterator[None]:
    """Collect what partitioners give inside the block, and end each compilation behind them."""
    import recut.backend

    def watch(run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            pair = run(*args, **kwargs)
            into.append(_graphs(pair))
            if ends:
                raise _Partitioned
            return pair

        return watched

    ours = watch(recut.backend.Partitioner.__call__)
    with (
        measure.partition_replaced(watch),
        mock.patch.object(recut.backend.Partitioner, "__call__", ours),
    ):
        yield


def graphs_of(spec: ModelSpec, member: Field) -> Graphs:
    """Return the graphs that a member of the field gives Inductor."""
    model, inputs = member.compiled(spec)
    found: list[Graphs] = []
    with _watched(found, ends=True):
        caught(lambda: measure.step(model, inputs), _Partitioned)
    torch._dynamo.reset()
    return found[-1]


def distinct(
    spec: ModelSpec, progress: Callable[[str], object]
) -> tuple[Graphs, list[tuple[Field, Graphs]]]:
    """Return stock's graphs, and the field without what gives stock's or another one's graphs."""
    progress("graphs of stock")
    stock = graphs_of(spec, Field(STOCK))
    found: dict[str, tuple[Field, Graphs]] = {}
    for member in field():
        progress(f"graphs of {member.label}")
        graphs = graphs_of(spec, member)
        if graphs.digest == stock.digest:
            continue
        if graphs.digest in found:
            first, _ = found[graphs.digest]
            same = " and others" if not first.label.endswith("others") else ""
            member = replace(first, label=first.label + same)  # noqa: PLW2901
        found[graphs.digest] = (member, graphs)
    return stock, list(found.values())


def compare(spec: ModelSpec, rounds: int, progress: Callable[[str], object]) -> dict[str, Any]:
    """Measure one model's field, and recut at each of its peaks."""
    measure.prepare()
    stock_graphs, members = distinct(spec, progress)
    progress(STOCK)
    model, inputs = Field(STOCK).compiled(spec)
    stock, gradients = take(Row(STOCK, "stock"), model, inputs, None)
    pairs: list[Pair] = []
    each = GROUP // 2
    for first in range(0, len(members), each):
        group = []
        for member, graphs in members[first : first + each]:
            progress(member.label)
            theirs, _ = take(
                Row(member.label, "torch budget" if member.config else "block"),
                member.compiled(spec)[0],
                inputs,
                gradients,
            )
            assert theirs.row.measured is not None
            progress(f"recut at the peak of {member.label}")
            seen: list[Graphs] = []
            asked = ask(f"recut at the peak of {member.label}", theirs.row.measured)
            with _watched(seen, ends=False):
                compiled = measure.compile_recut(spec.make(False)[0], theirs.row.measured)
                ours = enter_recut(asked, compiled, inputs, gradients)
            group.append((theirs, ours, graphs, seen[-1] if ours.run else None))
        progress(f"race of {2 * len(group) + 1}, {rounds} rounds")
        pairs += _raced(stock, group, stock_graphs, rounds)
        gc.collect()
    return {
        "model": spec.name,
        "note": spec.note,
        "rounds": rounds,
        "stock": asdict(stock.row),
        "pairs": [asdict(pair) for pair in pairs],
        "measured": environment(f"python -m benchmarks.field --models {spec.name}"),
    }


def _raced(
    stock: Entry,
    group: list[tuple[Entry, Entry, Graphs, Graphs | None]],
    stock_graphs: Graphs,
    rounds: int,
) -> list[Pair]:
    assert stock.run
    entries = [entry for theirs, ours, _, _ in group for entry in (theirs, ours)]
    racers = {entry.row.label: entry.run for entry in entries if entry.run}
    times = measure.race({STOCK: stock.run, **racers}, rounds)

    return [
        Pair(
            timed(theirs, times),
            timed(ours, times),
            graphs.flops - stock_graphs.flops,
            None if seen is None else seen.flops - stock_graphs.flops,
        )
        for theirs, ours, graphs, seen in group
    ]


def markdown(documents: list[dict[str, Any]]) -> str:
    """Return the table of all models."""
    parts = [
        "# The field",
        "Step time over stock Inductor's, and recomputed GFLOPs, of what torch offers and of recut "
        "under a budget of the same measured peak; medians of one race for each pair. Settings "
        "that give the graphs of another row, or stock's, have no row of their own.",
    ]
    for document in documents:
        lines = [
            "| | MiB | step / stock | GFLOP | recut MiB | step / stock | GFLOP | recut's added |",
            "| --- |" + " --: |" * 7,
        ]
        for pair in document["pairs"]:
            theirs, ours = pair["theirs"], pair["ours"]
            cells = [
                theirs["label"],
                f"{theirs['measured'] / 2**20:.1f}",
                f"{theirs['ratio']:.3f}",
                f"{pair['their_flops'] / 1e9:.1f}",
            ]
            if ours["failure"]:
                cells += [ours["failure"], "", "", ""]
            else:
                share = (ours["ratio"] - 1) / max(theirs["ratio"] - 1, 1e-9)
                cells += [
                    f"{ours['measured'] / 2**20:.1f}",
                    f"{ours['ratio']:.3f}",
                    f"{pair['our_flops'] / 1e9:.1f}",
                    f"{share:.2f} of theirs" if theirs["ratio"] > 1.01 else "",
                ]
            lines.append("| " + " | ".join(cells) + " |")
        measured, stock = document["measured"], document["stock"]["measured"]
        parts += [
            f"## {document['model']}: {document['note']}",
            f"Stock Inductor: {stock / 2**20:.1f} MiB. Medians of {document['rounds']} rounds.",
            "\n".join(lines),
            f"{measured['date']}, torch {measured['torch']}, {measured['device']}: "
            f"`{measured['command']}`",
        ]
    return "\n\n".join(parts) + "\n"


def medians(pairs: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return recut's peaks, MiB, and the median of what its steps took in the races at each."""
    found: dict[int, list[float]] = {}
    for ours in (pair["ours"] for pair in pairs):
        if not ours["failure"]:
            found.setdefault(ours["measured"], []).append(ours["ratio"])
    return [(peak / 2**20, statistics.median(found[peak])) for peak in sorted(found)]


def plot(documents: list[dict[str, Any]], path: Path) -> None:
    """Draw step time against peak, a panel for each model."""
    figure, grid = figures.panels(len(documents))
    for axes, document in zip(grid, documents, strict=True):
        pairs = document["pairs"]
        axes.set_title(document["model"])
        for kind, marker, label in (("block", "D", "checkpoint"), ("torch budget", "s", "torch")):
            rows_of = [p["theirs"] for p in pairs if p["theirs"]["kind"] == kind]
            points = [(r["measured"] / 2**20, r["ratio"]) for r in rows_of]
            axes.plot(*zip(*points, strict=True), marker, label=label) if points else None
        if ours := medians(pairs):
            axes.plot(*zip(*ours, strict=True), "o-", label="recut")
        axes.plot([document["stock"]["measured"] / 2**20], [1.0], "*", label="stock")
        axes.set_xlabel("peak, MiB")
        axes.set_ylabel("step time / stock")
        axes.grid(alpha=0.3)
        axes.legend()
    figures.save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Measure the models that have no result yet, then write table and plot of all results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.field", description=__doc__)
    known = [name for name, spec in MODELS.items() if spec.has_blocks]
    parser.add_argument("--models", type=names_of, default=known, help="names, with commas")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each race (default 7)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--force", action="store_true", help="measure models with a result again")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    columns = (SpinnerColumn(), TextColumn("{task.description:<70}"), TimeElapsedColumn())
    # No thread of its own that draws: it would slow down what is measured here.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        for name in options.models:
            path = options.output / f"field_{name}.json"
            if path.exists() and not options.force:
                print(f"{name}: kept {path} (--force measures again)")
                continue
            task = progress.add_task(name, total=None)

            def told(text: str, name: str = name, task: Any = task) -> None:
                progress.update(task, description=f"{name}: {text}", refresh=True)

            document = compare(MODELS[name], options.rounds, told)
            told("done")
            write_atomic(path, json.dumps(document, indent=1) + "\n")
    paths = [options.output / f"field_{name}.json" for name in MODELS]
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    write_atomic(options.output / "field.md", markdown(documents))
    plot(documents, options.output / "field.svg")
    print(f"table: {options.output / 'field.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
