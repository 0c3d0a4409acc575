"""Programs of many seeds against eager: ``python -m benchmarks.fuzzing 0 10000 [--inductor]``.

Each program is traced once, planned, and run op by op at three budgets. After two steps outputs,
gradients, buffers, written inputs and the generator's state must be eager's; no step may hold more
than its plan counts, and no plan more than its budget. With ``--inductor`` each program is compiled
at one of the budgets, what its kernels allocate in a step is measured and held to it, and every
second one keeps its graphs for another backward; with ``--device cuda`` all of it is on a GPU.
Where torch compiles a program to something else than eager without recut too (a sum that cancels
may be rounded otherwise), recut must do as torch does, and the record says where that was.
A run that was cut short goes on where it stood when it is started again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch._inductor.decomposition import decompositions

import recut
from benchmarks.held import compiling, held
from benchmarks.outcomes import Outcome, assert_same, close, take_steps
from benchmarks.programs import make
from benchmarks.resume import Clock, ForeignRecordError, Record
from benchmarks.table import RESULTS, environment
from benchmarks.traced import BUDGETS, Traced

STEPS = 2
BLOCK = 20  # programs to a row of the results

Left = tuple[Outcome, Tensor]  # what steps leave behind, and the input that they write
Tolerance = Mapping[str, float]
EXACT: Tolerance = {}  # but for the last bits
# Kernels add up in another order than eager; what is wrong is off by orders of magnitude more.
DOUBLE: Tolerance = {"share": 1e-7}
SINGLE: Tolerance = {"rtol": 1e-5, "atol": 1e-5, "share": 1e-5}


class WrongProgramError(AssertionError):
    """A program that recut has changed or that is over its budget; says at which budget."""


class TorchDiffersError(Exception):
    """A program that torch without recut does not compile to what eager does."""


def by_dynamo(seed: int) -> bool:
    """Whether a program is traced by Dynamo too, which takes as long again as AOTAutograd.

    Checkpoint regions are Dynamo's to find.
    """
    return seed % 5 == 0 or any(name == "region" for name, *_ in make(seed)[0].steps)


def check(seed: int, device: str = "cpu") -> None:
    """Run the program of a seed op by op at each budget, and compare with eager.

    Raises:
        WrongProgramError: something differs, or is over the budget.
        TorchDiffersError: what differs is torch's, op by op and without a plan.
    """
    plain = {"backend": "aot_eager_default_partitioner"}
    _compare(seed, device, partial(_at_budgets, seed, device), plain)


def check_inductor(seed: int, device: str = "cpu") -> None:
    """Compile the program of a seed at one of the budgets in turn, and compare with eager.

    Random numbers are eager's, or there would be nothing to compare; Inductor draws ``bernoulli``
    otherwise even then, unless it is left whole. Sums may be rounded otherwise.

    Raises:
        WrongProgramError: something differs, or the kernels are over the budget.
        TorchDiffersError: what differs is stock Inductor's.
    """
    single = any(name == "single" for name, *_ in make(seed)[0].steps)
    tolerance = SINGLE if single else DOUBLE
    whole = {op: f for op, f in decompositions.items() if op != torch.ops.aten.bernoulli.default}
    with (
        torch._inductor.config.patch(fallback_random=True),
        mock.patch.dict(decompositions, whole, clear=True),
    ):
        check_ = partial(_kernels, seed, device, tolerance)
        _compare(seed, device, check_, {"backend": "inductor"}, tolerance, _backwards(seed))


def _backwards(seed: int) -> int:
    """Return how often a compiled program runs each backward: its kernels may write over inputs."""
    return 1 + seed % 2


def _compare(
    seed: int,
    device: str,
    check_: Callable[[Left], None],
    plain: Mapping[str, str],
    tolerance: Tolerance = EXACT,
    backwards: int = 1,
) -> None:
    """Hold a program to eager, and where that fails to torch's own compilation of it."""
    eager = _left_by_eager(seed, device, backwards)
    try:
        check_(eager)
    except WrongProgramError as error:
        try:
            own = _left_by_compiled(seed, device, backwards, **plain)
        except Exception as torchs:
            raise TorchDiffersError(f"torch fails too: {torchs}; {error}") from error
        try:
            _assert_same(own, eager, tolerance)
        except AssertionError:
            try:
                check_(own)
            except WrongProgramError as again:
                raise WrongProgramError(f"{error}; beside torch's own: {again}") from error
            raise TorchDiffersError(str(error)) from error
        raise


def _at_budgets(seed: int, device: str, want: Left) -> None:
    torch._dynamo.reset()
    recut.clear_reports()
    module, _ = make(seed, device)
    traced = Traced(module, by_dynamo(seed), dynamic=random.Random(seed).random() < 0.25)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    for budget in BUDGETS:
        module.load_state_dict(start)
        module.zero_grad()
        traced.budget = budget
        with _told(budget):
            _, inputs = make(seed, device)
            found: list[Outcome] = []
            most = traced.measured(
                lambda inputs=inputs, found=found: found.append(
                    take_steps(traced, module, inputs, STEPS)
                )
            )
            _assert_same((found[0], inputs[3]), want)
            report = traced.reports[budget]
            within = f"{most} bytes held, {report.peak} planned, {report.budget} asked"
            assert most <= report.peak <= report.budget, within


