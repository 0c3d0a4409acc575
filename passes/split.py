"""Joint graph that runs a schedule -> forward and backward modules, with AOTAutograd's signatures.

What the two take and return, and in which order, is torch's business: outputs, saved tensors with
and without version counters, opaque objects, symbolic sizes and those that only bind a symbol. Its
own extraction decides that, on an outline of the graph: the inputs, what crosses, what is returned,
and one call in the place of the whole backward. The bodies are filled in afterwards, each node
copied once, where the extraction would copy the whole graph three times to find them.

Example, of the joint graph ``mm, r, s | r_1, d`` of ``rewrite.py``::

    outline:   x, t, g, mm = made(), s = made(), b = backward(mm, g), d = made(b) -> s, d
    forward:   x, t  -> s, mm        takes and returns, by torch
    backward:  mm, g -> d
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import fx

from recut.passes import _torch
from recut.passes.rewrite import Emission


def split(
    emission: Emission,
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return forward and backward of an emitted joint graph."""
    static = set(static_lifetime_input_indices or ())
    if _quantises():
        # It changes the bodies: there they have to be.
        forward, backward = _extract(emission, emission.module, num_fwd_outputs, static)
    else:
        outline = _outline(emission, num_fwd_outputs)
        forward, backward = _extract(emission, outline, num_fwd_outputs, static)
        nodes = list(emission.module.graph.nodes)
        forward = _filled(emission, forward, (n for n in nodes if n in emission.forward))
        backward = _filled(emission, backward, (n for n in nodes if n not in emission.forward))
    for phase, part in (("forward", forward), ("backward", backward)):
        _eliminate(part.graph, emission.effects[phase])
    forward = _torch.thread_graphsafe_rng_from_hops(forward, is_backward=False)
    backward = _torch.thread_graphsafe_rng_from_hops(backward, is_backward=True)
    return forward, backward


def _quantises() -> bool:
    """Return whether torch is asked to save activations in eight bits."""
    options = _torch.inductor_config.post_grad_fusion_options
    return options.get("activation_quantization_aten_pass") is not None


def _extract(
    emission: Emission, joint: fx.GraphModule, num_fwd_outputs: int, static: Collection[int]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return what torch's extraction makes of a joint graph with the names of the emitted one."""
    named = {n.name: n for n in joint.graph.nodes}
    ordered = [named[n.name] for n in emission.crossing]
    symbolic = [n for n in ordered if _torch.is_sym_node(n)]
    opaque = [n for n in ordered if _torch.is_opaque_node(n)]
    apart = {*symbolic, *opaque}
    primals = [n for n in joint.graph.find_nodes(op="placeholder") if _torch.is_primal(n)]
    return _torch.extract_fwd_bwd_modules(
        joint,
        [n for n in ordered if n not in apart],
        saved_sym_nodes=symbolic,
        saved_opaque_nodes=opaque,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_nodes=_torch.OrderedSet(
            p for k, p in enumerate(primals) if k in static
        ),
    )


def _made(*_: Any) -> None:
    """Stand for a node whose computation is left out of an outline."""


def _backward(*_: Any) -> None:
    """Stand for a whole backward in an outline."""


def _outline(emission: Emission, num_fwd_outputs: int) -> fx.GraphModule:
    """Return the joint graph without its computation."""
    module = emission.module
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}

    def stand_in(node: fx.Node, *reads: fx.Node) -> None:
        env[node] = graph.create_node("call_function", _made, reads, name=node.name)
        env[node].meta = node.meta

    output = module.graph.output_node()
    flat: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    returned = [n for n in flat if isinstance(n, fx.Node)]
    shown = {*emission.crossing, *returned}
    for n in module.graph.nodes:
        if n.op in ("placeholder", "get_attr"):
            env[n] = graph.node_copy(n, env.__getitem__)
        # A number may bind a symbol of what crosses, and cross for that.
        elif n in emission.forward and (n in shown or _torch.is_sym_node(n)):
            stand_in(n)
    inputs = [n for n in module.graph.find_nodes(op="placeholder") if n not in emission.forward]
    reads = tuple(env[n] for n in (*emission.crossing, *inputs))
    backward = graph.call_function(_backward, reads)
    for n in flat[num_fwd_outputs:]:
        if isinstance(n, fx.Node) and n not in env:
            stand_in(n, backward)
    new = graph.output(fx.node.map_arg(flat, env.__getitem__))
    new.meta = dict(output.meta)
    return _torch.make_graph_module(module, graph)


def _filled(emission: Emission, part: fx.GraphModule, body: Iterable[fx.Node]) -> fx.GraphModule:
    """Return a graph with the signature of ``part`` and some of the emitted nodes as its body."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    emitted = {n.name: n for n in emission.module.graph.nodes}
    for n in part.graph.find_nodes(op="placeholder"):
        env[emitted[n.name]] = graph.node_copy(n)
    # torch marks what runs in a backward (since 2.12).
    marks = {
        key: n.meta[key]
        for n in part.graph.find_nodes(op="call_function", target=_backward)
        for key in n.meta
    }
    attributes = emission.module.graph.find_nodes(op="get_attr")
    for n in (*attributes, *body):
        if n.op in ("call_function", "get_attr") and n not in env:
            env[n] = graph.node_copy(n, env.__getitem__)
            env[n].meta.update(marks)
    output = part.graph.output_node()
    new = graph.output(fx.node.map_arg(output.args[0], lambda n: env[emitted[n.name]]))
    new.meta = dict(output.meta)
    return _torch.make_graph_module(emission.module, graph)


def _eliminate(graph: fx.Graph, effects: Collection[str]) -> None:
    """Remove what nobody reads, except effects that the schedule runs in this graph.

    By our own rule, since fx keeps dead ops that it takes for impure (random by tag, assertions);
    where torch splits the whole graph, each part has those of the other one.
    """
    graph.eliminate_dead_code(
        is_impure_node=lambda n: n.op in ("placeholder", "output") or n.name in effects
    )
