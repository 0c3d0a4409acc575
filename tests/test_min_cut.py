"""The minimum cut against all saved sets of small problems; its prices, its forced values."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from problems import Net, forward_values, random_problem, subsets

from recut.partitioners.evaluator import measure
from recut.partitioners.fastest import by_bytes, fastest
from recut.partitioners.machine import CPU
from recut.partitioners.min_cut import min_cut
from recut.partitioners.problem import Kind, Phase, Problem, Rule
from recut.partitioners.schedule import lazy_schedule
from recut.partitioners.timing import step_seconds

CASES = 600
MOST = 9  # values to choose from: 512 saved sets


def price(problem: Problem, saved, save, recompute) -> float:
    """Return what a saved set costs; infinite where a rule forbids what it needs.

    Everything that the backward reads and that is not saved is recomputed, and so on for what that
    reads. An op that only the backward needs is not recomputed but run there for the first time.
    """
    total = sum(save[v] for v in saved)
    if any(problem.ops[problem.values[v].producer].rule is Rule.MUST_RECOMPUTE for v in saved):
        return math.inf
    todo = list(problem.backward_reads)
    again: set[int] = set()
    while todo:
        v = todo.pop()
        p = problem.values[v].producer
        if p < 0 or v in saved or p in again:
            continue
        if problem.ops[p].rule is Rule.MUST_SAVE:
            return math.inf
        again.add(p)
        total += recompute[p] if problem.ops[p].phase is Phase.FORWARD else 0
        todo.extend(problem.ops[p].inputs)
    return total


def cases():
    """Yield (seed, problem, values to choose from, prices of saving, prices of recomputing)."""
    for seed in range(CASES):
        problem = random_problem(seed, most=14)
        values = forward_values(problem)
        if len(values) <= MOST and problem.backward_reads:
            rng = random.Random(f"prices {seed}")
            low = rng.choice((0, 1))
            save = [rng.randint(low, 9) for _ in problem.values]
            yield seed, problem, values, save, [rng.randint(low, 9) for _ in problem.ops]


def test_no_saved_set_is_cheaper():
    tried = mixed = 0
    for seed, problem, values, save, recompute in cases():
        found = min_cut(problem, save, recompute)
        best = min(price(problem, s, save, recompute) for s in subsets(values))
        assert price(problem, found, save, recompute) == best < math.inf, seed
        tried += 1
        mixed += 0 < len(found) < len(values)
    assert tried > CASES / 4
    assert mixed > tried / 4


def test_rules_are_kept():
    must_save = must_recompute = 0
    for seed, problem, _, save, recompute in cases():
        found = min_cut(problem, save, recompute)
        rules = {v: problem.ops[problem.values[v].producer].rule for v in forward_values(problem)}
        assert found <= rules.keys(), seed  # neither inputs nor the backward's own results
        must_recompute += Rule.MUST_RECOMPUTE in rules.values()
        assert Rule.MUST_RECOMPUTE not in {rules[v] for v in found}, seed
        read = {v for v in problem.backward_reads if rules[v] is Rule.MUST_SAVE}
        must_save += bool(read)
        assert read <= found, seed
    assert must_save > 20
    assert must_recompute > 20


def chain(**middle):
    """f0 -> f1 -> f2, all read by the backward; ``middle`` goes to f1."""
    net = Net()
    links = [net.input()]
    for k in range(3):
        links += net.op(f"f{k}", (links[-1],), 8, **(middle if k == 1 else {}))
    (g,) = net.op("g", (net.input("tangent"), *links[1:]), 8, phase=Phase.BACKWARD)
    return net.problem((links[-1],), (g,)), links[1:]


def test_saves_where_saving_is_cheaper_and_recomputes_elsewhere():
    problem, (a, b, c) = chain()
    save = [1.0] * len(problem.values)
    assert min_cut(problem, save, [2.0, 2.0, 2.0, 0.0]) == {a, b, c}
    assert min_cut(problem, save, [0.5, 0.5, 0.5, 0.0]) == frozenset()
    assert min_cut(problem, save, [2.0, 0.5, 2.0, 0.0]) == {a, c}


def test_recomputing_needs_what_it_reads():
    net = Net()
    (a,) = net.op("a", (net.input(),), 8)
    (b,) = net.op("b", (a,), 8)
    (g,) = net.op("g", (net.input("tangent"), b), 8, phase=Phase.BACKWARD)
    problem = net.problem((b,), (g,))
    save = [1.0] * len(problem.values)
    save[b] = 3.0
    assert min_cut(problem, save, [9.0, 1.0, 0.0]) == {a}  # 1 + 1
    assert min_cut(problem, save, [9.0, 2.5, 0.0]) == {b}  # 3 < 1 + 2.5
    assert min_cut(problem, save, [0.5, 1.0, 0.0]) == frozenset()  # 0.5 + 1


def test_the_rules_outweigh_any_price():
    problem, (a, b, c) = chain(rule=Rule.MUST_SAVE, reason="a seed")
    huge = [1e9] * len(problem.values)
    assert min_cut(problem, huge, [1e-9] * 4) == {b}
    problem, (a, b, c) = chain(rule=Rule.MUST_RECOMPUTE, reason="in a region")
    assert min_cut(problem, [1e-9] * len(problem.values), [1e9] * 4) == {a, c}


def test_prices_may_span_many_orders_of_magnitude():
    problem, (a, b, c) = chain()
    save = [0.0] * len(problem.values)
    save[a], save[b], save[c] = 1e-6, 1e-3, 1.0
    assert min_cut(problem, save, [2e-6, 2e-3, 2.0, 0.0]) == {a, b, c}
    assert min_cut(problem, save, [0.5e-6, 0.5e-3, 0.5, 0.0]) == frozenset()


def test_no_backward_reads_nothing_is_saved():
    net = Net()
    (a,) = net.op("a", (net.input(),), 8)
    assert min_cut(net.problem((a,)), [1.0, 1.0], [1.0]) == frozenset()


@pytest.mark.parametrize(
    ("kind", "reader", "passes"),
    [
        (Kind.COMPUTE, Kind.POINTWISE, 1),  # written anyway: the backward's read
        (Kind.POINTWISE, Kind.POINTWISE, 2),  # fused away: a write as well
        (Kind.POINTWISE, Kind.COMPUTE, 1),
        (Kind.REDUCTION, Kind.POINTWISE, 1),
    ],
)
def test_traffic_counts_the_passes_over_memory_that_saving_adds(kind, reader, passes):
    net = Net()
    (a,) = net.op("a", (net.input(),), 800, kind=kind)
    (b,) = net.op("b", (a,), 8, kind=reader)
    net.op("g", (net.input("tangent"), a), 8, kind=Kind.POINTWISE, phase=Phase.BACKWARD)
    net.values[a] = replace(net.values[a], store=16.0, load=1.0)
    assert net.problem((b,)).save_seconds[a] == 16.0 * (passes - 1) + 1.0
    assert net.problem((a, b)).save_seconds[a] == 1.0  # returned, it is written anyway


@pytest.mark.parametrize("kind", [Kind.POINTWISE, Kind.REDUCTION, Kind.COMPUTE])
def test_what_a_librarys_call_of_the_backward_reads_is_written_again_and_not_read_by_kernels(kind):
    net = Net()
    (a,) = net.op("a", (net.input(),), 800, kind=Kind.POINTWISE, seconds=0.5)
    (b,) = net.op("b", (a,), 8, kind=Kind.COMPUTE)
    net.op("g", (net.input("tangent"), a), 8, kind=kind, phase=Phase.BACKWARD)
    net.values[a] = replace(net.values[a], store=16.0, load=1.0)
    problem = net.problem((b,))
    library = kind is Kind.COMPUTE
    assert problem.save_seconds[a] == (0.0 if library else 1.0)
    assert problem.again_seconds[0] == (16.5 if library else 0.5)


@pytest.mark.parametrize("library", [True, False])
def test_torch_saves_what_reads_a_value_after_a_library_call(library):
    net = Net()
    pointwise = {"kind": Kind.POINTWISE}
    (a,) = net.op("a", (net.input(),), 8, **pointwise)
    (b,) = net.op("b", (a,), 4, kind=Kind.COMPUTE if library else Kind.POINTWISE)
    (c,) = net.op("c", (a, b), 8, **pointwise)
    (g,) = net.op("g", (net.input("tangent"), c), 8, phase=Phase.BACKWARD, **pointwise)
    problem = net.problem((c,), (g,), "inductor")
    # To recompute c, of b alone, would keep a or compute it twice.
    assert by_bytes(problem) == (frozenset({c}) if library else frozenset())


@pytest.mark.parametrize("target", ["prims.inductor_random.default", "aten.exp.default"])
def test_torch_recomputes_no_random_numbers(target):
    net = Net()
    pointwise = {"kind": Kind.POINTWISE}
    (a,) = net.op("a", (net.input(),), 8, **pointwise)
    net.ops[0] = replace(net.ops[0], target=target)
    (mask,) = net.op("mask", (a,), 2, **pointwise)
    (out,) = net.op("out", (mask, net.input("y")), 8, **pointwise)
    (g,) = net.op("g", (net.input("tangent"), mask), 8, phase=Phase.BACKWARD, **pointwise)
    problem = net.problem((out,), (g,), "inductor")
    assert by_bytes(problem) == (frozenset({mask}) if "random" in target else frozenset())


def test_the_fastest_schedule_is_no_slower_and_no_larger_than_what_torch_would_save():
    better = set()
    for seed in range(CASES):
        problem = random_problem(seed, "inductor")
        schedule, torchs = fastest(problem, CPU), lazy_schedule(problem, by_bytes(problem))
        peaks = [measure(problem, s).peak for s in (schedule, torchs)]
        seconds = [step_seconds(problem, s, CPU) for s in (schedule, torchs)]
        assert peaks[0] <= peaks[1], seed
        assert seconds[0] <= seconds[1], seed
        better |= {("peak", peaks[0] < peaks[1]), ("seconds", seconds[0] < seconds[1])}
    assert len(better) == 4  # it is both what torch would do, and better in either way


def test_the_fastest_schedule_is_valid_and_recomputes_what_is_cheaper_than_its_traffic():
    for seed in range(CASES):
        problem = random_problem(seed, "inductor")
        fastest(problem, CPU).check(problem)
    net = Net()
    size = 2**20
    (a,) = net.op("a", (net.input(),), size, seconds=1.0)
    (b,) = net.op("b", (a,), size, seconds=1e-9, kind=Kind.POINTWISE)
    (c,) = net.op("c", (b,), size, seconds=1.0, kind=Kind.POINTWISE)
    net.ops[2] = replace(net.ops[2], arithmetic=1.0)
    reads = (net.input("tangent"), b, c)
    (g,) = net.op("g", reads, size, kind=Kind.POINTWISE, phase=Phase.BACKWARD)
    problem = net.problem((c,), (g,), "inductor")
    schedule = fastest(problem, CPU)
    assert schedule.saved(problem) == (a, c)
    assert schedule.recomputed(problem) == {1: 1}
