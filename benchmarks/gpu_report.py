"""The GPU benchmark's results as Markdown, from the records of its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest import Row
from benchmarks.gpu_memory import Probe, fastest, largest, next_probe, probe_of
from benchmarks.gpu_setup import GIB, MIB, SIZES, Method
from benchmarks.gpu_table import contestants, row_of, waiting
from benchmarks.models.llama import Shape
from benchmarks.table import times

_INTRODUCTION = (
    "A Llama in bf16, `scaled_dot_product_attention`, cross entropy over the whole vocabulary. "
    "Peaks of the table: the most bytes one forward and backward hold beyond what was alive before "
    "(gradients included, weights not), from the device's allocator. Kernels: recut's count of the "
    "generated code. Step: the median over stock's in the same race of alternating steps, by the "
    "device's events. Gradient error: the largest difference of an entry from stock's over the "
    "largest entry of that parameter's gradient; stock's own is that of a second run."
)


def markdown(folder: Path) -> str:
    """The report of every part that has a record in ``folder``."""
    parts = ["# GPU benchmark", _INTRODUCTION]
    for pattern, section in (("table*.json", _table), ("memory*.json", _memory)):
        documents = [
            json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob(pattern))
        ]
        for pieces in _together([document for document in documents if document["rows"]]):
            parts += section(pieces)
    return "\n\n".join(parts) + "\n"


def _together(documents: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The records of one setting (and the same caps), which processes measured piece by piece."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        common = json.dumps([document["setting"], document.get("caps")], sort_keys=True)
        groups.setdefault(common, []).append(document)
    return list(groups.values())


def _title(document: dict[str, Any], what: str, complete: bool) -> str:
    setting = document["setting"]
    shape = Shape(**setting["shape"])
    kind = f"{shape.layers} x {shape.width}, T={shape.length}, {shape.parameters / 1e6:,.1f} M"
    missing = "" if complete else " (to be continued)"
    return f"## {what}, {setting['device']}: {kind} parameters{missing}"


def _origin(pieces: Sequence[dict[str, Any]]) -> str:
    measured = pieces[0]["measured"]
    commands = ", ".join(f"`{document['measured']['command']}`" for document in pieces)
    return (
        f"{measured['date']}, torch {measured['torch']}, Python {measured['python']}, "
        f"{pieces[0]['setting']['device']}: {commands}"
    )


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: text to the left in the first column, to the right in the others."""
    rules = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rules, *rows))


def _table(pieces: Sequence[dict[str, Any]]) -> list[str]:
    document = pieces[0]
    size = SIZES[document["setting"]["size"]]
    measured: dict[str, Row] = {}
    for row in (row_of(stored) for piece in pieces for stored in piece["rows"]):
        measured.setdefault(row.label, row)  # every piece has stock
    rows = [r for r in contestants(size, list(measured.values())) if r.label in measured]
    scale, unit = _unit([row.measured for row in rows])
    tokens = document["setting"]["batch"] * size.shape.length
    header = (
        "contestant",
        *(f"{name} {unit}" for name in ("asked", "predicted", "kernels", "measured")),
        "within",
        "step ms",
        "step / stock",
        "predicted ms",
        "tokens/s",
        "gradient error",
        "planning s",
    )
    summary = (
        f"Batches of {document['setting']['batch']}, medians of {document['setting']['rounds']} "
        "rounds, each contestant in a race with stock." + times(rows)
    )
    return [
        _title(document, "At one batch size", not waiting(size, list(measured.values()))),
        summary,
        grid(header, [_cells(row, tokens, scale, len(header)) for row in rows]),
        _origin(pieces),
    ]


def _unit(sizes: Iterable[int | None]) -> tuple[Callable[[int | None], str], str]:
    """How to write bytes: as GiB where the largest of ``sizes`` has some."""
    large = max((size for size in sizes if size is not None), default=0) >= GIB
    unit = GIB if large else MIB
    return lambda size: "" if size is None else f"{size / unit:.2f}", "GiB" if large else "MiB"


def _cells(row: Row, tokens: int, scale: Callable[[int | None], str], width: int) -> list[str]:
    """One row as text; a contestant that did not run says why instead."""
    if row.failure:
        floor = "" if row.floor is None else f" (floor {scale(row.floor)})"
        cells = [row.label, scale(row.asked), "", "", _plain(row.failure) + floor]
        return cells + [""] * (width - len(cells))
    return [
        row.label,
        *map(scale, (row.asked, row.predicted, row.kernels, row.measured)),
        {None: "", True: "yes", False: "**no**"}[row.within],
        _number(row.seconds, 1e3, ".1f"),
        _number(row.ratio, 1, ".3f"),
        _number(row.predicted_seconds, 1e3, ".1f"),
        "" if row.seconds is None else f"{tokens / row.seconds:,.0f}",
        _number(row.error, 1, ".1e"),
        _number(row.planning_seconds, 1, ".2f"),
    ]


def _number(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(value * factor, form)


def _plain(failure: str) -> str:
    """An error's text that fits into a cell."""
    return failure.replace("|", "/")[:100]


def _memory(pieces: Sequence[dict[str, Any]]) -> list[str]:
    document = pieces[0]
    size = SIZES[document["setting"]["size"]]
    probes = [probe_of(stored) for piece in pieces for stored in piece["rows"]]
    complete = next_probe(size, document["caps"], document["fixed"], probes) is None
    scale, unit = _unit(document["caps"])
    header = (
        "method",
        "largest batch",
        f"peak {unit}",
        "tokens/s",
        "fastest at batch",
        "tokens/s",
    )
    parts = [
        _title(document, "At fixed memory", complete),
        "A whole training step with fused AdamW, everything that is alive counted. The largest "
        "batch that fits, and of all batches that were tried and fit the one with the most tokens "
        f"per second. Weights, gradients and moments take {scale(document['fixed'])} {unit}.",
    ]
    for cap in document["caps"]:
        rows = [_memory_cells(m, cap, probes, size.shape.length, scale) for m in size.methods]
        parts += [f"### {scale(cap)} {unit}", grid(header, rows)]
    parts += ["### All probes", _probes(probes, size.shape.length), _origin(pieces)]
    return parts


def _memory_cells(
    method: Method,
    cap: int,
    probes: Sequence[Probe],
    length: int,
    scale: Callable[[int | None], str],
) -> list[str]:
    most, best = largest(method, cap, probes), fastest(method, cap, probes)
    if most is None or best is None:
        mine = [p for p in probes if p.method == method.label and p.failure]
        return [method.label, _plain(mine[-1].failure or "") if mine else "", *[""] * 4]
    return [
        method.label,
        str(most.batch),
        scale(most.peak),
        _rate(most, length),
        str(best.batch),
        _rate(best, length),
    ]


def _rate(probe: Probe, length: int) -> str:
    return "" if probe.seconds is None else f"{probe.batch * length / probe.seconds:,.0f}"


def _probes(probes: Sequence[Probe], length: int) -> str:
    scale, unit = _unit([p.peak for p in probes])
    names = ("cap", "kept back", "budget", "predicted", "peak", "least")
    header = ("method", "batch", *(f"{n} {unit}" for n in names), "tokens/s", "failure")
    rows = [
        [
            p.method,
            str(p.batch),
            *map(scale, (p.cap, p.margin or None, p.budget if p.cap else None)),
            *map(scale, (p.predicted, p.peak, p.need)),
            _rate(p, length),
            _plain(p.failure or ""),
        ]
        for p in probes
    ]
    return grid(header, rows)
