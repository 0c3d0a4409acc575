"""What the stock partitioner does to a joint graph before it cuts, and a replacement owes.

Dead code and common subexpressions go; checkpoint tags are cleaned up; collectives, effectful ops
and the sources of mutations in the backward are marked as saved.
"""

from __future__ import annotations

from torch import fx

from recut.passes import _torch


def prepare(joint: fx.GraphModule) -> fx.GraphModule:
    """Return ``joint`` ready for :func:`recut.passes.capture.capture`; it is changed in place."""
    joint.graph.eliminate_dead_code()
    joint.recompile()
    if _torch.functorch_config.cse:
        joint.graph = _torch.fx_graph_cse(joint.graph)
    if _torch.has_recomputable_ops(joint):
        joint = _torch.cleanup_recompute_tags(joint, is_default_partition=False)
    if not _torch.functorch_config.unsafe_allow_optimization_of_collectives:
        _torch.force_save_collectives(joint)
    _torch.force_save_effectful_ops(joint)
    _torch.force_save_bw_mutation_src(joint)
    return joint


def has_backward(joint: fx.GraphModule) -> bool:
    """Return whether anything in the graph depends on a tangent or is tied to the backward."""
    return any(
        (n.op == "placeholder" and _torch.is_tangent(n))
        or (n.op == "call_function" and _torch.must_be_in_backward(n))
        for n in joint.graph.nodes
    )
