"""The joint graph as a drawing (SVG), coloured by what the plan does with each op.

The forward runs down on the left and the backward up on the right, so that what is saved crosses
from one to the other. A small graph is drawn op by op, in layers by dependency; a large one by
stretches of ops of one module.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from recut.page import environment
from recut.partitioners.decisions import Choice
from recut.partitioners.problem import Op, Problem
from recut.partitioners.units import size
from recut.planned import PlannedGraph

# Up to this many ops each has a box of its own; a large graph has about this many boxes at most.
_OPS = 150
_BOXES = 260
# Fewer boxes than this say nothing of a large graph.
_FEW = 24
# In the drawing's units: a box with its gaps, by layers and by columns.
_WIDTH, _HEIGHT, _GAP, _ROW = 178, 34, 26, 78
_COLUMN_WIDTH, _COLUMN_GAP = 300, 330
_MARGIN, _HEAD = 24, 76

# By pair of boxes the bytes that go from one to the other, and whether they are saved.
Edges = Mapping[tuple[int, int], tuple[int, bool]]


@dataclass(frozen=True)
class Box:
    """A box: texts, its strips (class, start, width), its top left and its width."""

    label: str
    detail: str
    title: str
    strips: tuple[tuple[str, float, float], ...]
    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Link:
    """An edge: a path, its width, whether a tensor is saved along it."""

    path: str
    stroke: float
    saved: bool
    title: str


@dataclass(frozen=True)
class _Group:
    """Ops that share a box."""

    name: str
    ops: tuple[int, ...]
    backward: bool


def draw(graph: PlannedGraph) -> str:
    """Return the drawing of a planned graph, as SVG."""
    problem = graph.problem
    collapsed = len(problem.ops) > _OPS
    groups = _stretches(graph) if collapsed else _singles(graph)
    edges = _edges(problem, groups, frozenset(graph.plan.schedule.saved(problem)))
    width = _COLUMN_WIDTH if collapsed else _WIDTH
    places = _columns(groups) if collapsed else _sides(groups, edges)
    boxes = [_box(graph, g, *place, width) for g, place in zip(groups, places, strict=True)]
    links = [
        _link(boxes[a], boxes[b], groups[a].backward != groups[b].backward, *about)
        for (a, b), about in sorted(edges.items())
        # Within a column the order says it, and further edges would cover the boxes.
        if not collapsed or about[1]
    ]
    text = f"{graph.name}: {len(problem.ops):,} ops, peak {size(graph.peak)}"
    if collapsed:
        text += "; a box is a stretch of ops of one module, its strip the shares by decision"
    return (
        environment()
        .get_template("graph.svg")
        .render(
            boxes=boxes,
            links=links,
            choices=[c.value for c in Choice],
            height=max((b.y for b in boxes), default=0) + _HEIGHT + _MARGIN,
            width=max(720, max((b.x + b.width for b in boxes), default=0) + _MARGIN),
            box_height=_HEIGHT,
            summary=text,
        )
    )


def _in_order(graph: PlannedGraph) -> tuple[list[int], list[int]]:
    """Return the ops that the forward runs, and those that only the backward does, in order."""
    schedule = graph.plan.schedule
    ran = set(schedule.forward)
    late = dict.fromkeys(i for i in schedule.backward if i not in ran)
    # What nobody reads may run nowhere.
    idle = [i for i in range(len(graph.problem.ops)) if i not in ran and i not in late]
    return [*schedule.forward, *idle], list(late)


def _singles(graph: PlannedGraph) -> list[_Group]:
    forward, backward = _in_order(graph)
    ops = graph.problem.ops
    groups = [_Group(ops[i].name, (i,), False) for i in forward]
    return groups + [_Group(ops[i].name, (i,), True) for i in backward]


def _stretches(graph: PlannedGraph) -> list[_Group]:
    """Return a graph's ops by stretches of one module, as deep as there are few enough boxes."""
    ops, sides = graph.problem.ops, _in_order(graph)
    deeper: list[_Group] = []
    groups: list[_Group] = []
    for depth in range(max((op.module.count(".") + 1 for op in ops), default=1), 0, -1):
        deeper = groups
        groups = [g for k in (0, 1) for g in _stretches_at(ops, sides[k], depth, bool(k))]
        if len(groups) <= _BOXES:
            break
    if len(groups) > _BOXES:
        return _joined(groups)
    if len(groups) >= _FEW:
        return groups
    # One level of modules too many, and the next one shows next to nothing.
    return _joined(deeper) if deeper else [p for g in groups for p in _pieces(ops, g)]


