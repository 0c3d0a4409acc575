"""Architectures that people train, each under three budgets: ``python -m benchmarks.zoo``.

Small models of ``transformers``, and of ``timm`` where that is installed, with their dropout. After
two steps loss, gradients and buffers are held to stock Inductor's, and what each compiled graph
holds in a step to what its kernels were counted to hold and to its budget. Nothing is timed, so it
may run beside other work. A run that was cut short goes on where it stood.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import recut
from benchmarks.held import compiling, held
from benchmarks.models.architectures import Inputs, Make, architectures
from benchmarks.resume import Clock, ForeignRecordError, Record
from benchmarks.table import RESULTS, environment
from recut.files import write_atomic

BUDGETS = (1.0, 0.6, 0.01)
_SEED = 5
# How far a number may be off as a share of the largest in its tensor, and of all: a gradient that
# is zero but for rounding says nothing.
_TOLERANCE, _NOTHING = 1e-3, 1e-5

Left = dict[str, Tensor]


def step(call: Callable[..., Tensor], model: nn.Module, inputs: Inputs) -> Tensor:
    """One forward and backward from one seed and from cleared gradients; returns the loss."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(_SEED)
    loss = call(**inputs)
    loss.backward()
    return loss.detach()


def made(make: Make) -> tuple[nn.Module, Inputs]:
    """Return a new instance, always with the same weights."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    return make()


def left(call: Callable[..., Tensor], model: nn.Module, inputs: Inputs) -> Left:
    """Return what two steps leave behind: the loss, gradients, and buffers."""
    step(call, model, inputs)
    found = {"loss": step(call, model, inputs)}
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {n}": b for n, b in model.named_buffers()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def difference(got: Left, want: Left) -> tuple[float, str]:
    """Return by how much of its largest number the worst tensor differs, and which one that is.

    Raises:
        ValueError: one has tensors that the other has not.
    """
    if got.keys() != want.keys():
        raise ValueError(f"not in both: {sorted(got.keys() ^ want.keys())}")
    largest = {name: float(t.abs().max()) if t.numel() else 0.0 for name, t in want.items()}
    least = _NOTHING * max(n for name, n in largest.items() if name.startswith("gradient"))
    worst = (0.0, "")
    for name, reference in want.items():
        if reference.numel():
            off = float((got[name].double() - reference.double()).abs().max())
            # What is no number differs from everything.
            share = off / max(largest[name], least) if off == off else float("inf")  # noqa: PLR0124
            worst = (share, name) if share > worst[0] else worst
    return worst


def look(make: Make, budgets: tuple[float, ...] = BUDGETS) -> dict[str, Any]:
    """Return what recut does with one architecture at each budget, beside stock Inductor."""
    model, inputs = made(make)
    want = left(torch.compile(model, dynamic=False), model, inputs)
    rows = []
    for budget in budgets:
        model, inputs = made(make)
        options: Any = {"memory_budget": budget}
        compiled = torch.compile(model, backend=recut.ckpt_backend, options=options, dynamic=False)
        with compiling() as graphs:
            off, where = difference(left(compiled, model, inputs), want)

        def again(call: Any = compiled, model: nn.Module = model, x: Inputs = inputs) -> None:
            for _ in range(2):
                step(call, model, x)

        found = held(graphs, again)
        rows.append(
            {
                "budget": budget,
                "off": off,
                "where": where,
                "graphs": [
                    {
                        "held": figures.peak,
                        "counted": figures.report.scheduled_peak,
                        "planned": figures.report.peak,
                        "asked": figures.report.budget,
                        "added": figures.report.added_seconds / figures.report.step_seconds,
                    }
                    for figures in found
                ],
            }
        )
    return {"budgets": rows}


def wrong(row: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an architecture's row."""
    if "error" in row:
        return [row["error"]]
    said = []
    for one in row["budgets"]:
        at = f"budget {one['budget']}"
        if not one["graphs"]:
            said.append(f"{at}: nothing was planned")
        if one["off"] > _TOLERANCE:
            said.append(f"{at}: {one['where']} is {one['off']:.1e} off stock's")
        for graph in one["graphs"]:
            sizes = [graph["held"], graph["counted"], graph["asked"]]
            if None in sizes:
                said.append(f"{at}: a graph was not measured")
            elif sizes != sorted(sizes):
                said.append(f"{at}: {sizes[0]} bytes held, {sizes[1]} counted, {sizes[2]} asked")
    return said


def markdown(rows: list[dict[str, Any]], measured: Mapping[str, str]) -> str:
    """Return the table of all architectures."""
    lines = [
        "| | graphs | held, KiB, at " + " | at ".join(f"{b:g}" for b in BUDGETS) + " | held of "
        "counted | off stock's | wrong |",
        "| --- |" + " --: |" * (len(BUDGETS) + 3) + " --- |",
    ]
    for row in rows:
        said = "; ".join(wrong(row))
        if "error" in row:
            lines.append(f"| {row['name']} |" + " |" * (len(BUDGETS) + 3) + f" {said} |")
            continue
        cells = []
        for one in row["budgets"]:
            sizes = [f"{(graph['held'] or 0) / 1024:.0f}" for graph in one["graphs"]]
            cells.append(" + ".join(sizes))
        graphs = [g for one in row["budgets"] for g in one["graphs"] if g["held"] and g["counted"]]
        shares = [graph["held"] / graph["counted"] for graph in graphs]
        near = f"{min(shares):.3f} to {max(shares):.3f}" if shares else ""
        off = max(one["off"] for one in row["budgets"])
        count = len(row["budgets"][0]["graphs"])
        lines.append(
            f"| {row['name']} | {count} | {' | '.join(cells)} | {near} | {off:.0e} | {said} |"
        )
    parts = [
        "# Architectures",
        "Small models with random weights, trained under stock Inductor and under recut: the most "
        "bytes that each compiled graph held in a step, measured; that of what its kernels were "
        "counted to hold; and how far losses, gradients and buffers are from stock's behind two "
        "steps, at worst, as a share of the largest number of that tensor. 0.01 asks for the "
        "floor.",
        "\n".join(lines),
        f"{measured['date']}, torch {measured['torch']}, {measured['libraries']}, "
        f"{measured['device']}: `{measured['command']}`",
    ]
    return "\n\n".join(parts) + "\n"


def libraries() -> str:
    """Return the releases of the libraries that architectures are of."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("transformers", "timm"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def main(arguments: list[str] | None = None) -> int:
    """Look at the architectures that have no row yet; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    known = architectures()
    parser.add_argument("names", nargs="*", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long it may run")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if unknown := sorted({*options.names} - known.keys()):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    measured = environment("python -m benchmarks.zoo") | {"libraries": libraries()}
    try:
        record = Record(options.output / "zoo.json", {"torch": measured["torch"]}, measured)
    except ForeignRecordError as error:
        parser.error(str(error))
    done = {row["name"] for row in record.rows}
    clock = Clock(options.minutes)
    for name in [n for n in options.names or known if n not in done]:
        if not clock.allows(record.longest or 0.0):
            print("out of time: the same command goes on from here")
            break
        start = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # floors, and what libraries deprecate
                row = look(known[name])
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        record.add({"name": name, **row, "spent": round(time.monotonic() - start, 1)})
        print(f"{name}: {'; '.join(wrong(record.rows[-1])) or 'right'}", flush=True)
        write_atomic(options.output / "zoo.md", markdown(record.rows, record.document["measured"]))
    return int(any(wrong(row) for row in record.rows))


if __name__ == "__main__":
    sys.exit(main())
