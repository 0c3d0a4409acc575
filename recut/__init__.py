"""recut: train any PyTorch model under a peak-memory budget.

>>> model = torch.compile(model, backend=recut.ckpt_backend)  # budget: RECUT_MEMORY_BUDGET
"""

from __future__ import annotations

from recut.backend import ckpt_backend
from recut.budget import Budget, parse_budget
from recut.errors import RecutError, SettingError, TraceError
from recut.partitioners.errors import ForeignPlan, InfeasibleBudget, InvalidSchedule
from recut.passes.prices import register_cost
from recut.pipeline import partition
from recut.planned import PlannedGraph
from recut.planning import Sweep, plan, sweep
from recut.report import GraphReport, clear_reports, reports
from recut.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "ForeignPlan",
    "GraphReport",
    "InfeasibleBudget",
    "InvalidSchedule",
    "PlannedGraph",
    "RecutError",
    "SettingError",
    "Settings",
    "Sweep",
    "TraceError",
    "ckpt_backend",
    "clear_reports",
    "parse_budget",
    "partition",
    "plan",
    "register_cost",
    "reports",
    "sweep",
]
