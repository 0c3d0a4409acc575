"""Planning beside torch's own partitioner: ``python -m benchmarks.planning --models gpt12,unet``.

Both get the same joint graph inside ``torch.compile``, and the compilation ends behind them.
Seconds are the processor's, the median of some rounds: compile workers start beside a compilation,
and seconds of the clock would count them too. A model that has been compared is not compared again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch

from benchmarks import measure
from benchmarks.contest import caught
from benchmarks.models import MODELS, ModelSpec, transformer
from benchmarks.resume import Record
from benchmarks.table import RESULTS, environment
from recut.files import write_atomic

BUDGETS = (1.0, 0.75, 0.5, 0.01)
# Narrow ones of rising depth: quick to trace, and up to the size of large models' graphs.
DEEP = {
    f"narrow{layers}": ModelSpec(
        f"narrow{layers}",
        lambda block, layers=layers: transformer(layers, 64, 64, block),
        True,
        f"GPT, {layers} x 64, T=64",
    )
    for layers in (12, 25, 50, 100)
}


class _Done(Exception):  # noqa: N818 - an answer, not a failure
    """Ends a compilation behind the partitioner."""


def _seconds(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run`` so that it raises its processor seconds as ``_Done``."""

    def timed(*args: Any, **kwargs: Any) -> None:
        start = time.process_time()
        run(*args, **kwargs)
        raise _Done(time.process_time() - start)

    return timed


def _compile(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Compile up to the partitioner; returns its seconds."""
    torch._dynamo.reset()
    done = caught(lambda: measure.step(model, inputs), _Done)
    if done is not None:
        return float(done.args[0])
    raise RuntimeError("the model compiled without its partitioner")


def compare(spec: ModelSpec, rounds: int) -> tuple[int, float, list[float]]:
    """Return the number of ops, torch's seconds, and recut's for each of the budgets."""
    import recut.backend

    model, inputs = spec.make(False)
    ops: list[int] = []

    def ours(self: recut.backend.Partitioner, *args: Any, **kwargs: Any) -> None:
        timed = _seconds(call)
        try:
            timed(self, *args, **kwargs)
        finally:
            reports = [result.report for result in self.current.values()]
            ops[:] = [report.ops for report in reports if report is not None]

    call = recut.backend.Partitioner.__call__
    with (
        measure.partition_replaced(_seconds),
        mock.patch.object(recut.backend.Partitioner, "__call__", ours),
    ):
        for warm_up in (measure.compile_stock(model), measure.compile_recut(model, BUDGETS[-1])):
            _compile(warm_up, inputs)  # the first of its kind imports what it needs
        stock = [_compile(measure.compile_stock(model), inputs) for _ in range(rounds)]
        recuts = [
            statistics.median(
                _compile(measure.compile_recut(model, budget), inputs) for _ in range(rounds)
            )
            for budget in BUDGETS
        ]
    return ops[0], statistics.median(stock), recuts


def growth(ops: list[int], seconds: list[float]) -> float:
    """Return the power of the number of ops that seconds grow with: a line through logarithms."""
    slope, _ = numpy.polyfit(numpy.log(ops), numpy.log(seconds), 1)
    return float(slope)


def _growth(rows: list[dict[str, Any]]) -> list[str]:
    """Return how planning grows over the deep models that were compared, if several were."""
    deep = [row for row in rows if row["model"] in DEEP]
    if len(deep) < 2:
        return []
    ops = [row["ops"] for row in deep]
    torchs = growth(ops, [row["torch"] for row in deep])
    ours = (
        f"{growth(ops, [row['recut'][k] for row in deep]):.2f} at {budget}"
        for k, budget in enumerate(BUDGETS)
    )
    return [
        "",
        f"From {min(ops)} to {max(ops)} ops seconds grow with this power of their number: torch's "
        f"{torchs:.2f}, recut's {', '.join(ours)}.",
    ]


def markdown(rows: list[dict[str, Any]], made: dict[str, str]) -> str:
    """Return the table of all models that were compared."""
    lines = [
        "# Planning",
        "",
        "Processor seconds for one joint graph: torch's own partitioner beside recut's whole pass "
        "(prepare, capture, plan, emit, split, verify), by budget as a fraction of the fastest "
        "plan's peak; medians of some rounds, and their ratio to torch's.",
        "",
        "| model | ops | rounds | torch | " + " | ".join(f"recut {b}" for b in BUDGETS) + " |",
        "| --- |" + " --: |" * (3 + len(BUDGETS)),
    ]
    for row in rows:
        cells = (f"{s:.3f} ({s / row['torch']:.2f})" for s in row["recut"])
        start = f"| {row['model']} | {row['ops']} | {row['rounds']} | {row['torch']:.3f} | "
        lines.append(start + " | ".join(cells) + " |")
    lines += _growth(rows)
    lines += ["", f"{made['date']}, torch {made['torch']}, {made['device']}: `{made['command']}`"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare the models, keep each as it comes, and write the table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    known = {**MODELS, **DEEP}
    parser.add_argument("--models", default=",".join(known), help="names, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="compilations of each (default 5)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := set(names) - known.keys():
        parser.error(f"unknown {sorted(unknown)}, choose from {', '.join(known)}")
    measure.prepare()
    torch._inductor.config.force_disable_caches = True
    made = environment("python -m benchmarks.planning")
    setting = {key: made[key] for key in ("torch", "python", "device")}
    record = Record(options.output / "planning.json", setting, made)
    for name in names:
        if any(row["model"] == name for row in record.rows):
            continue
        start = time.perf_counter()
        ops, stock, recuts = compare(known[name], options.rounds)
        row = {"model": name, "ops": ops, "rounds": options.rounds, "torch": stock, "recut": recuts}
        record.add({**row, "spent": time.perf_counter() - start})
        print(json.dumps(row), flush=True)
        text = markdown(record.rows, record.document["measured"])
        write_atomic(options.output / "planning.md", text)


if __name__ == "__main__":
    main()