def _joined(groups: Sequence[_Group]) -> list[_Group]:
    """Return boxes of several neighbours each, so that there are few enough."""
    each = -(-len(groups) // (_BOXES - 2))
    found = []
    for late in (False, True):
        side = [g for g in groups if g.backward == late]
        for part in (side[k : k + each] for k in range(0, len(side), each)):
            first, last = part[0].name, part[-1].name
            name = first if first == last else f"{first} – {last}"
            found.append(_Group(name, tuple(i for g in part for i in g.ops), late))
    return found


def _pieces(ops: Sequence[Op], group: _Group) -> list[_Group]:
    """Return a long stretch in pieces of one length: no module tells them apart."""
    most = max(1, len(ops) // (_BOXES // 2))
    parts = [group.ops[k : k + most] for k in range(0, len(group.ops), most)]
    names = [f"{ops[part[0]].name} – {ops[part[-1]].name}" for part in parts]
    return [_Group(name, part, group.backward) for name, part in zip(names, parts, strict=True)]


def _stretches_at(ops: Sequence[Op], order: Sequence[int], depth: int, late: bool) -> list[_Group]:
    """Return neighbours of one module path, cut to a depth, together."""
    groups: list[_Group] = []
    name = ""
    stretch: list[int] = []
    for i in order:
        # What has no module is part of what stands before it.
        own = ".".join(ops[i].module.split(".")[:depth]) or name
        if own != name and stretch:
            groups.append(_Group(name or "(no module)", tuple(stretch), late))
            stretch = []
        name = own
        stretch.append(i)
    if stretch:
        groups.append(_Group(name or "(no module)", tuple(stretch), late))
    return groups


def _edges(problem: Problem, groups: Sequence[_Group], saved: frozenset[int]) -> Edges:
    """Return what goes from box to box; each tensor once for a pair."""
    owner = {i: g for g, group in enumerate(groups) for i in group.ops}
    seen: dict[tuple[int, int], dict[int, bool]] = {}
    for i, op in enumerate(problem.ops):
        for v in op.inputs:
            maker = problem.values[v].producer
            if maker >= 0 and owner[maker] != owner[i]:
                late = groups[owner[i]].backward and not groups[owner[maker]].backward
                seen.setdefault((owner[maker], owner[i]), {})[v] = late and v in saved
    found = {}
    for pair, values in seen.items():
        kept = [v for v, is_saved in values.items() if is_saved]
        found[pair] = (sum(problem.values[v].bytes for v in kept or values), bool(kept))
    return found


def _sides(groups: Sequence[_Group], edges: Edges) -> list[tuple[float, float]]:
    """Return where boxes stand: the forward's layers downwards, beside them the backward's up."""
    sides = [[k for k, g in enumerate(groups) if g.backward == right] for right in (False, True)]
    layers = [_layers(side, edges) for side in sides]
    deepest = max((row for found in layers for _, row in found.values()), default=0)
    wide = max((x for x, _ in layers[0].values()), default=-1.0) + 1
    places = {n: (x, float(row)) for n, (x, row) in layers[0].items()}
    places |= {n: (wide + 0.7 + x, float(deepest - row)) for n, (x, row) in layers[1].items()}
    spots = (places[n] for n in range(len(groups)))
    return [(_MARGIN + x * (_WIDTH + _GAP), _HEAD + row * _ROW) for x, row in spots]


def _layers(nodes: Sequence[int], edges: Edges) -> dict[int, tuple[float, int]]:
    """Return column and layer of each of some boxes, each under the middle of what it reads."""
    dag = nx.DiGraph()
    dag.add_nodes_from(nodes)
    dag.add_edges_from(pair for pair in sorted(edges) if pair[0] in dag and pair[1] in dag)
    place: dict[int, float] = {}
    layer: dict[int, int] = {}
    for k, row in enumerate(nx.topological_generations(dag)):
        middle = {}
        for n in row:
            above = [place[p] for p in dag.predecessors(n)]
            middle[n] = sum(above) / len(above) if above else 0.0
        for position, n in enumerate(sorted(row, key=lambda n: (middle[n], n))):
            layer[n], place[n] = k, position - (len(row) - 1) / 2
    low = min(place.values(), default=0.0)
    return {n: (place[n] - low, layer[n]) for n in nodes}


def _columns(groups: Sequence[_Group]) -> list[tuple[float, float]]:
    """Return where boxes stand: the forward down the left, the backward up the right column."""
    backward = [g.backward for g in groups]
    longest = max(backward.count(False), backward.count(True))
    done = {False: 0, True: 0}
    places = []
    for right in backward:
        # The shorter column is spread over the height of the longer one.
        share = (done[right] + 0.5) / max(backward.count(right), 1)
        done[right] += 1
        row = (1 - share if right else share) * longest - 0.5
        x = _MARGIN + right * (_COLUMN_WIDTH + _COLUMN_GAP)
        places.append((float(x), _HEAD + row * (_HEIGHT + 8)))
    return places


def _box(graph: PlannedGraph, group: _Group, x: float, y: float, width: float) -> Box:
    """Return the box of a group, with a strip for each decision by its share of the ops."""
    ops = [graph.problem.ops[i] for i in group.ops]
    made = Counter(graph.decisions[i].choice for i in group.ops)
    shares, start = [], 0.0
    for choice in Choice:
        if part := made[choice] / len(ops) * width:
            shares.append((choice.value, round(start, 1), round(part, 1)))
            start += part
    kept = sum(graph.decisions[i].bytes for i in group.ops)
    lines = list(dict.fromkeys(op.source for op in ops if op.source))
    if len(ops) == 1:
        size_ = sum(graph.problem.values[v].bytes for v in ops[0].outputs)
        detail = f"{_short(ops[0].target, 18)} {size(size_)}"
        reason = f"{graph.decisions[group.ops[0]].choice}: {graph.decisions[group.ops[0]].reason}"
        told = [f"{ops[0].name} = {ops[0].target}", reason, ops[0].module]
    else:
        detail = f"{len(ops)} ops" + (f", {size(kept)} saved" if kept else "")
        told = [group.name, detail, ", ".join(f"{n} {choice}" for choice, n in made.items())]
    title = "\n".join(filter(None, (*told, ", ".join(lines[:4]))))
    label = _short(group.name, int(width / 7.4))
    return Box(label, detail, title, tuple(shares), round(x, 1), round(y, 1), width)


def _short(text: str, length: int) -> str:
    """Return text cut to a length at its start, where names are alike."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


def _link(a: Box, b: Box, aside: bool, held: int, saved: bool) -> Link:
    """Return the edge between two boxes: beside each other, or from layer to layer."""
    if aside:
        x0, y0, x1, y1 = a.x + a.width, a.y + _HEIGHT / 2, b.x, b.y + _HEIGHT / 2
        bend = (x0 + x1) / 2
        path = f"M{x0} {y0:.1f}C{bend} {y0:.1f} {bend} {y1:.1f} {x1} {y1:.1f}"
    else:
        down = b.y > a.y
        x0, y0 = a.x + a.width / 2, a.y + _HEIGHT * down
        x1, y1 = b.x + b.width / 2, b.y + _HEIGHT * (not down)
        bend = (y0 + y1) / 2
        path = f"M{x0:.1f} {y0:.1f}C{x0:.1f} {bend:.1f} {x1:.1f} {bend:.1f} {x1:.1f} {y1:.1f}"
    stroke = round(1 + math.log2(1 + held / 2**20) / 2, 1)
    return Link(path, stroke, saved, f"{a.label} → {b.label}: {size(held)}")


__all__ = ["draw"]
