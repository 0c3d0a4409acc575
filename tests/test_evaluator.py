"""The evaluator against a slow second reading of its model, and hand-counted bytes."""

from __future__ import annotations

import pytest
from problems import Net, random_problem, random_schedule
from reference import Reference

from recut.partitioners.evaluator import evaluate, measure
from recut.partitioners.limits import MAX_SOURCES, MAX_WEIGHT
from recut.partitioners.problem import Kind, Phase
from recut.partitioners.schedule import Schedule, lazy_schedule

CASES = 2000  # for each compiler
POINTWISE = {"kind": Kind.POINTWISE}
BACKWARD = {"phase": Phase.BACKWARD}


def differences(problem, schedule):
    """Return how the evaluator's answer differs from the reference's, as text."""
    line = evaluate(problem, schedule)
    ref = Reference(problem, schedule)
    live = tuple(ref.total(t) for t in range(ref.end))
    found = []
    if line.split != ref.split:
        found.append(f"split {line.split} is not {ref.split}")
    if line.live != live:
        found.append(f"live {line.live} is not {live}")
    for t in range(ref.end):
        named = sorted((i.value, i.start, i.bytes) for i in line.at(t))
        wanted = sorted((i[0], ref.started(i), ref.bytes(i)) for i in ref.live(t))
        if named != wanted:
            found.append(f"at {t} it names {named}, not {wanted}")
    if [i.value for i in line.instances] != [v for v, _ in ref.instances]:
        found.append("instances are missing or out of order")
    both = zip(line.instances, ref.instances, strict=False)
    if {r for i, r in both if i.end >= ref.end} != ref.returned:
        found.append("another set of instances is returned by the step")
    return found


@pytest.mark.parametrize(
    "compiler",
    [
        "eager",
        "inductor",
    ],
)
@pytest.mark.parametrize(
    "seeds",
    [range(0, CASES, 2), pytest.param(range(1, CASES, 2), marks=pytest.mark.long)],
)
def test_agrees_with_the_definition(compiler, seeds):
    wrong = []
    for seed in seeds:
        problem = random_problem(seed, compiler)
        for schedule in (random_schedule(problem, seed), random_schedule(problem, -seed - 1)):
            wrong += [(len(problem.ops), seed, d) for d in differences(problem, schedule)]
    assert not wrong, f"{len(wrong)} differences; the smallest: {min(wrong)}"


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_what_is_named_adds_up_to_the_peak(compiler):
    for seed in range(300):
        problem = random_problem(seed, compiler)
        schedule = random_schedule(problem, seed)
        line = evaluate(problem, schedule)
        found = measure(problem, schedule)
        now = problem.ops[(schedule.forward + schedule.backward)[line.worst]]
        named = sum(i.bytes for i in line.at(line.worst)) + now.workspace
        # What an op writes over an input is named twice: once as the input, once as the output.
        over = found.taken[found.start[found.taken] == line.worst]
        assert line.peak == max(line.live) == line.live[line.worst]
        assert line.peak not in line.live[: line.worst]
        assert named == line.peak + found.bytes[over].sum()


def live(net, *outputs, compiler="eager", **lazy):
    """Return the bytes at each moment of the schedule that saves everything."""
    problem = net.problem(*outputs, compiler=compiler)
    schedule = lazy_schedule(problem, lazy.get("saved", range(len(net.values))))
    schedule.check(problem)
    return evaluate(problem, schedule).live


def test_inputs_outputs_and_workspace_are_live_together_and_inputs_of_the_graph_never():
    net = Net()
    x = net.input()
    (a,) = net.op("a", (x,), 100)
    (b,) = net.op("b", (a,), 10, workspace=1000)
    (c,) = net.op("c", (b,), 1)
    assert live(net, (c,)) == (100, 1110, 11)


def test_an_unused_result_lives_while_its_op_runs():
    net = Net()
    a, _ = net.op("a", (net.input(),), 100, 7)
    (b,) = net.op("b", (a,), 10)
    assert live(net, (b,)) == (107, 110)


def test_what_is_returned_lives_to_the_end():
    net = Net()
    (a,) = net.op("a", (net.input(),), 100)
    (b,) = net.op("b", (a,), 10)
    (g,) = net.op("g", (net.input("tangent"), b), 3, **BACKWARD)
    (h,) = net.op("h", (g,), 1, **BACKWARD)
    assert live(net, (a,), (g, h)) == (100, 110, 113, 104)


def recomputing_net():
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    (a,) = net.op("a", (x,), 100)
    (b,) = net.op("b", (a,), 10)
    (g,) = net.op("g", (tangent, b), 3, **BACKWARD)
    (h,) = net.op("h", (g, a), 1, **BACKWARD)
    return net.problem((b,), (h,))


