"""recut: train any PyTorch model under a peak-memory budget.

>>> model = torch.compile(model, backend=recut.ckpt_backend)  # budget: RECUT_MEMORY_BUDGET
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Where each name is. torch is imported with the first of them, not with the package: that takes
# seconds, which `recut --help` and whoever imports a model's module need not wait for.
_HOMES = {
    "Budget": "recut.budget",
    "ForeignPlan": "recut.partitioners.errors",
    "GraphReport": "recut.report",
    "InfeasibleBudget": "recut.partitioners.errors",
    "InvalidSchedule": "recut.partitioners.errors",
    "PlannedGraph": "recut.planned",
    "RecutError": "recut.errors",
    "SettingError": "recut.errors",
    "Settings": "recut.settings",
    "Sweep": "recut.planning",
    "TraceError": "recut.errors",
    "ckpt_backend": "recut.backend",
    "clear_reports": "recut.report",
    "parse_budget": "recut.budget",
    "partition": "recut.pipeline",
    "plan": "recut.planning",
    "register_cost": "recut.passes.prices",
    "reports": "recut.report",
    "sweep": "recut.planning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
