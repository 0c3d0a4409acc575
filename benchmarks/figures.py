"""Plots of results: the same figures give the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def panels(
    count: int, columns: int = 4, size: tuple[float, float] = (4, 3.2)
) -> tuple[Any, list[Any]]:
    """Return a figure of matplotlib with so many panels, and these.

    Args:
        count: how many panels, at least 1.
        columns: how many side by side.
        size: width and height of each, inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "recut"
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        layout="constrained",
        squeeze=False,
    )
    for axes in list(grid.flat)[count:]:
        axes.set_axis_off()
    return figure, list(grid.flat)[:count]


def save(figure: Any, *paths: Path) -> None:
    """Write a figure, each path in the format of its name, and close it."""
    from matplotlib import pyplot

    for path in paths:
        # A date would change the file each time; only vector formats take its absence.
        how = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 150}
        figure.savefig(path, **how)
    pyplot.close(figure)
