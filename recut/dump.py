"""Dumps: of each compiled graph a folder with what was planned and why, and a page over all.

Nothing here is imported before something is dumped. A dump that cannot be made or written costs
one warning, never the training, and leaves nothing half written.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx

from recut.drawing import draw
from recut.files import dump_graph, figures, write_atomic
from recut.page import environment, render, style
from recut.partitioners.decisions import decisions
from recut.partitioners.outline import outline
from recut.partitioners.plan import Plan
from recut.partitioners.planner import Planner
from recut.passes.capture import Capture
from recut.passes.listing import listing, title
from recut.passes.rewrite import Emission
from recut.perfetto import memory_trace
from recut.planned import GRAPH, PlannedGraph, load
from recut.report import GraphReport
from recut.settings import Settings

log = logging.getLogger("recut")

INDEX = "index.html"
REPORT, DRAWING, TRACE = "report.html", "graph.svg", "memory.json"


@dataclass(frozen=True)
class Compilation:
    """What partitioning one graph has made.

    Attributes:
        captured: the problem and its nodes.
        planner: who planned.
        plan: the plan.
        joint: the joint graph that was planned.
        emission: the joint graph that runs the plan.
        forward: the forward.
        backward: the backward.
    """

    captured: Capture
    planner: Planner
    plan: Plan
    joint: fx.GraphModule
    emission: Emission
    forward: fx.GraphModule
    backward: fx.GraphModule

    def planned(self, report: GraphReport) -> PlannedGraph:
        """Return what was planned, with other plans beside it."""
        plan = replace(self.plan, budget=report.budget)
        return PlannedGraph(
            self.captured.problem.with_observed(dict(plan.observed)),
            plan,
            outline(self.planner),
            self.planner.machine,
            name=title(self.joint.graph),
            asked=str(report.asked),
            floor=report.floor,
            planning_seconds=report.planning_seconds,
            scheduled_peak=report.scheduled_peak,
        )

    def listings(self) -> dict[str, str]:
        """Return the graphs as text by file name."""
        names = {n.name: i for i, n in enumerate(self.captured.op_nodes)}
        told = (self.captured.problem, decisions(self.captured.problem, self.plan.schedule))
        ops, emitted = self.emission.ops, self.emission.module
        return {
            "joint.txt": listing(self.joint, "joint graph", names, *told),
            "planned.txt": listing(emitted, "joint graph as planned", ops, *told),
            "forward.txt": listing(self.forward, "forward", ops, *told),
            "backward.txt": listing(self.backward, "backward", ops, *told),
        }

    def passes(self, before: str) -> dict[str, str]:
        """Return what each pass has read and made, as torch prints it, by file name.

        Args:
            before: the joint graph as it came.
        """
        made = {
            "1_prepare_after": self.joint,
            "2_emit_after": self.emission.module,
            "3_split_forward": self.forward,
            "3_split_backward": self.backward,
        }
        texts = {name: as_text(module) for name, module in made.items()}
        return {f"pass_{n}.txt": text for n, text in {"1_prepare_before": before, **texts}.items()}


def as_text(module: fx.GraphModule) -> str:
    """Return a graph as torch prints it, or why it cannot be printed."""
    try:
        return str(module.print_readable(print_output=False))
    except Exception as error:  # what explains a training must not end it
        return f"# torch cannot print this graph: {type(error).__name__}: {error}\n"


def dumper(
    settings: Settings, made: Compilation, before: str = ""
) -> Callable[[GraphReport], Path | None]:
    """Return what writes the dump of a graph once its report is known.

    Its graphs are written down now: who compiles them may change them. The returned call gives the
    graph's folder, or None where it could not be written, which a warning tells.

    Args:
        settings: the settings, with a dump folder.
        made: what partitioning has made.
        before: the joint graph as it came, where passes are dumped.

    Raises:
        ValueError: the settings name no folder.
    """
    if (folder := settings.dump) is None:
        raise ValueError("no dump folder is set")
    graphs: dict[str, str] = {}
    with _spared("the graphs cannot be written as text"):
        graphs = made.listings() | (made.passes(before) if settings.dumps_passes else {})

    def write(report: GraphReport) -> Path | None:
        target = None
        with _spared(f"dump={str(folder)!r} cannot be written"):
            target = dump_graph(folder, texts(made.planned(report), graphs))
            log.info("dumped to %s", target)
            write_index(folder)
        return target

    return write


@contextmanager
def _spared(problem: str) -> Iterator[None]:
    """Turn what goes wrong inside the block into a warning."""
    try:
        yield
    # A full disk or a defect of ours: what explains a training must not end it.
    except Exception as error:
        log.debug("%s", problem, exc_info=True)
        warnings.warn(
            f"recut: {problem} ({type(error).__name__}: {error}); training goes on without it",
            stacklevel=4,
        )


def texts(graph: PlannedGraph, graphs: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each file of a graph's folder by its name."""
    files = {
        **graphs,
        DRAWING: draw(graph),
        TRACE: memory_trace(graph),
        **graph.files(),
    }
    return {REPORT: render(graph, tuple(files)), **files}


def add_measured(folder: Path, peak: int | None, seconds: float | None) -> None:
    """Write what was measured into the dump of a graph, and into its report.

    What cannot be read or written costs one warning.

    Args:
        folder: of the graph.
        peak: the most bytes that a step allocated; None where it was not measured.
        seconds: the median time of a step; None where it was not measured.
    """
    with _spared(f"what was measured cannot be written into {str(folder)!r}"):
        graph = replace(load(folder), measured_peak=peak, measured_seconds=seconds)
        files = sorted(p.name for p in folder.iterdir() if p.name != REPORT)
        write_atomic(folder / REPORT, render(graph, files))
        write_atomic(folder / GRAPH, graph.files()[GRAPH])


def write_index(folder: Path) -> None:
    """Write the page over all graphs of a dump folder, by the folders that are there.

    Other processes may write it at the same time: whoever is last has seen all folders, since it
    looks again after writing.

    Raises:
        OSError: it cannot be written.
    """
    seen: list[Path] | None = None
    while seen != (found := _folders(folder)):
        template = environment().get_template(INDEX)
        graphs = [_entry(path) for path in found]
        write_atomic(folder / INDEX, template.render(graphs=graphs, style=style()))
        seen = found


def _folders(folder: Path) -> list[Path]:
    """Return the folders of graphs, the latest first."""
    found = [(path.stat().st_mtime, path) for path in folder.glob("graph_*") if path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def _entry(path: Path) -> dict[str, Any]:
    """Return what the index tells of one folder; whatever is in it, there is an entry."""
    files = sorted(p.name for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    try:
        whole = json.loads((path / GRAPH).read_text(encoding="utf-8"))
        about = {**whole, **whole["summary"]}
        about = figures(about, _SUMMARY)
    except (OSError, ValueError, KeyError, TypeError):
        about = None
    report = REPORT in files
    rest = [name for name in files if name != REPORT]
    return {"folder": path.name, "about": about, "report": report, "files": rest}


_SUMMARY: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "asked": (str,),
    "planner": (str,),
    "ops": (int,),
    "peak": (int,),
    "budget": (int,),
    "scheduled_peak": (int, type(None)),
    "seconds": (int, float),
    "fastest_seconds": (int, float),
}


__all__ = [
    "DRAWING",
    "INDEX",
    "REPORT",
    "TRACE",
    "Compilation",
    "add_measured",
    "dumper",
    "texts",
    "write_index",
]
