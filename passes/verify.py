"""Structural checks of the emitted graphs: every promise of the Plan recounted on them."""

from __future__ import annotations

from collections import Counter

from torch import fx

from recut.partitioners.errors import InvalidSchedule
from recut.partitioners.plan import Plan
from recut.passes.capture import Capture


def _counts(graph: fx.Graph) -> Counter[str]:
    return Counter(str(n.target) for n in graph.nodes if n.op == "call_function")


def verify(captured: Capture, plan: Plan, forward: fx.GraphModule, backward: fx.GraphModule) -> None:
    """Raise InvalidSchedule where the emitted graphs do not run the plan's schedule."""
    nodes = captured.op_nodes
    random = {i for i in plan.schedule.recomputed(captured.problem) if captured.problem.ops[i].random}
    for name, order, module in (
        ("forward", plan.schedule.forward, forward),
        ("backward", plan.schedule.backward, backward),
    ):
        module.graph.lint()
        wanted = Counter(str(nodes[i].target) for i in order if i not in random)
        have = _counts(module.graph)
        wrong = {t: (n, have[t]) for t, n in wanted.items() if have[t] != n}
        if wrong:
            raise InvalidSchedule(
                f"the emitted {name} does not run its schedule (op: wanted, emitted): {wrong}; "
                "this is a defect of recut, please report it with RECUT_DUMP"
            )
