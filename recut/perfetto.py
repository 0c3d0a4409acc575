"""The memory of a step as a trace that Perfetto opens: counters and ops.

The trace's clock is the predicted one: each entry of the schedule takes its op's own price, so what
Inductor fuses looks longer here than it runs. Counters show bytes by use; they add up to what the
evaluator counts at each moment.
"""

from __future__ import annotations

import json
from typing import Any

from recut.partitioners.decisions import Use
from recut.planned import PlannedGraph

# Entries without a price (views of sizes, checks) get this long, in nanoseconds, to stay visible.
_SHORTEST = 100
_PROCESS = 1
_FORWARD, _BACKWARD = 1, 2


def memory_trace(graph: PlannedGraph) -> str:
    """Return the step of a planned graph as a trace, in JSON (bytes, microseconds)."""
    problem, schedule, line = graph.problem, graph.plan.schedule, graph.timeline
    series = graph.memory
    events: list[dict[str, Any]] = [
        _named("process_name", 0, f"recut: {graph.name}"),
        _named("thread_name", _FORWARD, "forward"),
        _named("thread_name", _BACKWARD, "backward"),
    ]
    clock, before = 0, ""  # whole nanoseconds: viewers nest slices that overlap by rounding
    for t, i in enumerate((*schedule.forward, *schedule.backward)):
        now = {use.value: series[use][t] for use in Use if use in series}
        # A counter keeps its value until the next one.
        if (text := repr(now)) != before:
            events.append(_counter("memory", clock, now))
            before = text
        duration = max(round(problem.ops[i].seconds * 1e9), _SHORTEST)
        events.append(_slice(graph, t, i, clock, duration))
        clock += duration
    # Twice: some viewers draw nothing of a counter with one value.
    events += [_counter("budget", end, {"budget": graph.plan.budget}) for end in (0, clock)]
    about = {"peak": graph.peak, "budget": graph.plan.budget, "moments": len(line.live)}
    trace = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(trace, separators=(",", ":")) + "\n"


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _PROCESS, "tid": thread, "name": what, "args": {"name": name}}


def _counter(name: str, clock: int, args: dict[str, int]) -> dict[str, Any]:
    return {"ph": "C", "pid": _PROCESS, "name": name, "ts": clock / 1e3, "args": args}


def _slice(graph: PlannedGraph, t: int, i: int, clock: int, duration: int) -> dict[str, Any]:
    op, decision = graph.problem.ops[i], graph.decisions[i]
    args = {
        "moment": t,
        "calls": op.target,
        "line": op.source,
        "module": op.module,
        "reason": "" if decision.is_plain else decision.reason,
    }
    return {
        "ph": "X",
        "pid": _PROCESS,
        "tid": _FORWARD if t < graph.timeline.split else _BACKWARD,
        "name": op.name,
        "cat": decision.choice.value,
        "ts": clock / 1e3,
        "dur": duration / 1e3,
        "args": {key: value for key, value in args.items() if value != ""},
    }


__all__ = ["memory_trace"]