def test_a_recomputed_value_does_not_live_in_between():
    problem = recomputing_net()
    assert evaluate(problem, Schedule((0, 1), (2, 3))).live == (100, 110, 113, 114)
    line = evaluate(problem, Schedule((0, 1), (2, 0, 3)))
    assert line.live == (100, 110, 13, 113, 114)
    now = [(i.value, i.start, i.end, i.bytes) for i in line.at(4)]
    assert now == [(3, 1, 5, 10), (4, 2, 4, 3), (2, 3, 4, 100), (5, 4, 5, 1)]
    assert (line.peak, line.worst, line.split) == (114, 4, 2)


def test_a_returned_value_that_is_recomputed_is_in_memory_twice():
    problem = recomputing_net()
    # b is the forward's output: its first instance stays although the backward reads the second.
    assert evaluate(problem, Schedule((0, 1), (1, 2, 0, 3))).live == (100, 110, 120, 23, 113, 114)


def test_a_value_that_is_recomputed_twice_has_three_lives():
    problem = recomputing_net()
    assert evaluate(problem, Schedule((0, 1), (0, 2, 0, 3))).live == (100, 110, 110, 13, 113, 114)


def test_an_op_in_place_takes_over_one_dying_input_for_each_output_of_the_same_size():
    net = Net()
    a, b, c = net.op("a", (net.input(),), 100, 100, 60)
    d, e, f = net.op("d", (a, b, c), 100, 100, 100, inplace=True)
    (g,) = net.op("g", (d, e, f), 1)
    assert live(net, (g,)) == (260, 360, 301)
    assert live(net, (a, g)) == (260, 460, 401)  # what is returned is not overwritten


def test_an_op_that_cannot_write_in_place_takes_over_nothing():
    net = Net()
    (a,) = net.op("a", (net.input(),), 100)
    (b,) = net.op("b", (a,), 100)
    assert live(net, (b,)) == (100, 200)


def far_net(readers, sources=1, chain=1, between=Kind.COMPUTE, **last):
    """``sources`` buffers, a chain of pointwise ops on them, an op in between, the readers.

    The chain's values take 100 bytes each, the others' powers of ten show who is live.
    """
    net = Net()
    x = net.input()
    roots = net.op("roots", (x,), *[10] * sources)
    inner = roots
    for k in range(chain):
        more = last if k == chain - 1 else {}
        inner = net.op(f"inner{k}", inner, 100, **POINTWISE, **more)
    (other,) = net.op("other", (x,), 1000, kind=between)
    ends = [net.op(f"end{k}", (*inner, other), 1, **POINTWISE)[0] for k in range(readers)]
    return net, ends


def test_a_pointwise_value_with_one_reader_takes_no_memory_but_its_source_lives_on():
    net, ends = far_net(1)
    assert live(net, ends, compiler="eager") == (10, 110, 1100, 1101)
    assert live(net, ends, compiler="inductor") == (10, 10, 1010, 1011)


def test_reduction_reads_a_pointwise_value_inside_its_kernel_and_a_matmul_does_not():
    for kind, expected in ((Kind.REDUCTION, (10, 10, 11)), (Kind.COMPUTE, (10, 110, 101))):
        net = Net()
        (a,) = net.op("a", (net.input(),), 10)
        (b,) = net.op("b", (a,), 100, **POINTWISE)
        (c,) = net.op("c", (b,), 1, kind=kind)
        assert live(net, (c,), compiler="inductor") == expected


@pytest.mark.parametrize("kind", [Kind.REDUCTION, Kind.COMPUTE, Kind.OTHER])
def test_only_what_is_made_element_by_element_is_evaluated_anew(kind):
    net = Net()
    (a,) = net.op("a", (net.input(),), 100, kind=kind)
    (b,) = net.op("b", (net.input(),), 1000)
    (c,) = net.op("c", (a, b), 1, **POINTWISE)
    assert live(net, (c,), compiler="inductor") == (100, 1100, 1101)


@pytest.mark.parametrize(
    ("made", "between", "expected"),
    [
        (Kind.REDUCTION, Kind.REDUCTION, (0, 7, 8)),
        (Kind.REDUCTION, Kind.COMPUTE, (100, 107, 108)),
        (Kind.COMPUTE, Kind.REDUCTION, (100, 107, 108)),
    ],
)
def test_what_is_made_and_read_in_one_kernel_takes_no_memory(made, between, expected):
    net = Net()
    (a,) = net.op("a", (net.input(),), 100, kind=made)
    (b,) = net.op("b", (net.input(),), 7, kind=between)
    (c,) = net.op("c", (a,), 1, **POINTWISE)
    assert live(net, (b, c), compiler="inductor") == expected


