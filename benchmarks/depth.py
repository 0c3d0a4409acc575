"""How little memory a deep narrow GPT trains in: ``python -m benchmarks.depth``.

Width 64, sequences of 512, batches of 4: activations are nearly all of its memory. Per depth, the
measured peak of per-block ``checkpoint`` under Inductor and of recut's floor. Peaks only: it may
run beside other work.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.contest import FLOOR
from benchmarks.models.transformer import transformer
from benchmarks.table import RESULTS, environment
from recut.files import write_atomic

DEPTHS = (8, 16, 32, 64, 128)
WIDTH, LENGTH = 64, 512


def block(depth: int) -> int:
    """Return the measured peak of stock Inductor with every block under ``checkpoint``."""
    model, inputs = transformer(depth, WIDTH, LENGTH, True)
    compiled = measure.compile_stock(model)
    measure.warm_up({"": lambda: measure.step(compiled, inputs)})
    return measure.peak_bytes(compiled, inputs)


def floor(depth: int) -> dict[str, Any]:
    """Return what recut does with as little memory as it can: bytes and seconds."""
    import recut

    recut.clear_reports()
    model, inputs = transformer(depth, WIDTH, LENGTH, False)
    compiled = measure.compile_recut(model, FLOOR)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the fraction lies under the floor
        measure.warm_up({"": lambda: measure.step(compiled, inputs)})
    spent = time.perf_counter() - start
    (report,) = recut.reports()
    return {
        "floor": measure.peak_bytes(compiled, inputs),
        "planned": report.peak,
        "ops": report.ops,
        "planning_seconds": report.planning_seconds,
        "compiling_seconds": spent,
        "added": report.added_seconds / report.step_seconds,
    }


def markdown(rows: list[dict[str, Any]], made: dict[str, str]) -> str:
    """Return the table, and with which power of the depth both grow."""
    lines = [
        "| layers | ops | per block, MiB | recut's floor, MiB | of that | planning s | added |",
        "| --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        theirs, ours = row["block"] / 2**20, row["floor"] / 2**20
        lines.append(
            f"| {row['layers']} | {row['ops']} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} | "
            f"{row['planning_seconds']:.1f} | {100 * row['added']:.0f} % |"
        )
    text = [
        "# Depth",
        f"GPT of width {WIDTH}, T={LENGTH}, B=4 on a CPU: the measured peaks of per-block "
        "`checkpoint` under stock Inductor and of recut's floor; what the floor plan is expected "
        "to add to a step of the fastest.",
        "\n".join(lines),
    ]
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        deeper = math.log(last["layers"] / first["layers"])
        powers = [math.log(last[k] / first[k]) / deeper for k in ("block", "floor")]
        text.append(
            f"From {first['layers']} to {last['layers']} layers per-block `checkpoint` grows with "
            f"the power {powers[0]:.2f} of the depth, recut's floor with {powers[1]:.2f}."
        )
    text.append(f"{made['date']}, torch {made['torch']}, {made['device']}: `{made['command']}`")
    return "\n\n".join(text) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure the depths and write the table after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=__doc__)
    parser.add_argument("--depths", default=",".join(map(str, DEPTHS)), help="with commas")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    depths = [int(depth) for depth in options.depths.split(",")]
    made = environment(f"python -m benchmarks.depth --depths {options.depths}")
    options.output.mkdir(parents=True, exist_ok=True)
    measure.prepare()
    rows: list[dict[str, Any]] = []
    for depth in depths:
        torch._dynamo.reset()
        rows.append({"layers": depth, "block": block(depth), **floor(depth)})
        print(json.dumps(rows[-1]), flush=True)
        write_atomic(options.output / "depth.md", markdown(rows, made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
