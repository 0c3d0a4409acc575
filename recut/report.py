"""What recut did to each compiled graph: kept as data, logged in one line."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from recut.budget import Budget

if TYPE_CHECKING:
    from recut.partitioners.problem import Size
    from recut.partitioners.sizes import PeakFormula

log = logging.getLogger("recut")


@dataclass(frozen=True)
class GraphReport:
    """One compiled training graph.

    Attributes:
        budget: bytes that the peak has to stay under.
        peak: predicted peak of the plan, bytes.
        fastest_peak: predicted peak of the fastest plan, bytes.
        floor: lowest budget that a plan was found for, bytes; None where it was not looked for.
        added_seconds: time that the plan is expected to add to the fastest plan's step, seconds.
        step_seconds: expected time of the fastest plan's step, seconds.
        planning_seconds: time that partitioning took, seconds.
        ops: number of operations planned over.
        planner: which planner answered.
        asked: the budget as the user wrote it.
        scheduled_peak: the most bytes that Inductor's generated kernels hold at one moment; None
            where no code was generated (without Inductor, or from a cache).
        attempts: how often the graph was planned until its kernels held the budget.
        gap_seconds: how much of what is added no proof says that every plan needs that is under the
            budget and keeps the order of the backward's own ops, seconds; the best such plan there
            is may save that much, and no more.
        bases: how many ops have a price that was declared, measured or modelled, or none (unknown).
        unpriced: what is never recomputed, because nobody knows its cost.
        machine: the description of the machine that set the prices, and where it is from.
        sizes: the symbolic sizes of the graph, and what they stood for while planning.
        formula: the peak at any sizes; None where the graph has no symbolic ones.
        folder: where the graph was dumped; None where it was not.
    """

    budget: int
    peak: int
    fastest_peak: int
    floor: int | None
    added_seconds: float
    step_seconds: float
    planning_seconds: float
    ops: int
    planner: str
    asked: Budget
    scheduled_peak: int | None = None
    attempts: int = 1
    gap_seconds: float = 0.0
    bases: Mapping[str, int] = field(default_factory=dict)
    unpriced: tuple[str, ...] = ()
    machine: str = ""
    sizes: tuple[Size, ...] = ()
    formula: PeakFormula | None = None
    folder: Path | None = None

    def line(self) -> str:
        """Return the log line."""
        share = self.added_seconds / self.step_seconds if self.step_seconds else 0.0
        again = f", attempt {self.attempts}" if self.attempts > 1 else ""
        return (
            f"budget {_mib(self.budget)} ({self.asked}): planned peak {_mib(self.peak)}"
            f"{self._counted()} (fastest plan {_mib(self.fastest_peak)}), recomputation expected "
            f"to add {share:.1%} to the step{self._proof()}; {self.ops} ops planned in "
            f"{self.planning_seconds:.2f} s by {self.planner}{again}{self._unknown()}"
            f"{self._sizes()}"
        )

    def _sizes(self) -> str:
        """Say at which sizes the peak was counted, and up to which a budget in bytes holds."""
        if self.formula is None:
            return ""
        told = []
        for size in self.sizes:
            text = f"{size.source or size.symbol} = {size.hint}"
            if self.asked.kind != "fraction":
                most = self.formula.largest(size.symbol, self.budget)
                text += f" (the budget holds up to {most})" if most else ""
            told.append(text)
        return f"; planned for {', '.join(told)}: more takes more memory"

    def _counted(self) -> str:
        if self.scheduled_peak is None:
            return ""
        return f", {_mib(self.scheduled_peak)} in the generated kernels"

    def _unknown(self) -> str:
        if not self.unpriced:
            return ""
        return f"; never recomputed, since no cost is known: {', '.join(self.unpriced)}"

    def _proof(self) -> str:
        if self.planner == "min-cut" or not self.step_seconds:
            return ""
        gap = self.gap_seconds / self.step_seconds
        return f" (at most {gap:.1%} more than any plan in this order has to)"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


_lock = threading.Lock()
_reports: list[GraphReport] = []


def record(report: GraphReport) -> None:
    """Keep a report, log its line, and warn once when a byte budget meets a second graph."""
    with _lock:
        _reports.append(report)
        in_bytes = [r for r in _reports if r.asked.kind != "fraction"]
    log.info("%s", report.line())
    if report.asked.kind != "fraction" and len(in_bytes) == 2:
        warnings.warn(
            "recut: the memory budget bounds each compiled graph by itself, and this is the "
            f"second training graph compiled under one in bytes ({len(in_bytes)} so far): what "
            "they hold at the same time adds up. Compile the model as one graph "
            "(fullgraph=True), or divide the budget.",
            stacklevel=2,
        )


def reports() -> list[GraphReport]:
    """Return the reports of the training graphs compiled in this process, newest last."""
    with _lock:
        return list(_reports)


def clear_reports() -> None:
    """Forget all reports."""
    with _lock:
        _reports.clear()
