"""The table at one batch size: each contestant compiled, measured alone, and raced with stock.

Stock stays compiled as long as the process runs; everyone else is dropped after its race, so two
contestants at a time have to fit.  A row is complete when it is kept.  Processes that share a table
measure stock each for itself, and recut under a method's peak goes with that method.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from benchmarks import contest, measure
from benchmarks.contest import KINDS, Kind, Row
from benchmarks.gpu_setup import (
    BLOCK,
    RECUT,
    STOCK,
    Bench,
    Method,
    Size,
    Tell,
    torch_budget,
)
from benchmarks.resume import Clock, Record

# Measured first, so that a run that is stopped early has the ends of every scale.
_FIRST = (STOCK.label, BLOCK.label, "recut 1.0", "recut 50 % of stock", "recut 1.0 x per block")


def row_of(stored: Mapping[str, Any]) -> Row:
    """The row behind its stored form, which also says how long it took."""
    return Row(**{key: value for key, value in stored.items() if key != "spent"})


def contestants(size: Size, done: Sequence[Row]) -> list[Row]:
    """Every row of the table in its order, measured or waiting, as far as peaks are known."""
    known = {row.label: row for row in done}
    rows = [row for _, row in _contestants(size, known)]
    return [known.get(row.label, row) for row in rows]


def _contestants(size: Size, known: Mapping[str, Row]) -> list[tuple[Kind, Row]]:
    """Every row that can be asked for yet, with the kind of method that it goes with."""
    methods = _methods(size)
    rows: list[tuple[Kind, Row]] = [(m.kind, Row(m.label, m.kind)) for m in methods]
    rows.append(("recut", Row("recut 1.0", "recut")))
    for method in methods:
        peak = known[method.label].measured if method.label in known else None
        if peak is not None:
            asks = _asks(size, method, peak)
            rows += [(method.kind, contest.ask(name, asked)) for name, asked in asks]
    rows.append(("recut", Row("recut floor", "recut")))
    return rows


def _asks(size: Size, method: Method, peak: int) -> list[tuple[str, int]]:
    """What recut is asked for where ``method`` took ``peak`` bytes: labels and bytes."""
    if method == STOCK:
        return [(f"recut {p} % of stock", peak * p // 100) for p in size.percents]
    if method == BLOCK:
        return [(f"recut {f} x per block", peak * round(100 * f) // 100) for f in size.factors]
    if method.kind == "selective":
        return [(f"recut, peak of {method.label}", peak)]
    return []


def _methods(size: Size) -> list[Method]:
    return [*size.fixed, *map(torch_budget, size.ratios)]


def waiting(size: Size, done: Sequence[Row], kinds: Collection[Kind] = KINDS) -> list[Row]:
    """What is still to be measured of ``kinds``, the most telling first; stock before all."""
    known = {row.label: row for row in done}
    rows = [
        row
        for kind, row in _contestants(size, known)
        if row.label not in known and (kind in kinds or row.kind == "stock")
    ]
    last = len(_FIRST)
    return sorted(rows, key=lambda r: _FIRST.index(r.label) if r.label in _FIRST else last)


def run(
    bench: Bench, record: Record, clock: Clock, tell: Tell, kinds: Collection[Kind] = KINDS
) -> bool:
    """Measure what is missing of the table's ``kinds``; returns whether all of it is there."""
    table = _Table(bench)
    while rows := waiting(bench.size, done := [row_of(stored) for stored in record.rows], kinds):
        row = rows[0]
        expected = record.longest or bench.size.row_seconds
        if done and not table.started:
            expected += record.rows[0]["spent"]  # stock's, which every run compiles for itself
        if not clock.allows(expected):
            return False
        tell(row.label, len(rows))
        start = time.monotonic()
        measured = table.measure(row)
        record.add({**asdict(measured), "spent": time.monotonic() - start})
    return True


@dataclass(frozen=True)
class _Stock:
    """Stock, compiled, and the gradients that the others are compared with."""

    entry: contest.Entry
    reference: dict[str, Tensor] | None


class _Table:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.inputs = bench.inputs(bench.size.batch)
        self.methods = {method.label: method for method in _methods(bench.size)}
        self.started = False

    @cached_property
    def stock(self) -> _Stock:
        self.started = True
        measure.prepare()
        row = Row(STOCK.label, STOCK.kind)
        try:
            model = self.bench.compiled(STOCK)
            entry, reference = contest.take(row, model, self.inputs, None)
            # Atomic additions in a backward kernel differ from run to run: stock against itself.
            contest.seeded(model, self.inputs)
            error = measure.max_error(measure.grads(model), reference)
        except Exception as failure:  # the others are still worth measuring
            failed = contest.failed(row, failure)
        else:
            return _Stock(replace(entry, row=replace(entry.row, error=error)), reference)
        measure.release()
        return _Stock(contest.Entry(failed, None), None)

    def measure(self, row: Row) -> Row:
        """``row`` with its measurements, or with why there are none."""
        stock = self.stock
        entry = stock.entry if row.label == STOCK.label else self._enter(row)
        done = self._raced(entry) if entry.run else entry.row
        del entry
        self.bench.base.zero_grad(set_to_none=True)
        measure.release()
        return done

    def _enter(self, row: Row) -> contest.Entry:
        try:
            if row.kind == "recut":
                model = self.bench.compiled(RECUT, contest.budget_of(row))
                return contest.enter_recut(row, model, self.inputs, self.stock.reference)
            model = self.bench.compiled(self.methods[row.label])
            return contest.take(row, model, self.inputs, self.stock.reference)[0]
        except Exception as failure:  # one contestant's failure is its row
            return contest.Entry(contest.failed(row, failure), None)

    def _raced(self, entry: contest.Entry) -> Row:
        """The row of ``entry`` with its times, beside stock's where that runs."""
        racers = {e.row.label: e.run for e in (self.stock.entry, entry) if e.run}
        try:
            times = measure.race(racers, self.bench.size.rounds, device=self.bench.device)
        except Exception as failure:
            return contest.failed(entry.row, failure)
        mine = times[entry.row.label]
        beside = self.stock.entry.row.label in times
        return replace(entry.row, seconds=mine.median, ratio=mine.ratio if beside else None)
