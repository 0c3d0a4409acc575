"""One model's contest: every way to spend its memory, measured against stock Inductor.

Each contestant owns an instance of the model.  It is compiled and warmed up, its peak and gradients
are taken alone, and then its step is raced; contestants race in groups that each include stock.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.models import ModelSpec

GROUP = 5  # contestants per race besides stock: more would let the machine drift within a round
SEED = 1
PERCENTS = (100, 90, 75, 60, 50, 40, 30, 20)
BLOCK_FACTORS = (1.5, 1.2, 1.0)
INFEASIBLE = "infeasible"  # the failure that is an answer; every other one is a defect
FLOOR = 0.01  # a fraction below any floor: recut gives its floor plan and one warning

Kind = Literal["eager", "stock", "block", "selective", "torch budget", "recut"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Progress = Callable[[str], object]
Caught = TypeVar("Caught", bound=Exception)


@dataclass(frozen=True)
class Row:
    """What one contestant was asked and what it did; bytes and seconds, None where unknown.

    ``ratio`` and ``seconds`` come from one race with stock, as medians; ``least`` is the fastest
    round's seconds and ``least_ratio`` that over stock's fastest; ``predicted_seconds`` is recut's
    own expectation of the step, ``kernels`` its count of what the generated code holds.  ``error``
    is ``measure.max_error`` of the gradients against the model's reference.
    """

    label: str
    kind: Kind
    asked: int | None = None
    predicted: int | None = None
    measured: int | None = None
    seconds: float | None = None
    ratio: float | None = None
    planned_added_seconds: float | None = None
    predicted_seconds: float | None = None
    error: float | None = None
    planning_seconds: float | None = None
    floor: int | None = None
    failure: str | None = None
    kernels: int | None = None
    least: float | None = None
    least_ratio: float | None = None

    @property
    def within(self) -> bool | None:
        """Whether the measured peak kept the budget; None where nothing was asked or measured."""
        if self.asked is None or self.measured is None:
            return None
        return self.measured <= self.asked


@dataclass(frozen=True)
class Result:
    """All rows of one model, eager and stock first."""

    model: str
    note: str
    reference: str
    partition_seconds: float
    rounds: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Entry:
    """A compiled contestant that waits for its race."""

    row: Row
    run: Callable[[], object] | None


def run_model(spec: ModelSpec, rounds: int, progress: Progress = lambda _: None) -> Result:
    """Measure every contestant of one model.

    Gradients are compared with eager's, except for a model with dropout: Inductor draws other
    random numbers than eager, so there stock is the reference.
    """
    measure.prepare()
    eager, inputs = spec.make(False)
    progress("eager")
    eager_entry, eager_grads = take(Row("eager", "eager"), eager, inputs, None)
    progress("stock")
    model = measure.compile_stock(spec.make(False)[0])
    with measure.partition_seconds() as partition:
        seeded(model, inputs)
    reference = None if spec.random else eager_grads
    stock, stock_grads = take(Row("stock Inductor", "stock"), model, inputs, reference)
    reference = stock_grads if spec.random else eager_grads

    contest = partial(_contest, spec, inputs, reference, stock, rounds, progress)
    fixed = contest(
        [
            Row("checkpoint per block", "block"),
            *(Row(f"activation_memory_budget {r}", "torch budget") for r in (0.9, 0.5)),
        ],
        [eager_entry],
    )
    block = next(row for row in fixed if row.kind == "block")
    asks = _recut_asks(stock.row, block)
    raced = [row for i in range(0, len(asks), GROUP) for row in contest(asks[i : i + GROUP], [])]
    stock_row = replace(stock.row, ratio=1.0, seconds=_stock_seconds(fixed), least_ratio=1.0)
    rows = (fixed[0], stock_row, *fixed[1:], *raced)
    note = "stock at the same seed" if spec.random else "eager"
    return Result(spec.name, spec.note, note, sum(partition), rounds, rows)


def _stock_seconds(rows: list[Row]) -> float | None:
    """Stock's median in the race that gave ``rows``: any member's median over its ratio."""
    return next((row.seconds / row.ratio for row in rows if row.seconds and row.ratio), None)


def _recut_asks(stock: Row, block: Row) -> list[Row]:
    """The budgets to ask recut for, as rows that wait for their measurements."""
    rows = [Row("recut 1.0", "recut")]
    if stock.measured:
        rows += [ask(f"recut {p} % of stock", stock.measured * p // 100) for p in PERCENTS]
    if block.measured:
        rows += [ask(f"recut {f} x per block", int(block.measured * f)) for f in BLOCK_FACTORS]
    return [*rows, Row("recut floor", "recut")]


def ask(label: str, asked: int) -> Row:
    return Row(label, "recut", asked=asked)


def _contest(
    spec: ModelSpec,
    inputs: tuple[Tensor, ...],
    reference: dict[str, Tensor],
    stock: Entry,
    rounds: int,
    progress: Progress,
    rows: list[Row],
    others: list[Entry],
) -> list[Row]:
    """Compile ``rows``' contestants, measure each alone, then race all of them with stock."""
    entries = list(others)
    for row in rows:
        progress(row.label)
        entries.append(_enter(spec, row, inputs, reference))
    racers = {entry.row.label: entry.run for entry in entries if entry.run}
    progress(f"race of {len(racers) + 1}, {rounds} rounds")
    assert stock.run
    times = measure.race({stock.row.label: stock.run, **racers}, rounds)
    done = [timed(entry, times) for entry in entries]
    del entries, racers
    gc.collect()
    return done


