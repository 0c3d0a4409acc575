"""``recut doctor``: run a training script, and hold what was planned against what is measured.

The script runs in this process, as ``__main__``. :mod:`recut.probe` measures its graphs; here are
the run itself and what there is to say about it.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.table import Table

from recut.backend import watching
from recut.passes import _torch
from recut.probe import Enough, Figures, Probe

# How far a measured time may be off before the prices are blamed.
_TOLERANCE = 0.25


@dataclass(frozen=True)
class Target:
    """What to run.

    Attributes:
        name: path of a script, or dotted name of a module.
        is_module: which of the two.
        arguments: its arguments, without its own name.
    """

    name: str
    is_module: bool
    arguments: tuple[str, ...]

    def missing(self) -> str | None:
        """Return what is wrong where there is nothing to run."""
        if not self.is_module:
            return None if Path(self.name).exists() else f"{self.name}: there is no such script"
        try:
            found = importlib.util.find_spec(self.name)
        except ImportError as error:
            return f"-m {self.name}: {error}"
        return None if found else f"-m {self.name}: there is no such module"

    def run(self) -> None:
        """Run it as ``__main__``."""
        if self.is_module:
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(self.name, run_name="__main__")


@dataclass(frozen=True)
class Outcome:
    """What a run has shown.

    Attributes:
        graphs: the compiled training graphs, in the order of their compilation.
        ending: "stopped" by the doctor, "ended" by itself, or "failed".
    """

    graphs: tuple[Figures, ...]
    ending: str


def examine(target: Target, steps: int, full: bool = False) -> Outcome | str:
    """Run a script and measure its training graphs; returns why not where it cannot be run.

    An error of the script is shown as Python shows it, and ends the script only.

    Args:
        target: the script.
        steps: timed steps to take of each graph.
        full: let the script run to its end.
    """
    probe = Probe(steps, endless=full)
    with ExitStack() as stack:
        stack.enter_context(_as_started(target))
        if problem := target.missing():
            return problem
        stack.enter_context(graphs_uncached())
        stack.enter_context(watching(probe))
        ending = _ending(target)
    found = tuple(probe.figures())
    _into_dumps(found)
    return Outcome(found, ending)


def _into_dumps(found: Sequence[Figures]) -> None:
    """Write what was measured of each graph into its dump, where the script has made one."""
    for figures in found:
        folder = figures.report.folder
        if folder is not None and (figures.peak is not None or figures.seconds):
            from recut.dump import add_measured  # jinja2 and networkx, only where they were needed

            median = statistics.median(figures.seconds) if figures.seconds else None
            add_measured(folder, figures.peak, median)


@contextmanager
def graphs_uncached() -> Iterator[None]:
    """Have each graph planned and generated: of one from a cache nothing would be known.

    Kernels that were compiled before are still found by their source.
    """
    with (
        _torch.functorch_config.patch(enable_autograd_cache=False),
        _torch.inductor_config.patch(fx_graph_cache=False),
    ):
        yield


@contextmanager
def _as_started(target: Target) -> Iterator[None]:
    """Set the command line and the module path as Python does for a script."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [target.name, *target.arguments]
    sys.path.insert(0, str(Path.cwd() if target.is_module else Path(target.name).resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def _ending(target: Target) -> str:
    try:
        target.run()
    except Enough:
        return "stopped"
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return "failed" if end.code else "ended"
    except (Exception, KeyboardInterrupt) as error:
        error = error.with_traceback(_from_the_script_on(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        return "failed"
    return "ended"


def _from_the_script_on(trace: TracebackType | None) -> TracebackType | None:
    """Drop the frames that started the script."""
    ours = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return trace


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what is printed inside the block, by subprocesses too, to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@dataclass(frozen=True)
class Finding:
    """One graph's figures, compared: bytes and seconds; None where one is not known.

    Attributes:
        ops: operations planned over.
        asked: the budget as the user wrote it.
        budget: the budget in bytes.
        planned_peak: of the plan.
        counted_peak: what Inductor's kernels were counted to hold.
        measured_peak: what one step allocated.
        peak_ratio: measured over planned.
        planned_seconds: of one step.
        measured_seconds: median of the timed steps.
        seconds_ratio: measured over planned.
        timed_steps: how many steps were timed.
        steps: how many ran.
        calls: forwards in one step of the script.
        machine: the description that set the prices.
        held: whether the budget held; None where it promises nothing or no peak was measured.
    """

    ops: int
    asked: str
    budget: int
    planned_peak: int
    counted_peak: int | None
    measured_peak: int | None
    peak_ratio: float | None
    planned_seconds: float
    measured_seconds: float | None
    seconds_ratio: float | None
    timed_steps: int
    steps: int
    calls: int
    machine: str
    held: bool | None


def finding(figures: Figures) -> Finding:
    """Compare one graph's figures."""
    report, peak = figures.report, figures.peak
    planned_seconds = report.step_seconds + report.added_seconds
    median = statistics.median(figures.seconds) if figures.seconds else None
    return Finding(
        ops=report.ops,
        asked=str(report.asked),
        budget=report.budget,
        planned_peak=report.peak,
        counted_peak=report.scheduled_peak,
        measured_peak=peak,
        peak_ratio=_ratio(peak, report.peak),
        planned_seconds=planned_seconds,
        measured_seconds=median,
        seconds_ratio=_ratio(median, planned_seconds),
        timed_steps=len(figures.seconds),
        steps=figures.steps,
        calls=figures.calls,
        machine=report.machine,
        held=peak <= report.budget if not report.asked.is_all and peak is not None else None,
    )


def _ratio(measured: float | None, planned: float) -> float | None:
    return measured / planned if measured is not None and planned else None


def sentences(findings: Sequence[Finding], ending: str) -> list[str]:
    """Return what the figures say, in plain words."""
    said = []
    for k, found in enumerate(findings, 1):
        said += [f"graph {k}: {text}" for text in (_on_peak(found), _on_time(found)) if text]
        if found.calls > 1:
            said.append(
                f"graph {k}: its forward runs up to {found.calls} times in a step of the script; "
                "the figures are of one call, and what the calls hold together adds up"
            )
    if len(findings) > 1:
        said.append(
            f"{len(findings)} training graphs: after a graph break, with parts compiled by "
            "themselves, or compiled anew for other sizes. Each has the whole budget, and what "
            "several hold at the same time adds up; fullgraph=True refuses graph breaks"
        )
    if ending == "failed":
        said.append("the script failed; these are the figures from before")
    elif ending == "stopped":
        said.append("doctor ended the script, having its figures; --full lets it run to its end")
    return said


def _on_peak(found: Finding) -> str:
    if found.measured_peak is None:
        # The second step is measured, unless a profiler runs already.
        why = _too_few(found.steps) if found.steps < 2 else "a profiler of the script's own ran"
        return f"{why}: no peak and no time"
    measured = f"the measured peak is {_mib(found.measured_peak)} MiB"
    if found.held is None:
        return f"a budget of {found.asked} asks for the fastest plan and bounds nothing; {measured}"
    asked = f"the budget of {_mib(found.budget)} MiB ({found.asked})"
    if found.held:
        return f"{asked} held: {measured}"
    over = found.measured_peak - found.budget
    return f"{asked} was broken: {measured}, {over} bytes over it"


def _on_time(found: Finding) -> str:
    if found.seconds_ratio is None:
        return "" if found.measured_peak is None else f"{_too_few(found.steps)}: no time"
    if 1 - _TOLERANCE <= found.seconds_ratio <= 1 + _TOLERANCE:
        return ""
    off = f"a step takes {found.seconds_ratio:.2f} times what was predicted"
    if "recut calibrate, torch" in found.machine:
        return (
            f"{off}; the prices are those that `recut calibrate` measured, {found.machine}: "
            "was the machine idle then, and is it now?"
        )
    return (
        f"{off}, by the prices of {found.machine}: run `recut calibrate`, with nothing else running"
    )


def _too_few(steps: int) -> str:
    return f"only {steps} {'step' if steps == 1 else 'steps'} ran"


def table(findings: Sequence[Finding]) -> Table:
    """Return the figures, a row per graph."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, pad_edge=False)
    for title in (
        "\ngraph",
        "\nops",
        "MiB:\nbudget",
        "peak\nplanned",
        "\ncounted",
        "\nmeasured",
        "\nratio",
        "ms: step\nplanned",
        "\nmeasured",
        "\nratio",
    ):
        shown.add_column(title, justify="right", no_wrap=True)
    for k, found in enumerate(findings, 1):
        shown.add_row(
            str(k),
            str(found.ops),
            _mib(found.budget),
            _mib(found.planned_peak),
            _mib(found.counted_peak),
            _mib(found.measured_peak),
            _text(found.peak_ratio),
            _ms(found.planned_seconds),
            _ms(found.measured_seconds),
            _text(found.seconds_ratio),
        )
    return shown


def to_json(findings: Sequence[Finding], ending: str) -> dict[str, Any]:
    """Return the whole answer as plain JSON data; bytes and seconds."""
    return {
        "ending": ending,
        "graphs": [asdict(found) for found in findings],
        "says": sentences(findings, ending),
    }


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.1f}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f}"


def _text(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
