"""How far a plan is searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much work goes into one plan. It is counted, never timed.

    Attributes:
        near: what costs this share of a step more than the bound is not searched for further.
        patience: how many segmentations in a row may be worse before finer (coarser) ones are left.
        rounded: programs that are rounded, the most promising first.
        bases: programs whose bases are looked at for what may be dropped, and
        dropped: how many of these are measured.
        neighbours: neighbours of a small problem's plan that are measured.
        candidates: how many runs of ops the exact tier chooses among, each time it is asked, and
        nodes: how many nodes of its search trees are looked at.
    """

    near: float
    patience: int
    rounded: int
    bases: int
    dropped: int
    neighbours: int
    candidates: tuple[int, ...]
    nodes: int


NORMAL = Effort(
    near=0.005,
    patience=2,
    rounded=3,
    bases=8,
    dropped=3,
    neighbours=100,
    candidates=(),
    nodes=0,
)
HIGH = Effort(
    near=0.0,
    patience=4,
    rounded=6,
    bases=20,
    dropped=8,
    neighbours=300,
    candidates=(500, 1000, 1500),
    nodes=1000,
)
EFFORTS: Mapping[str, Effort] = {"normal": NORMAL, "high": HIGH}

__all__ = ["EFFORTS", "HIGH", "NORMAL", "Effort"]
