"""What recut tells torch's own channels: a log's name, and artifacts of the structured trace.

``TORCH_TRACE=folder`` has torch write a structured trace, which tlparse turns into pages; each
planned graph is in it with its plan (JSON) and the line of its report. Where nobody listens,
nothing is made.
"""

from __future__ import annotations

from collections.abc import Callable

from recut.partitioners.plan import Plan
from recut.passes import _torch
from recut.report import GraphReport


def tell(report: GraphReport, plan: Plan) -> None:
    """Put an accepted plan and its report into the structured trace, if one is written."""
    _artifact("recut_report", "string", lambda: report.line() + "\n")
    _artifact("recut_plan", "json", plan.dumps)


def _artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    _torch.trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": encoding},
        payload_fn=payload,
        # AOTAutograd may be called without Dynamo, and then nothing names the compilation.
        expect_trace_id=False,
    )


__all__ = ["tell"]