def test_a_shared_value_that_evaluates_a_heavy_one_anew_is_a_buffer():
    net = Net()
    (a,) = net.op("a", (net.input(),), 10)
    (b,) = net.op("b", (a,), 50, **POINTWISE, heavy=True)
    (c,) = net.op("c", (b,), 100, **POINTWISE)
    (d,) = net.op("d", (net.input(),), 1000)
    ends = [net.op(f"end{k}", (c, d), 1, **POINTWISE)[0] for k in range(2)]
    assert live(net, ends, compiler="inductor") == (10, 10, 110, 1100, 1101, 1102)


def test_few_sources_are_read_anew_and_many_make_a_buffer():
    few, many = MAX_SOURCES, MAX_SOURCES + 1
    net, ends = far_net(2, sources=few)
    assert live(net, ends, compiler="inductor") == (
        10 * few, 10 * few, 1000 + 10 * few, 1001 + 10 * few, 1002 + 10 * few
    )  # fmt: skip
    net, ends = far_net(2, sources=many)
    assert live(net, ends, compiler="inductor") == (10 * many, 100 + 10 * many, 1100, 1101, 1102)


def test_many_sources_do_not_matter_in_one_kernel_or_for_one_reader():
    many = MAX_SOURCES + 1
    net, ends = far_net(2, sources=many, between=Kind.REDUCTION)
    assert live(net, ends, compiler="inductor")[1] == 10 * many
    net, ends = far_net(1, sources=many)
    assert live(net, ends, compiler="inductor")[1] == 10 * many


def test_a_heavy_value_with_two_far_readers_is_a_buffer():
    net, ends = far_net(2, heavy=True)
    assert live(net, ends, compiler="inductor") == (10, 110, 1100, 1101, 1102)
    net, ends = far_net(1, heavy=True)
    assert live(net, ends, compiler="inductor") == (10, 10, 1010, 1011)


def test_what_is_realized_is_a_buffer_and_lives_as_long_as_the_mask_made_of_it():
    net, ends = far_net(1, realized=True)
    assert live(net, ends, compiler="inductor") == (10, 110, 1100, 1101)
    net = Net()
    (numbers,) = net.op("numbers", (net.input(),), 400, **POINTWISE, heavy=True, realized=True)
    (mask,) = net.op("mask", (numbers,), 100, **POINTWISE)
    (other,) = net.op("other", (net.input(),), 1000)
    ends = [net.op(f"end{k}", (mask, other), 1, **POINTWISE)[0] for k in range(2)]
    assert live(net, ends, compiler="inductor") == (400, 400, 1400, 1401, 1402)


@pytest.mark.parametrize(("reader", "flat", "held"), [
    (Kind.REDUCTION, True, 400), (Kind.REDUCTION, False, 0), (Kind.POINTWISE, True, 0),
])  # fmt: skip
def test_what_is_flat_is_a_buffer_for_a_reduction_that_reads_it(reader, flat, held):
    net = Net()
    (numbers,) = net.op("numbers", (net.input(),), 400, **POINTWISE, realized=True, flat=flat)
    (mask,) = net.op("mask", (numbers,), 100, **POINTWISE)
    (end,) = net.op("end", (mask,), 1, kind=reader)
    assert live(net, (end,), compiler="inductor")[0] == held


def test_what_is_flat_is_a_buffer_for_several_beside_a_reduction():
    net = Net()
    (numbers,) = net.op("numbers", (net.input(),), 400, **POINTWISE, realized=True, flat=True)
    (mask,) = net.op("mask", (numbers,), 100, **POINTWISE)
    ends = [net.op(f"end{k}", (mask,), 1, **POINTWISE)[0] for k in range(2)]
    assert live(net, ends, compiler="inductor")[0] == 0
    (other,) = net.op("other", (net.input(),), 1, kind=Kind.REDUCTION)
    assert live(net, (*ends, other), compiler="inductor")[0] == 400


def test_a_long_chain_with_two_far_readers_is_a_buffer():
    longest = MAX_WEIGHT
    net, ends = far_net(2, chain=longest)
    assert live(net, ends, compiler="inductor")[-2:] == (1011, 1012)
    net, ends = far_net(2, chain=longest + 1)
    assert live(net, ends, compiler="inductor")[-2:] == (1101, 1102)