def timed(entry: Entry, times: Mapping[str, measure.Times]) -> Row:
    """The row of ``entry`` with what its race took; as it is where it did not run."""
    if entry.run is None:
        return entry.row
    taken = times[entry.row.label]
    stock = next(iter(times.values()))
    return replace(
        entry.row,
        seconds=taken.median,
        ratio=taken.ratio,
        least=taken.least,
        least_ratio=taken.least / stock.least,
    )


def _enter(
    spec: ModelSpec, row: Row, inputs: tuple[Tensor, ...], reference: dict[str, Tensor]
) -> Entry:
    """Compile one contestant; a budget that cannot be met gives a row that says so."""
    model = spec.make(row.kind == "block")[0]
    if row.kind == "torch budget":
        compiled = measure.compile_budget(model, float(row.label.split()[-1]))
    elif row.kind == "recut":
        return enter_recut(row, measure.compile_recut(model, budget_of(row)), inputs, reference)
    else:
        compiled = measure.compile_stock(model)
    return take(row, compiled, inputs, reference)[0]


def budget_of(row: Row) -> int | float:
    """What to ask recut for: bytes, or the fraction that the label means."""
    if row.asked is not None:
        return row.asked
    return FLOOR if row.label == "recut floor" else 1.0


def enter_recut(
    row: Row, compiled: nn.Module, inputs: tuple[Tensor, ...], reference: dict[str, Tensor] | None
) -> Entry:
    """Run what recut compiles; a budget that cannot be met gives a row that says so."""
    import recut

    recut.clear_reports()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the floor's is expected: it is a row of its own
            seeded(compiled, inputs)
    except Exception as error:  # dynamo wraps whatever a backend raises in a class of its own
        return Entry(failed(row, error), None)
    return take(predicted(row, recut.reports()), compiled, inputs, reference)[0]


def failed(row: Row, error: Exception) -> Row:
    """``row`` with why it has no measurements, and the floor where the error names it."""
    infeasible = infeasible_cause(error)
    if infeasible is None:
        return replace(row, failure=first_line(error))
    return replace(row, failure=INFEASIBLE, floor=floor_of(infeasible))


def predicted(row: Row, reports: list[Any]) -> Row:
    """``row`` with what recut promised; the models compile to one graph, so to one report."""
    if len(reports) != 1:
        raise RuntimeError(f"{row.label}: expected one compiled graph, got {len(reports)}")
    report = reports[-1]
    return replace(
        row,
        # At the floor the budget in force is the floor, whichever of the two the report names.
        asked=max(report.budget, report.floor or 0) if row.asked is None else row.asked,
        predicted=report.peak,
        planned_added_seconds=report.added_seconds,
        predicted_seconds=report.step_seconds + report.added_seconds,
        planning_seconds=report.planning_seconds,
        floor=report.floor,
        kernels=report.scheduled_peak,
    )


def take(
    row: Row, model: nn.Module, inputs: tuple[Tensor, ...], reference: dict[str, Tensor] | None
) -> tuple[Entry, dict[str, Tensor]]:
    """Warm up, then take gradients and the peak; returns the entry for the race as well."""
    run = partial(measure.step, model, inputs)
    measure.warm_up({row.label: run})
    seeded(model, inputs)
    gradients = measure.grads(model)
    error = None if reference is None else measure.max_error(gradients, reference)
    row = replace(row, measured=measure.peak_bytes(model, inputs), error=error)
    return Entry(row, run), gradients


def seeded(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    torch.manual_seed(SEED)
    measure.step(model, inputs)


def infeasible_cause(error: BaseException | None) -> Exception | None:
    """The ``recut.InfeasibleBudget`` behind ``error``, however torch wrapped it, or None."""
    import recut

    return cause(error, recut.InfeasibleBudget)


def cause(error: BaseException | None, kind: type[Caught]) -> Caught | None:
    """The error of a kind behind ``error``, however torch wrapped it, or None."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = _inner(error)
    return None


def caught(run: Callable[[], object], kind: type[Caught]) -> Caught | None:
    """Run, and return the error of a kind that ended it; None where none did."""
    try:
        run()
    except Exception as error:
        found = cause(error, kind)
        if found is None:
            raise
        return found
    return None


def _inner(error: BaseException) -> BaseException | None:
    """What ``error`` was raised from; dynamo keeps that in an attribute of its own."""
    return getattr(error, "inner_exception", None) or error.__cause__ or error.__context__


def floor_of(error: Exception) -> int | None:
    """The lowest feasible budget that the error names, bytes."""
    return getattr(error, "floor", None)


def first_line(error: BaseException) -> str:
    """The class and the first line of the error behind ``error``, past dynamo's own ones."""
    if type(error).__module__.startswith("torch._dynamo") and (inner := _inner(error)):
        return first_line(inner)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
