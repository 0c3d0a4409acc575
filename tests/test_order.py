"""The backward's order: weight gradients early or last, all else where the joint graph has it."""

from __future__ import annotations

import numpy as np
from problems import Net, random_problem

from recut.partitioners.evaluator import evaluate
from recut.partitioners.problem import Kind, Phase
from recut.partitioners.program import Program
from recut.partitioners.schedule import lazy_schedule

BACKWARD = {"phase": Phase.BACKWARD}


def layer():
    """gelu(x) @ w and its gradients in autograd's order: input, weight, gelu."""
    net = Net()
    a, w, tangent = net.input("a"), net.input("w"), net.input("tangent")
    (x,) = net.op("x", (a,), 400)
    (g,) = net.op("gelu", (x,), 400, kind=Kind.POINTWISE)
    (y,) = net.op("y", (g, w), 100)
    (dy,) = net.op("dy", (tangent, y), 100, kind=Kind.POINTWISE, **BACKWARD)
    (dg,) = net.op("dg", (dy, w), 400, **BACKWARD)
    (dw,) = net.op("dw", (dy, g), 50, **BACKWARD)
    (dx,) = net.op("dx", (dg, x), 400, kind=Kind.POINTWISE, **BACKWARD)
    return net.problem((y,), (dw, dx)), x


def names(problem):
    return [problem.ops[i].name for i in problem.backward_order]


def test_a_weight_gradient_runs_before_the_input_gradient_and_lowers_the_peak():
    problem, x = layer()
    assert names(problem) == ["dy", "dw", "dg", "dx"]
    joint = tuple(sorted(problem.backward_order))
    early, late = (evaluate(problem, lazy_schedule(problem, {x}, o)) for o in (None, joint))
    assert early.peak < late.peak


def test_what_another_op_reads_keeps_its_place():
    net = Net()
    tangent = net.input("tangent")
    (dy,) = net.op("dy", (tangent,), 100, **BACKWARD)
    (dg,) = net.op("dg", (dy,), 100, **BACKWARD)
    (dw,) = net.op("dw", (dy,), 100, **BACKWARD)
    (total,) = net.op("total", (dw, dg), 100, **BACKWARD)
    assert names(net.problem((), (dw, total))) == ["dy", "dg", "dw", "total"]


