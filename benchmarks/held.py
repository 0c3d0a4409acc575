"""What each compiled graph of a module holds in a step, whatever runs around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import recut
from recut.backend import watching
from recut.doctor import graphs_uncached
from recut.probe import Figures, Probe

Graph = tuple[recut.GraphReport, Any, Any]  # what was planned, the forward, and the backward


@contextmanager
def compiling() -> Iterator[list[Graph]]:
    """Collect the graphs that recut compiles inside the block, none of them from a cache."""
    graphs: list[Graph] = []
    with graphs_uncached(), watching(lambda *graph: graphs.append(graph)):
        yield graphs


def held(graphs: Sequence[Graph], run: Callable[[], object]) -> list[Figures]:
    """Return what each graph allocates in its second step of ``run``: in the first it warms up."""
    probe = Probe(steps=1, endless=True)
    for graph in graphs:
        probe(*graph)
    run()
    return probe.figures()
