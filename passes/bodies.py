"""What the bodies of conditions and loops hold, which the graph around them does not show."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from recut.passes.costs import nbytes, tensors
from recut.passes.views import base_of, op_of


def bodies(node: fx.Node) -> list[fx.GraphModule]:
    """Return the graphs that a higher-order op runs."""
    owner = node.graph.owning_module
    names = (str(a.target) for a in node.all_input_nodes if a.op == "get_attr")
    found = (getattr(owner, name, None) for name in names)
    return [module for module in found if isinstance(module, fx.GraphModule)]


def held(body: fx.GraphModule, workspace: Callable[[fx.Node], int]) -> int:
    """Return the most bytes that a body holds at once beside its inputs and outputs, op by op.

    Its inputs are values of the graph around it, and its outputs are made by its node there.

    Args:
        body: the graph.
        workspace: returns the bytes that a node's call allocates while it runs.
    """
    nodes = list(body.graph.nodes)
    root = {n: op_of(base_of(n)) for n in nodes}
    last = {root[a]: k for k, n in enumerate(nodes) for a in n.all_input_nodes}
    outside = {root[a] for n in nodes if n.op == "output" for a in n.all_input_nodes}
    alive = most = 0
    ending = [0] * len(nodes)
    for k, n in enumerate(nodes):
        if n.op == "call_function" and root[n] is n:
            size = 0 if n in outside else sum(map(nbytes, tensors(n.meta.get("val"))))
            alive += size
            ending[last.get(n, k)] += size
            most = max(most, alive + workspace(n))
        alive -= ending[k]
    return most