def test_a_sum_of_gradients_runs_right_behind_the_matmul_that_it_adds():
    net = Net()
    tangent = net.input("tangent")
    (dw,) = net.op("dw", (tangent,), 100, **BACKWARD)
    (dw2,) = net.op("dw2", (tangent,), 100, **BACKWARD)
    (dx,) = net.op("dx", (tangent,), 100, **BACKWARD)
    (dh,) = net.op("dh", (dx,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (total,) = net.op("sum", (dw, dw2), 100, kind=Kind.OTHER, inplace=True, **BACKWARD)
    (dy,) = net.op("dy", (dh,), 100, **BACKWARD)
    assert names(net.problem((), (total, dy))) == ["dw", "dw2", "sum", "dx", "dh", "dy"]


def test_a_weight_gradient_does_not_divide_ops_that_fuse():
    net = Net()
    tangent = net.input("tangent")
    (dy,) = net.op("dy", (tangent,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (dz,) = net.op("dz", (dy,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (dg,) = net.op("dg", (dz,), 100, **BACKWARD)
    (dw,) = net.op("dw", (dy,), 100, **BACKWARD)
    (dx,) = net.op("dx", (dg,), 100, kind=Kind.POINTWISE, **BACKWARD)
    assert names(net.problem((), (dx, dw))) == ["dy", "dz", "dw", "dg", "dx"]


def head(size, cast=False):
    """The gradients of a layer behind a larger one; its weight's has some size."""
    net = Net()
    x, tangent = net.input("x"), net.input("tangent")
    (h,) = net.op("h", (x,), 300)
    (r,) = net.op("relu", (h,), 20, kind=Kind.POINTWISE)
    (y,) = net.op("y", (r,), 10)
    (dy,) = net.op("dy", (tangent,), 10, **BACKWARD)
    (dw,) = net.op("dw", (dy, r), size, workspace=10, **BACKWARD)
    if cast:
        (dw,) = net.op("cast", (dw,), 2 * size, kind=Kind.POINTWISE, **BACKWARD)
    (dr,) = net.op("dr", (dy,), 20, **BACKWARD)
    (dh,) = net.op("dh", (dr, h), 300, kind=Kind.POINTWISE, **BACKWARD)
    (deep,) = net.op("deep", (dh,), 100, **BACKWARD)
    return net.problem((y,), (dw, deep)), (r, h)


def test_a_gradient_larger_than_what_it_is_made_of_runs_last():
    # It holds 30 bytes, and 10 while it runs.
    assert names(head(40)[0]) == ["dy", "dw", "dr", "dh", "deep"]
    problem, _ = head(41)
    assert names(problem) == ["dy", "dr", "dh", "deep", "dw"]
    problem, saved = head(400)
    joint = tuple(sorted(problem.backward_order))
    late, early = (evaluate(problem, lazy_schedule(problem, saved, o)) for o in (None, joint))
    assert late.peak < early.peak


def test_what_makes_the_returned_gradient_of_it_goes_along():
    assert names(head(10, cast=True)[0]) == ["dy", "dw", "cast", "dr", "dh", "deep"]
    assert names(head(40, cast=True)[0]) == ["dy", "dr", "dh", "deep", "dw", "cast"]


def test_the_last_gradient_is_the_one_that_takes_least():
    net = Net()
    tangent = net.input("tangent")
    (dy,) = net.op("dy", (tangent,), 10, **BACKWARD)
    small = net.op("small", (dy,), 100, **BACKWARD)
    (dz,) = net.op("dz", (dy,), 20, **BACKWARD)
    large = net.op("large", (dz,), 100, **BACKWARD)
    end = net.op("end", (dz,), 10, **BACKWARD)
    problem = net.problem((), (*small, *large, *end))
    assert names(problem) == ["dy", "dz", "end", "large", "small"]


def test_what_it_reads_is_recomputed_where_it_would_have_run():
    """Not at the end, where all that it is made of would have to be alive still."""
    problem, (_, h) = head(400)
    schedule = lazy_schedule(problem, {h})
    order = [problem.ops[i].name for i in schedule.backward]
    assert order == ["dy", "relu", "dr", "dh", "deep", "dw"]
    program = Program(problem, lazy_schedule(problem, ()))
    nothing = np.zeros(len(program.columns.instances), dtype=np.bool_)
    order = [problem.ops[i].name for i in program.carrying(nothing).backward]
    assert order == ["dy", "h", "relu", "dr", "dh", "deep", "dw"]


def test_zeros_that_it_is_written_into_are_made_at_the_end():
    net = Net()
    x, tangent = net.input("x"), net.input("tangent")
    (y,) = net.op("y", (x,), 10)
    (zeros,) = net.op("zeros", (), 400, phase=Phase.EITHER, kind=Kind.POINTWISE)
    (dy,) = net.op("dy", (tangent, y), 10, **BACKWARD)
    (table,) = net.op("table", (zeros, dy), 400, kind=Kind.OTHER, inplace=True, **BACKWARD)
    (dx,) = net.op("dx", (dy,), 300, **BACKWARD)
    problem = net.problem((y,), (table, dx))
    order = [problem.ops[i].name for i in lazy_schedule(problem, ()).backward]
    assert order == ["y", "dy", "dx", "zeros", "table"]


def test_random_ops_and_effects_stay_where_they_are():
    net = Net()
    tangent = net.input("tangent")
    (dy,) = net.op("dy", (tangent,), 100, **BACKWARD)
    (dg,) = net.op("dg", (dy,), 100, **BACKWARD)
    (draw,) = net.op("draw", (dy,), 100, random=True, **BACKWARD)
    net.op("effect", (dy,), **BACKWARD)
    assert names(net.problem((), (dg, draw))) == ["dy", "dg", "draw", "effect"]


def test_every_op_runs_once_behind_what_it_reads():
    moved = 0
    for seed in range(400):
        problem = random_problem(seed)
        order = problem.backward_order
        own = [i for i, backward in enumerate(problem.is_backward) if backward]
        assert sorted(order) == own, seed
        place = {i: k for k, i in enumerate(order)}
        for i in order:
            makers = {problem.values[v].producer for v in problem.ops[i].inputs}
            assert all(place[p] < place[i] for p in makers if p in place), (seed, i)
        moved += list(order) != own
    assert moved > 0


def gated(half=400):
    """The gradients of silu(g) * u, whose matmuls read x; g's is behind u's in the joint graph."""
    net = Net()
    x, tangent = net.input("x"), net.input("tangent")
    (g,), (u,) = net.op("g", (x,), 400), net.op("u", (x,), 400)
    (y,) = net.op("y", (g, u), 400, kind=Kind.POINTWISE)
    (dy,) = net.op("dy", (tangent, y), 400, **BACKWARD)
    (du,) = net.op("du", (dy, g), 400, kind=Kind.POINTWISE, inplace=True, **BACKWARD)
    (dv,) = net.op("dv", (dy, u), half, kind=Kind.POINTWISE, inplace=True, **BACKWARD)
    (dxu,) = net.op("dxu", (du,), 100, **BACKWARD)
    (dwu,) = net.op("dwu", (du, x), 10, **BACKWARD)
    (dg,) = net.op("dg", (dv, g), 400, kind=Kind.POINTWISE, inplace=True, **BACKWARD)
    (dxg,) = net.op("dxg", (dg,), 100, **BACKWARD)
    (dwg,) = net.op("dwg", (dg, x), 10, **BACKWARD)
    (dx,) = net.op("dx", (dxu, dxg), 100, kind=Kind.POINTWISE, **BACKWARD)
    return net.problem((y,), (dwu, dwg, dx)), (g, u)


def test_both_gradients_of_a_gated_layer_are_made_in_one_kernel():
    problem, saved = gated()
    kernel = ["dy", "du", "dv", "dg"]
    assert names(problem) == [*kernel, "dwu", "dwg", "dxu", "dxg", "dx"]
    matmul = next(i for i, op in enumerate(problem.ops) if op.name == "dwu")
    live = []
    for order in (None, tuple(sorted(problem.backward_order))):
        schedule = lazy_schedule(problem, saved, order)
        moment = len(schedule.forward) + schedule.backward.index(matmul)
        live.append(evaluate(problem, schedule).live[moment])
    assert live == [1210, 1710]


def test_not_where_more_is_in_memory_then():
    # What would be gone with it takes a quarter of what it makes.
    assert names(gated(half=100)[0]) == [
        *("dy", "du", "dv", "dwu", "dxu"),
        *("dg", "dwg", "dxg", "dx"),
    ]


def test_not_beyond_what_reads_other_things_than_the_kernel_makes():
    net = Net()
    tangent = net.input("tangent")
    (dy,) = net.op("dy", (tangent,), 400, kind=Kind.POINTWISE, **BACKWARD)
    (du,) = net.op("du", (dy,), 400, kind=Kind.POINTWISE, **BACKWARD)
    (dh,) = net.op("dh", (du,), 100, **BACKWARD)
    (deep,) = net.op("deep", (dh,), 100, **BACKWARD)
    (dv,) = net.op("dv", (dy,), 400, kind=Kind.POINTWISE, **BACKWARD)
    (dz,) = net.op("dz", (dv,), 100, **BACKWARD)
    assert names(net.problem((), (deep, dz))) == ["dy", "du", "dh", "deep", "dv", "dz"]


def test_a_weight_gradient_does_not_stand_between_a_kernel_and_its_copy():
    """Rotary embeddings concatenate what a kernel makes."""
    net = Net()
    x, tangent = net.input("x"), net.input("tangent")
    dk, dv = net.op("attention", (tangent,), 100, 100, **BACKWARD)
    halves = [net.op(f"half{k}", (dk,), 50, kind=Kind.POINTWISE, **BACKWARD)[0] for k in (0, 1)]
    (whole,) = net.op("cat", halves, 100, kind=Kind.OTHER, **BACKWARD)
    (turned,) = net.op("turned", (whole,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (dx,) = net.op("dx", (dv, turned), 100, **BACKWARD)
    (dw,) = net.op("dw", (dv, x), 10, **BACKWARD)
    order = names(net.problem((), (dw, dx)))
    assert order == ["attention", "half0", "half1", "cat", "turned", "dw", "dx"]


def test_queries_and_keys_are_turned_in_one_kernel():
    net = Net()
    tangent = net.input("tangent")
    dk, dq, dv = net.op("attention", (tangent,), 100, 100, 100, **BACKWARD)
    (rk,) = net.op("rk", (dk,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (rq,) = net.op("rq", (dq,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (xv,) = net.op("xv", (dv,), 100, **BACKWARD)
    (ck,) = net.op("ck", (rk,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (xk,) = net.op("xk", (ck,), 100, **BACKWARD)
    (cq,) = net.op("cq", (rq,), 100, kind=Kind.POINTWISE, **BACKWARD)
    (xq,) = net.op("xq", (cq,), 100, **BACKWARD)
    (dx,) = net.op("dx", (xv, xk, xq), 100, kind=Kind.POINTWISE, **BACKWARD)
    (end,) = net.op("end", (dx,), 100, **BACKWARD)
    kernel = ["rk", "rq", "ck", "cq"]
    assert names(net.problem((), (end,))) == ["attention", *kernel, "xv", "xk", "xq", "dx", "end"]


def test_a_tables_gradient_that_reads_a_kernel_is_put_off():
    """A concatenation of what a kernel makes would run right behind it."""
    net = Net()
    tangent = net.input("tangent")
    (dx,) = net.op("dx", (tangent,), 10, kind=Kind.POINTWISE, **BACKWARD)
    (table,) = net.op("table", (dx,), 100, kind=Kind.OTHER, **BACKWARD)
    (dy,) = net.op("dy", (dx,), 10, **BACKWARD)
    assert names(net.problem((), (table, dy))) == ["dx", "dy", "table"]
