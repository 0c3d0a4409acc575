"""What the stock partitioner does to a joint graph before it cuts, and a replacement owes.

Dead code and common subexpressions go; checkpoint tags are cleaned up; collectives, effectful ops
and the sources of mutations in the backward are marked as saved. What the stock partitioner gets
wrong is put right here: a backward that reads an input which the forward has overwritten.
"""

from __future__ import annotations

import torch
from torch import fx

from recut.passes import _torch

aten = torch.ops.aten


def prepare(joint: fx.GraphModule) -> fx.GraphModule:
    """Return ``joint`` ready for :func:`recut.passes.capture.capture`; its graph is changed."""
    joint.graph.eliminate_dead_code()
    if _torch.functorch_config.cse:
        # A module whose code is generated when it is first asked for: planning never asks.
        joint = _torch.make_graph_module(joint, _torch.fx_graph_cse(joint.graph))
    if _torch.has_recomputable_ops(joint):
        joint = _torch.cleanup_recompute_tags(joint, is_default_partition=False)
    if not _torch.functorch_config.unsafe_allow_optimization_of_collectives:
        _torch.force_save_collectives(joint)
    _torch.force_save_effectful_ops(joint)
    _torch.force_save_bw_mutation_src(joint)
    copy_written_inputs(joint.graph)
    return joint


def has_backward(joint: fx.GraphModule) -> bool:
    """Return whether anything in the graph depends on a tangent or is tied to the backward."""
    return any(
        (n.op == "placeholder" and _torch.is_tangent(n))
        or (n.op == "call_function" and _torch.must_be_in_backward(n))
        for n in joint.graph.nodes
    )


def exact_copy(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Insert a copy of a tensor that Inductor keeps: it drops ``clone`` as doing nothing.

    Multiplying by one, adding zero and a conjunction with itself are exact in their dtypes. A
    complex product is not (infinity times one has a NaN in it), so the parts are copied as numbers.
    """
    val = node.meta["val"]
    if val.is_complex():
        parts = graph.call_function(aten.view_as_real.default, (node,))
        parts.meta = {"val": torch.view_as_real(val)}
        new = graph.call_function(aten.view_as_complex.default, (exact_copy(graph, parts),))
    elif val.dtype is torch.bool:
        new = graph.call_function(aten.bitwise_and.Tensor, (node, node))
    elif val.is_floating_point():
        new = graph.call_function(aten.mul.Tensor, (node, 1))
    else:
        new = graph.call_function(aten.add.Tensor, (node, 0))
    new.meta = {"val": val}
    return new


def written_inputs(graph: fx.Graph) -> list[fx.Node]:
    """Return the inputs that the step overwrites behind the forward's last read of them.

    They are the targets of ``copy_``, and, where AOTAutograd applies mutations itself (without
    Inductor), those that the descriptions of the outputs name.
    """
    found: dict[fx.Node, None] = {}
    for n in graph.find_nodes(op="call_function", target=aten.copy_.default):
        if isinstance(n.args[0], fx.Node) and n.args[0].op == "placeholder":
            found[n.args[0]] = None
    described = {
        repr(d.mutated_input)
        for d in graph.output_node().meta.get("desc") or ()
        if hasattr(d, "mutated_input")
    }
    for n in graph.find_nodes(op="placeholder"):
        if "desc" in n.meta and repr(n.meta["desc"]) in described:
            found[n] = None
    return list(found)


def copy_written_inputs(graph: fx.Graph) -> None:
    """Let every reader of an overwritten input read a copy that is made before.

    The backward runs after the forward has overwritten the input, so it must never read the input
    itself; nor may a recomputation. Where only the forward reads the copy, it fuses into its
    readers and costs nothing.
    """
    for node in written_inputs(graph):
        if not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        readers = [u for u in node.users if u.target is not aten.copy_.default and u.op != "output"]
        if not readers:
            continue
        with graph.inserting_before(_first_call(graph)):
            copy = exact_copy(graph, node)
        for user in readers:
            user.replace_input_with(node, copy)


def _first_call(graph: fx.Graph) -> fx.Node:
    first: fx.Node = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
    return first
