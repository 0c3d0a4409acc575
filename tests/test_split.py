"""Forward and backward by an outline are those that torch's extraction makes of the whole graph."""

from __future__ import annotations

import pytest
from nets import NETS, floor_expected
from steps import Graphs, by_dynamo

from recut.passes import split


def signature(graph):
    """What a graph takes and returns, by name, and what is said of it."""
    output = graph.output_node()
    inputs = [(n.name, n.meta.get("desc")) for n in graph.find_nodes(op="placeholder")]
    returned = [getattr(n, "name", n) for n in output.args[0]]
    return repr((inputs, returned, output.meta.get("desc")))


def body(graph):
    """What a graph computes, in its order, and whether torch takes it for a part of a backward."""
    return [
        (n.name, str(n.target), str(n.args), str(n.kwargs), n.meta.get("autograd_backward"))
        for n in graph.nodes
        if n.op in ("call_function", "get_attr")
    ]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["gpt", "batch_norm", "several", "shared_mlp", "integers"])
def test_an_outline_is_split_like_the_whole_graph(monkeypatch, name, dynamic):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    both = []
    for whole in (False, True):
        monkeypatch.setattr(split, "_quantises", lambda whole=whole: whole)
        module, inputs = NETS[name].make()
        graphs = Graphs()
        with floor_expected():
            outputs = by_dynamo(module, graphs, dynamic=dynamic)(*inputs)
            first = outputs if hasattr(outputs, "sum") else outputs[0]
            first.sum().backward()
        both.append(
            [f(g.graph) for g in (graphs.forward, graphs.backward) for f in (signature, body)]
        )
    assert both[0] == both[1]
    assert both[0][3]  # there is a backward