def _kernels(seed: int, device: str, tolerance: Tolerance, want: Left) -> None:
    budget = (1.0, 0.7, 0.01)[seed % 3]
    module, inputs, compiled = _compiled(
        seed, device, backend=recut.ckpt_backend, options={"memory_budget": budget}
    )
    with _told(str(budget)):
        with compiling() as graphs:
            outcome = take_steps(compiled, module, inputs, STEPS, _backwards(seed))
        _assert_same((outcome, inputs[3]), want, tolerance)
        for figures in held(graphs, lambda: take_steps(compiled, module, inputs, STEPS)):
            report = figures.report
            counted = report.scheduled_peak or 0
            within = f"{figures.peak} bytes held, {counted} in kernels, {report.budget} asked"
            assert (figures.peak or 0) <= counted <= report.budget, within


def _left_by_eager(seed: int, device: str, backwards: int = 1) -> Left:
    module, inputs = make(seed, device)
    return take_steps(module, module, inputs, STEPS, backwards), inputs[3]


def _left_by_compiled(seed: int, device: str, backwards: int, **options: Any) -> Left:
    module, inputs, compiled = _compiled(seed, device, **options)
    return take_steps(compiled, module, inputs, STEPS, backwards), inputs[3]


def _compiled(
    seed: int, device: str, **options: Any
) -> tuple[nn.Module, Sequence[Tensor], Callable[..., Any]]:
    torch._dynamo.reset()
    module, inputs = make(seed, device)
    return module, inputs, torch.compile(module, fullgraph=True, dynamic=False, **options)


def _assert_same(got: Left, want: Left, tolerance: Tolerance = EXACT) -> None:
    assert_same(got[0], want[0], **tolerance)
    close(got[1], want[1], "written input: {}".format, **tolerance)


@contextmanager
def _told(budget: str) -> Iterator[None]:
    """Say at which budget something went wrong, in one line."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(lines[:3])[:300]
        name = "" if type(error) is AssertionError else f"{type(error).__name__}: "
        raise WrongProgramError(f"budget {budget}: {name}{text}") from error


def run(
    seeds: range, record: Record, check_: Callable[[int], object], clock: Clock, console: Console
) -> None:
    """Check the seeds that no row of ``record`` has, a block at a time, while there is time."""
    done = {seed for row in record.rows for seed in range(*row["seeds"])}
    missing = [seed for seed in seeds if seed not in done]
    with Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("programs", total=len(seeds))
        progress.advance(task, len(seeds) - len(missing))
        while missing:
            if not clock.allows(record.longest or 0.0):
                console.print("out of time: the same command goes on from here")
                return
            first = missing[0]
            count = next((k for k in range(1, BLOCK) if missing[k : k + 1] != [first + k]), BLOCK)
            last = first + count
            missing = missing[count:]
            start = time.monotonic()
            failed, torchs = {}, {}
            for seed in range(first, last):
                try:
                    check_(seed)
                except TorchDiffersError as error:
                    torchs[str(seed)] = str(error)
                except Exception as error:
                    failed[str(seed)] = str(error)
                    console.print(f"seed {seed}: {error}", markup=False)
                progress.update(task, advance=1, refresh=True)
            spent = round(time.monotonic() - start, 1)
            row = {"seeds": [first, last], "failed": failed, "spent": spent}
            record.add(row | ({"torch differs": torchs} if torchs else {}))


def summary(record: Record) -> str:
    """Return how many programs were run, and what was wrong with which."""
    count = sum(row["seeds"][1] - row["seeds"][0] for row in record.rows)
    spent = sum(row["spent"] for row in record.rows)
    failed, torchs = (
        {seed: why for row in record.rows for seed, why in row.get(kind, {}).items()}
        for kind in ("failed", "torch differs")
    )
    lines = [
        f"{count} programs in {spent / 60:.1f} minutes: {len(failed)} failed, "
        f"{len(torchs)} are not eager's without recut either",
        *(f"seed {seed}: {why}" for seed, why in failed.items()),
        *(f"without recut too, seed {seed}: {why}" for seed, why in torchs.items()),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Check a range of seeds; returns 1 if any of those recorded has failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzzing", description=__doc__)
    parser.add_argument("first", type=int, help="the first seed")
    parser.add_argument("last", type=int, help="the seed behind the last one")
    parser.add_argument("--inductor", action="store_true", help="compile each program by Inductor")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long it may run")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    mode = "inductor, peaks measured" if options.inductor else "op by op"
    where = "" if options.device == "cpu" else f"_{options.device}"
    name = f"fuzzing{'_inductor' * options.inductor}{where}.json"
    command = "python -m benchmarks.fuzzing 0 10000" + " --inductor" * options.inductor
    if where:
        command += f" --device {options.device}"
    made = environment(command)
    setting = {"mode": mode, "torch": made.pop("torch"), "block": BLOCK}
    console = Console()
    try:
        record = Record(options.output / name, setting, made)
    except ForeignRecordError as error:
        parser.error(str(error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # floors, and what torch deprecates of its own
        seeds = range(options.first, options.last)
        check_ = partial(check_inductor if options.inductor else check, device=options.device)
        run(seeds, record, check_, Clock(options.minutes), console)
    console.print(summary(record), markup=False)
    return int(any(row["failed"] for row in record.rows))


if __name__ == "__main__":
    sys.exit(main())
