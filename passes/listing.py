"""A graph as text for people: for each node a line with its bytes, cost, decision and reason.

Example, a matmul that is saved::

    float32[1024, 256]  1.00 MiB  1.20 ms  saved  mm = aten.mm.default(view, t)  # gpt.py:28 qkv
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx

from recut.partitioners.decisions import PLAIN, Decision
from recut.partitioners.problem import Problem
from recut.partitioners.units import duration, size
from recut.passes import costs
from recut.passes.rules import module_of, source_of
from recut.passes.views import base_of, is_view, op_of

_COLUMNS = ("shape", "bytes", "cost", "decision", "node")
# Arguments longer than this are cut: a concatenation of a whole net reads no better in full.
_LONGEST = 400
# How AOTAutograd names what comes from outside.
_INPUTS = ("primals", "tangents", "fwd_", "bwd_")


def listing(
    module: fx.GraphModule,
    title: str,
    ops: Mapping[str, int],
    problem: Problem,
    decisions: Sequence[Decision],
) -> str:
    """Return a graph as text.

    Args:
        module: the graph.
        title: what it is, for the first line.
        ops: op of the problem by the name of the node that stands for it.
        problem: the problem.
        decisions: what the plan does with each op of the problem.
    """
    rows = [_row(n, ops, problem, decisions) for n in module.graph.nodes]
    widths = [
        max(map(len, column)) for column in zip(_COLUMNS, *(r[:5] for r in rows), strict=True)
    ]
    # What a node calls is as long as it is; the columns before it line up.
    widths[4] = 0
    head = f"# {title}: {len(rows)} nodes. Costs are predicted, each op by itself."
    plain = "\n".join(f"# {choice}: {why}" for choice, why in PLAIN.items())
    body = (_line(row, widths) for row in rows)
    names = _line((*_COLUMNS, "  # line, module, reason"), widths)
    return "\n".join([head, plain, "#", names, *body]) + "\n"


def title(graph: fx.Graph) -> str:
    """Return a name for a graph: the file that most of its lines are of."""
    files = Counter(source_of(n).partition(":")[0] for n in graph.nodes)
    del files[""]
    return max(files, key=lambda name: (files[name], name), default="graph")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    shape, held, cost, decision, node, comment = row
    return (
        f"{shape:<{widths[0]}}  {held:>{widths[1]}}  {cost:>{widths[2]}}  "
        f"{decision:<{widths[3]}}  {node}{comment}"
    )


def _row(
    node: fx.Node, ops: Mapping[str, int], problem: Problem, decisions: Sequence[Decision]
) -> tuple[str, str, str, str, str, str]:
    """Return the columns of a node, and the comment behind them."""
    val = node.meta.get("val")
    held = sum(map(costs.nbytes, costs.tensors(val)))
    shown = (_shape(val), "" if is_view(node) or not held else size(held))
    index = ops.get(node.name)
    comment = " ".join(filter(None, (source_of(node), module_of(node))))
    if node.op != "call_function" or index is None:
        return (*shown, "", _what(node, ops, decisions), _call(node), _comment(comment, ""))
    op, decision = problem.ops[index], decisions[index]
    said = _comment(comment, "" if decision.is_plain else decision.reason)
    return (*shown, duration(op.seconds), decision.choice.value, _call(node), said)


def _comment(place: str, reason: str) -> str:
    text = ": ".join(filter(None, (place, reason))).replace("\n", " ")
    return f"  # {text}" if text else ""


def _what(node: fx.Node, ops: Mapping[str, int], decisions: Sequence[Decision]) -> str:
    """Return what a node is that stands for no op of the problem."""
    if node.op == "placeholder":
        # A backward's inputs keep the names of what the forward has made, saved sizes included.
        return "input" if node.name.startswith(_INPUTS) else "saved"
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem and (index := ops.get(op_of(node).name)) is not None:
        return decisions[index].choice.value
    return f"view of {base_of(node).name}" if is_view(node) else ""


def _call(node: fx.Node) -> str:
    """Return what a node calls, as Python would write it."""
    if node.op == "placeholder":
        return f"{node.name} = input"
    if node.op == "output":
        return f"return {_cut(', '.join(map(str, _flat(node.args[0]))))}"
    if node.op == "get_attr":
        return f"{node.name} = self.{node.target}"
    # Strings of the user's (a device, a mode) may hold anything but a line's end.
    given = [repr(a) for a in node.args] + [f"{k}={v!r}" for k, v in node.kwargs.items()]
    return f"{node.name} = {_name(node.target)}({_cut(', '.join(given))})"


@cache
def _name(target: Any) -> str:
    text = str(target)
    return str(getattr(target, "__name__", text)) if text.startswith("<") else text


def _flat(output: Any) -> Sequence[Any]:
    return output if isinstance(output, (tuple, list)) else (output,)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _shape(val: Any) -> str:
    """Return dtype and shape: ``float32[4, 256]``."""
    if isinstance(val, torch.Tensor):
        return _typed(val.dtype, ", ".join(map(str, val.shape)))
    if isinstance(val, (tuple, list)):
        return f"{len(val)} results"
    return "" if val is None else type(val).__name__


@cache
def _typed(dtype: torch.dtype, sizes: str) -> str:
    return f"{str(dtype).removeprefix('torch.')}[{sizes}]"


__all__ = ["listing", "title"]
