"""The report of a planned graph: one HTML page that needs nothing but itself.

Everything that comes from a model (names, paths, reasons) is escaped by the template, and the data
of the chart is JSON that cannot end its script element.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recut import page_data
from recut.page_data import Point
from recut.partitioners.advice import advise
from recut.partitioners.units import duration, size
from recut.planned import PlannedGraph

_FOLDER = Path(__file__).parent / "report_page"


def render(graph: PlannedGraph, files: Sequence[str] = ()) -> str:
    """Return the report of a planned graph as a page.

    Args:
        graph: the graph.
        files: names of files beside the page, to link to.
    """
    points = page_data.points(graph)
    again = page_data.run_again(graph)
    fastest = min(p.seconds for p in points)
    return (
        environment()
        .get_template("report.html")
        .render(
            graph=graph,
            style=style(),
            script=_part("report.js"),
            lead=_lead(graph, fastest),
            tiles=_tiles(graph, fastest),
            memory_summary=_memory_summary(graph),
            advice=advise(graph.problem, graph.plan, graph.frontier, graph.machine),
            at_peak=page_data.uses_at_peak(graph),
            peaks=_peaks(graph),
            points=points,
            fastest=fastest,
            drawing=_drawing(points, graph.plan.budget) if len(points) > 1 else None,
            frontier_summary=_frontier_summary(points),
            tensors=page_data.tensors(graph),
            tensor_count=sum(1 for v in graph.problem.values if v.bytes),
            again=again[: page_data.ROWS],
            again_count=len(again),
            again_summary=_again_summary(graph, again),
            files=files,
            chart=page_data.chart(graph),
        )
    )


def frame(page: str, title: str) -> str:
    """Return a page as an element of another one (a notebook's cell), walled off from it."""
    return (
        f'<iframe title="{html.escape(title)}" sandbox="allow-scripts" '
        f'style="width: 100%; height: 900px; border: 0" srcdoc="{html.escape(page)}"></iframe>'
    )


@cache
def environment() -> Environment:
    """Return the templates; what is put into them is escaped."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"size": size, "duration": duration}
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def style() -> Markup:
    """Return the style of all pages."""
    return _part("report.css")


def _part(name: str) -> Markup:
    """Return a file of ours that goes into the page as it is."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _lead(graph: PlannedGraph, fastest: float) -> str:
    over = graph.time / fastest - 1 if fastest else 0.0
    asked = f" (asked: {graph.asked})" if graph.asked else ""
    room = graph.plan.budget - graph.peak
    verdict = (
        f"which leaves {size(room)} of its budget of {size(graph.plan.budget)}{asked}"
        if room >= 0
        else f"which is {size(-room)} over its budget of {size(graph.plan.budget)}{asked}"
    )
    return (
        f"A step is planned to hold at most {size(graph.peak)}, {verdict}, and to take "
        f"{duration(graph.time)}: {_percent(over)} more than the fastest plan known."
    )


def _tiles(graph: PlannedGraph, fastest: float) -> list[tuple[str, str, str]]:
    plan, time = graph.plan, graph.time or 1.0
    again = sum(plan.schedule.recomputed(graph.problem).values())
    saved = sum(graph.problem.values[v].bytes for v in plan.schedule.saved(graph.problem))
    return [
        ("predicted peak", size(graph.peak), f"budget {size(plan.budget)}"),
        ("expected step", duration(graph.time), f"fastest plan {duration(fastest)}"),
        ("saved for the backward", size(saved), ""),
        ("run again", f"{again:,} ops", f"of {len(graph.problem.ops):,} in the graph"),
        (
            "proven gap",
            _percent(plan.gap / time),
            "of a step, at most, that a better plan could save",
        ),
        ("planned by", plan.planner, f"in {duration(graph.planning_seconds)}"),
    ]


def _peaks(graph: PlannedGraph) -> list[tuple[str, str, str]]:
    rows = [("this plan, predicted", size(graph.peak), "counted over the schedule")]
    if graph.scheduled_peak is not None:
        said = _beside(graph.scheduled_peak, graph.peak)
        rows.append(("Inductor's kernels", size(graph.scheduled_peak), said))
    if graph.measured_peak is not None:
        said = _beside(graph.measured_peak, graph.peak)
        rows.append(("a step, measured", size(graph.measured_peak), f"{said}, by recut doctor"))
    if graph.plan.observed:
        extra = sum(size_ for _, size_ in graph.plan.observed)
        said = f"at {len(graph.plan.observed)} ops, and is part of the prediction"
        rows.append(("learnt from its kernels", size(extra), said))
    rows.append(("budget", size(graph.plan.budget), graph.asked and f"asked: {graph.asked}"))
    if graph.frontier:
        rows.append(("fastest plan", size(graph.fastest.peak), "what a budget of 100% stands for"))
    if graph.floor is not None:
        rows.append(("floor", size(graph.floor), "the lowest budget a plan was found for"))
    if graph.measured_seconds is not None:
        rows.append(("time of a step, predicted", duration(graph.time), "by the machine's prices"))
        ratio = graph.measured_seconds / (graph.time or 1e-30)
        said = f"{ratio:.2f} times the predicted one, by recut doctor"
        rows.append(("time of a step, measured", duration(graph.measured_seconds), said))
    return rows


def _beside(found: int, predicted: int) -> str:
    """Say how far a peak is from the predicted one."""
    off = found - predicted
    return f"{size(abs(off))} {'more' if off > 0 else 'less'} than predicted" if off else "equal"


def _memory_summary(graph: PlannedGraph) -> str:
    line, schedule = graph.timeline, graph.plan.schedule
    order = schedule.forward + schedule.backward
    if not order:
        return "The step has no ops."
    op = graph.problem.ops[order[line.worst]]
    place = f" ({op.source})" if op.source else ""
    parts = [f"{name} {size(held)}" for name, held in page_data.uses_at_peak(graph)]
    return (
        f"Memory peaks at {size(line.peak)} at moment {line.worst + 1:,} of {len(order):,}, in the "
        f"{'forward' if line.worst < line.split else 'backward'}, while {op.name}{place} runs: "
        f"{', '.join(parts)}. The forward ends with {size(line.live[max(line.split - 1, 0)])}."
    )


def _frontier_summary(points: Sequence[Point]) -> str:
    if len(points) == 1:
        return "No other plan of this graph is known here; a sweep over budgets would show them."
    low, high = points[0], points[-1]
    return (
        f"{len(points)} plans are known, from {size(low.peak)} at {duration(low.seconds)} a step "
        f"to {size(high.peak)} at {duration(high.seconds)}. A plan further left holds less memory."
    )


def _again_summary(graph: PlannedGraph, again: Sequence[page_data.AgainRow]) -> str:
    plan = graph.plan
    if not again:
        return "Nothing: the backward reads all that it needs of the forward from memory."
    total = sum(row.seconds for row in again)
    text = (
        f"{len(again):,} ops run again, {duration(total)} by their own prices (what fuses into a "
        f"reader's kernel costs less). With what saving takes, the plan adds "
        f"{duration(plan.added_seconds)} to the cheapest one"
    )
    if plan.bound_seconds:
        text += (
            f"; any plan under this budget that keeps the backward's order adds at least "
            f"{duration(plan.bound_seconds)}, so {duration(plan.gap)} are open"
        )
    return text + "."


@dataclass(frozen=True)
class Dot:
    """A point of the drawing, in its units."""

    x: float
    y: float
    chosen: bool
    title: str


@dataclass(frozen=True)
class Drawing:
    """The frontier as the template draws it, in the drawing's units."""

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    dots: list[Dot]
    path: str
    budget: float | None
    width: int = 560
    height: int = 320
    left: int = 64
    right: int = 544
    top: int = 24
    bottom: int = 270


def _drawing(points: Sequence[Point], budget: int) -> Drawing:
    """Return the frontier: peaks to the right, the step over the fastest one upwards."""
    fastest = min(p.seconds for p in points)
    shares = [p.seconds / (fastest or 1.0) - 1 for p in points]
    first, last = points[0].peak, max(points[-1].peak, points[0].peak + 1)
    margin = 0.04 * (last - first)
    low, high = max(0.0, first - margin), last + margin
    most = 1.06 * max(*shares, 0.01)
    box = Drawing([], [], [], "", None)

    def x(peak: float) -> float:
        return round(box.left + (peak - low) / (high - low) * (box.right - box.left), 1)

    def y(share: float) -> float:
        return round(box.bottom - share / most * (box.bottom - box.top), 1)

    dots = [
        Dot(
            x(p.peak), y(share), p.chosen,
            f"{'this plan: ' if p.chosen else ''}{size(p.peak)}, {duration(p.seconds)} a step "
            f"({_percent(share)} over the fastest), {p.planner}",
        )
        for p, share in zip(points, shares, strict=True)
    ]  # fmt: skip
    # Between two plans the one with the lower peak is what there is.
    path = f"M{dots[0].x} {dots[0].y}" + "".join(f"H{d.x}V{d.y}" for d in dots[1:])
    magnitude = max(0, min(3, int(math.log2(high) / 10)))
    unit, name = 1024**magnitude, ("B", "KiB", "MiB", "GiB")[magnitude]
    return Drawing(
        [(x(t * unit), f"{t:g} {name}") for t in ticks(low / unit, high / unit, 5)],
        [(y(t / 100), f"{t:g} %") for t in ticks(0.0, 100 * most, 5)],
        # The chosen one last, so that nothing covers it.
        sorted(dots, key=lambda d: d.chosen),
        path,
        x(budget) if low <= budget <= high else None,
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` round numbers between two numbers."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 9) for k in range(first, math.floor(high / step + 1e-9) + 1)]


__all__ = ["environment", "frame", "render", "style", "ticks"]