def test_what_is_returned_or_saved_is_a_buffer():
    net = Net()
    (a,) = net.op("a", (net.input(),), 10)
    (b,) = net.op("b", (a,), 100, **POINTWISE)
    (c,) = net.op("c", (b,), 1, **POINTWISE)
    (g,) = net.op("g", (net.input("tangent"), b), 3, **BACKWARD, **POINTWISE)
    assert live(net, (c, b), compiler="inductor") == (10, 110, 101, 104)
    assert live(net, (c,), (g,), compiler="inductor") == (10, 110, 101, 104)
    # Recomputed, it runs inside its reader, and what it is made of is saved in its place.
    assert live(net, (c,), (g,), compiler="inductor", saved=(a,)) == (10, 10, 11, 11, 14)


def test_in_place_over_a_source_of_what_runs_inside():
    net = Net()
    (a,) = net.op("a", (net.input(),), 50)
    (b,) = net.op("b", (a,), 50, **POINTWISE)
    (c,) = net.op("c", (b,), 50, **POINTWISE, inplace=True)
    assert live(net, (c,), compiler="inductor") == (50, 50, 50)


def test_the_copy_of_an_input_lives_from_the_start_to_the_last_reader():
    for compiler in ("eager", "inductor"):
        net = Net()
        x, copied = net.input("x"), net.input("copied", copy=100)
        (a,) = net.op("a", (x,), 10)
        (b,) = net.op("b", (a, copied), 100, inplace=True)
        (c,) = net.op("c", (b,), 1)
        assert live(net, (c,), compiler=compiler) == (110, 210, 101)
        assert live(net, (c, copied), compiler=compiler) == (110, 210, 201)


def test_a_kernel_runs_at_the_place_of_its_last_op():
    net = Net()
    x = net.input()
    (a,) = net.op("a", (x,), 100)
    b, out = net.op("b", (a,), 1000, 7, **POINTWISE)  # b stays inside, out is written with d
    (c,) = net.op("c", (x,), 20, **POINTWISE)  # another kernel
    (d,) = net.op("d", (b,), 5, **POINTWISE)
    assert live(net, (out, c, d), compiler="inductor") == (100, 100, 120, 132)
    assert live(net, (out, c, d), compiler="eager") == (100, 1107, 1027, 1032)


@pytest.mark.parametrize("kind", [Kind.POINTWISE, Kind.REDUCTION])
def test_the_last_to_read_an_input_writes_over_it(kind):
    net = Net()
    (a,) = net.op("a", (net.input(),), 64)
    (b,) = net.op("b", (a,), 8, kind=kind)
    (c,) = net.op("c", (b, a), 64, **POINTWISE, inplace=True)
    assert live(net, (c,), compiler="inductor") == (64, 64, 64)
    (d,) = net.op("d", (a,), 8, kind=kind)  # in a kernel of its own
    assert live(net, (c, d), compiler="inductor") == (64, 64, 128, 136)


def test_of_two_that_compute_side_by_side_none_writes_over_their_input():
    for kind, expected in ((Kind.REDUCTION, (64, 72, 72)), (Kind.POINTWISE, (64, 72, 136))):
        net = Net()
        (a,) = net.op("a", (net.input(),), 64)
        (b,) = net.op("b", (a,), 8, kind=kind)
        (c,) = net.op("c", (b, a), 64, **POINTWISE, inplace=True)
        assert live(net, (b, c), compiler="inductor") == expected


def test_what_was_saved_is_written_over():
    for compiler in ("eager", "inductor"):
        net = Net()
        (a,) = net.op("a", (net.input(),), 64)
        (b,) = net.op("b", (a,), 8)
        (g,) = net.op("g", (net.input("tangent"), a), 64, **BACKWARD, **POINTWISE, inplace=True)
        (h,) = net.op("h", (g,), 4, **BACKWARD)
        assert live(net, (b,), (h,), compiler=compiler) == (64, 72, 72, 76)
        assert live(net, (b, a), (h,), compiler=compiler) == (64, 72, 136, 140)


def test_an_input_lives_until_the_last_kernel_that_reads_it():
    net = Net()
    (a,) = net.op("a", (net.input(),), 100)
    (b,) = net.op("b", (a,), 50, kind=Kind.REDUCTION)  # in one kernel with e
    (c,) = net.op("c", (a,), 3, kind=Kind.REDUCTION)  # the last reader of a, a kernel of its own
    (e,) = net.op("e", (b,), 5, kind=Kind.REDUCTION)
    assert live(net, (c, e), compiler="inductor") == (100, 100, 103, 108)


def test_an_empty_step_has_no_peak():
    problem = Net().problem()
    line = evaluate(problem, Schedule((), ()))
    assert (line.live, line.peak, line.worst, line.at(0)) == ((), 0, 0, ())
