"""Schedules: check() names each violation; the lazy schedule is valid for any saved set."""

from __future__ import annotations

import random
import re

import pytest
from problems import Net, forward_values, random_problem, random_schedule

from recut.partitioners.errors import InvalidSchedule
from recut.partitioners.problem import Phase, Rule
from recut.partitioners.schedule import Schedule, Stretches, forward_order, lazy_schedule

CASES = 1000
# The ops of ``small``, by name.
A, SEED, B, MASK, G, H = range(6)


def small():
    """Return a step: a -> b is its forward, seed is pinned, only the backward needs mask."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    (a,) = net.op("a", (x,), 100, seconds=1.0)
    (seed,) = net.op("seed", (), 8, seconds=2.0, rule=Rule.MUST_SAVE, reason="a seed")
    (b,) = net.op("b", (a, seed), 10, seconds=4.0)
    (mask,) = net.op("mask", (a,), 5, seconds=8.0, phase=Phase.EITHER)
    (g,) = net.op("g", (tangent, mask, seed), 3, seconds=16.0, phase=Phase.BACKWARD)
    (h,) = net.op("h", (g, a), 1, seconds=32.0, phase=Phase.BACKWARD)
    return net.problem((b,), (h,))


def value(problem, name):
    return next(v for v, x in enumerate(problem.values) if x.name == name)


def refused(problem, forward, backward, text):
    with pytest.raises(InvalidSchedule, match=f"^{re.escape(text)}$"):
        Schedule(forward, backward).check(problem)


VALID = [
    ((A, SEED, B), (MASK, G, H)),
    ((A, SEED, B, MASK), (G, H)),
    ((SEED, A, MASK, B), (A, MASK, A, G, A, H)),
    ((A, SEED, B, MASK), (A, MASK, B, G, H)),
]


@pytest.mark.parametrize(("forward", "backward"), VALID)
def test_check_accepts(forward, backward):
    Schedule(forward, backward).check(small())


@pytest.mark.parametrize(
    ("forward", "backward", "text"),
    [
        ((A, SEED, B, MASK, G), (H,), "g belongs to the backward but stands in the forward"),
        ((A, A, SEED, B), (MASK, G, H), "a runs twice in the forward"),
        ((A, SEED, B), (MASK, G, G, H), "g runs twice in the backward"),
        ((A, SEED, B), (SEED, MASK, G, H), "seed is recomputed, but is a seed"),
        ((A, SEED), (B, MASK, G, H), "b belongs to the forward but first runs in the backward"),
        ((SEED, B, A), (MASK, G, H), "b reads a before it is made"),
        ((A, SEED, B), (G, MASK, H), "g reads mask before it is made"),
        ((A, SEED, B), (MASK, H, G), "h reads g before it is made"),
        ((A, SEED, B), (MASK, G), "never run: h"),
        ((A, SEED), (MASK, G), "never run: b, h"),
    ],
)
def test_check_refuses(forward, backward, text):
    refused(small(), forward, backward, text)


def region(returned=False):
    """The results of a and b are inside a checkpoint region."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    inside = {"rule": Rule.MUST_RECOMPUTE, "reason": "inside a checkpoint region at m.py:3"}
    (a,) = net.op("a", (x,), 100, **inside)
    (b,) = net.op("b", (a,), 100, **inside)
    (c,) = net.op("c", (b,), 10)
    (g,) = net.op("g", (tangent, b), 3, phase=Phase.BACKWARD)
    return net.problem((c,), (g, b) if returned else (g,))


def test_check_refuses_to_save_what_must_be_recomputed():
    problem = region()
    Schedule((0, 1, 2), (0, 1, 3)).check(problem)
    refused(problem, (0, 1, 2), (3,), "b is saved, but is inside a checkpoint region at m.py:3")
    refused(problem, (0, 1, 2), (1, 3), "a is saved, but is inside a checkpoint region at m.py:3")
    # What the backward returns is saved too where it does not make it.
    problem = region(returned=True)
    Schedule((0, 1, 2), (0, 1, 3)).check(problem)
    refused(problem, (0, 1, 2), (3,), "b is saved, but is inside a checkpoint region at m.py:3")


def test_check_refuses_a_returned_value_that_nobody_makes():
    net = Net()
    (a,) = net.op("a", (net.input(),), 100)
    (mask,) = net.op("mask", (a,), 5, phase=Phase.EITHER)
    (g,) = net.op("g", (net.input("tangent"),), 3, phase=Phase.BACKWARD)
    problem = net.problem((a,), (g, mask))
    Schedule((0,), (1, 2)).check(problem)
    Schedule((0, 1), (2,)).check(problem)
    with pytest.raises(InvalidSchedule, match="mask"):
        Schedule((0,), (2,)).check(problem)


@pytest.mark.parametrize("index", [-1, -6, 6, 99])
def test_check_refuses_an_op_that_does_not_exist(index):
    with pytest.raises(InvalidSchedule, match=str(index)):
        Schedule((A, SEED, B), (MASK, G, H, index)).check(small())


def test_saved_recomputed_and_seconds():
    problem = small()
    schedule = Schedule((A, SEED, B), (MASK, G, H))
    assert schedule.saved(problem) == (value(problem, "a"), value(problem, "seed"))
    assert schedule.recomputed(problem) == {}
    assert schedule.seconds(problem) == 0.0
    # mask reads the saved a, so a is saved even though it is recomputed later.
    schedule = Schedule((A, SEED, B), (MASK, G, A, H))
    assert schedule.saved(problem) == (value(problem, "a"), value(problem, "seed"))
    assert schedule.recomputed(problem) == {A: 1}
    assert schedule.seconds(problem) == 1.0
    schedule = Schedule((A, SEED, B, MASK), (A, MASK, G, MASK, A, H))
    assert schedule.saved(problem) == (value(problem, "seed"),)
    assert schedule.recomputed(problem) == {A: 2, MASK: 2}
    assert schedule.seconds(problem) == 2 * 1.0 + 2 * 8.0
    # The first run of mask adds nothing, wherever it stands.
    schedule = Schedule((A, SEED, B), (A, MASK, G, MASK, A, H))
    assert schedule.recomputed(problem) == {A: 2}
    assert schedule.seconds(problem) == 2 * 1.0 + 8.0


def test_inputs_of_the_graph_are_never_saved_and_returned_values_are():
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    (a,) = net.op("a", (x,), 100)
    (g,) = net.op("g", (tangent, x), 3, phase=Phase.BACKWARD)
    problem = net.problem((a,), (g, a, x))
    assert Schedule((0,), (1,)).saved(problem) == (a,)
    assert Schedule((0,), (1, 0)).saved(problem) == ()


def test_random_schedules_agree_with_a_simulation():
    for seed in range(CASES):
        problem = random_problem(seed)
        schedule = random_schedule(problem, seed)
        schedule.check(problem)
        made_by = {}  # value -> the phase that made its latest instance
        saved = set()
        for phase, order in (("forward", schedule.forward), ("backward", schedule.backward)):
            for i in order:
                read = problem.ops[i].inputs
                saved |= {v for v in read if phase == "backward" and made_by.get(v) == "forward"}
                made_by |= dict.fromkeys(problem.ops[i].outputs, phase)
        saved |= {v for v in problem.backward_outputs if made_by.get(v) == "forward"}
        assert schedule.saved(problem) == tuple(sorted(saved)), seed
        runs = schedule.forward + schedule.backward
        added = sum((runs.count(i) - 1) * problem.again_seconds[i] for i in set(runs))
        added += sum(problem.save_seconds[v] for v in saved)
        assert schedule.seconds(problem) == pytest.approx(added, abs=1e-12), seed


def test_check_refuses_a_random_schedule_with_an_op_lost():
    lost = 0
    for seed in range(CASES):
        problem = random_problem(seed)
        schedule = random_schedule(problem, seed)
        for k, i in enumerate(schedule.backward):
            if not problem.is_backward[i]:
                continue
            short = schedule.backward[:k] + schedule.backward[k + 1 :]
            lost += 1
            with pytest.raises(InvalidSchedule):
                Schedule(schedule.forward, short).check(problem)
    assert lost > CASES


def random_saved(problem, seed, *, with_regions=False):
    rng = random.Random(f"saved {seed}")
    share = rng.random()
    return {
        v
        for v in forward_values(problem)
        if rng.random() < share
        and (
            with_regions or problem.ops[problem.values[v].producer].rule is not Rule.MUST_RECOMPUTE
        )
    }


def check_lazy(problem, saved, seed):
    schedule = lazy_schedule(problem, saved)
    schedule.check(problem)
    kept = {
        v
        for v in schedule.saved(problem)
        if v not in saved and problem.ops[problem.values[v].producer].rule is not Rule.MUST_SAVE
    }
    assert not kept, f"seed {seed}: saved, though not asked for: {kept}"
    assert set(schedule.recomputed(problem).values()) <= {1}, f"seed {seed}: recomputed twice"
    own = tuple(i for i in schedule.backward if problem.is_backward[i])
    assert own == problem.backward_order, f"seed {seed}: the backward's own order changed"
    return schedule


def test_the_lazy_schedule_is_valid_for_any_saved_set_and_saves_no_more():
    recomputed = 0
    for seed in range(CASES):
        problem = random_problem(seed)
        recomputed += len(
            check_lazy(problem, random_saved(problem, seed), seed).recomputed(problem)
        )
    assert recomputed > CASES / 2


def test_the_lazy_schedule_does_not_save_what_must_be_recomputed():
    for seed in range(CASES):
        problem = random_problem(seed)
        saved = random_saved(problem, seed, with_regions=True)
        check_lazy(problem, saved, seed)


def test_the_lazy_schedule_recomputes_nothing_where_everything_is_saved():
    for seed in range(CASES):
        problem = random_problem(seed)
        if any(op.rule is Rule.MUST_RECOMPUTE for op in problem.ops):
            continue
        schedule = lazy_schedule(problem, forward_values(problem))
        assert not schedule.recomputed(problem)


def test_the_lazy_schedule_recomputes_right_before_the_first_reader():
    problem = small()
    a, seed, mask = (value(problem, n) for n in ("a", "seed", "mask"))
    assert lazy_schedule(problem, ()) == Schedule((A, SEED, B), (A, MASK, G, H))
    assert lazy_schedule(problem, {mask}) == Schedule((A, MASK, SEED, B), (G, A, H))
    assert lazy_schedule(problem, {a, seed}) == Schedule((A, SEED, B), (MASK, G, H))


def test_the_lazy_schedule_follows_the_order_that_it_is_given():
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    (a,) = net.op("a", (x,), 1)
    (b,) = net.op("b", (a,), 1)
    (g,) = net.op("g", (tangent, a), 1, phase=Phase.BACKWARD)
    (h,) = net.op("h", (tangent, b), 1, phase=Phase.BACKWARD)
    problem = net.problem((b,), (g, h))
    assert lazy_schedule(problem, ()).backward == (0, 2, 1, 3)
    assert lazy_schedule(problem, (), order=(3, 2)).backward == (0, 1, 3, 2)


def test_forward_order_runs_what_is_needed_each_op_behind_what_it_reads():
    for seed in range(CASES):
        problem = random_problem(seed)
        saved = random_saved(problem, seed)
        order = forward_order(problem, saved)
        need = problem.ancestors(
            {problem.values[v].producer for v in saved}
            | {i for i, op in enumerate(problem.ops) if op.phase is Phase.FORWARD}
        )
        assert sorted(order) == sorted(need), seed
        place = {i: k for k, i in enumerate(order)}
        for i in order:
            parents = [problem.values[v].producer for v in problem.ops[i].inputs]
            assert all(place[p] < place[i] for p in parents if p >= 0), (seed, i)
        required = [i for i in order if i in problem.forward_required]
        assert required == sorted(required), seed


def test_forward_order_puts_what_only_the_backward_needs_behind_its_last_input():
    net = Net()
    (a,) = net.op("a", (net.input(),), 1)
    (b,) = net.op("b", (a,), 1)
    (c,) = net.op("c", (b,), 1)
    (m,) = net.op("m", (a,), 1, phase=Phase.EITHER)
    (n,) = net.op("n", (m,), 1, phase=Phase.EITHER)
    (o,) = net.op("o", (b, m), 1, phase=Phase.EITHER)
    (late,) = net.op("late", (c,), 1)
    problem = net.problem((late,), (n, o))
    assert forward_order(problem, ()) == (0, 1, 2, 6)
    assert forward_order(problem, (m,)) == (0, 3, 1, 2, 6)
    assert forward_order(problem, (n, o)) == (0, 3, 4, 1, 5, 2, 6)


def in_stretches(problem, seed):
    """Return a lazy schedule that saves little and passes through random stretches."""
    rng = random.Random(f"stretches {seed}")
    order = problem.forward_order
    stretches = Stretches(problem, rng.sample(order, min(len(order), rng.randint(1, 4))))
    saved = {v for v in random_saved(problem, seed) if rng.random() < 0.2}
    return lazy_schedule(problem, saved, stretches=stretches)


def test_a_recomputation_forgets_what_it_passes_through():
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    (a,) = net.op("a", (x,), 1)
    (b,) = net.op("b", (a,), 1)
    (c,) = net.op("c", (b,), 1)
    (d,) = net.op("d", (c,), 1)
    (g,) = net.op("g", (tangent, d), 1, phase=Phase.BACKWARD)
    (h,) = net.op("h", (g, b), 1, phase=Phase.BACKWARD)
    (k,) = net.op("k", (h, a), 1, phase=Phase.BACKWARD)
    problem = net.problem((), (k,))
    assert lazy_schedule(problem, ()).backward == (0, 1, 2, 3, 4, 5, 6)
    # b crosses the end of the first stretch and stays; a does not.
    passing = lazy_schedule(problem, (), stretches=Stretches(problem, (1,)))
    assert passing.backward == (0, 1, 2, 3, 4, 5, 0, 6)
    # c crosses into the last stretch, b does not: it is made again, with a on the way.
    passing = lazy_schedule(problem, (), stretches=Stretches(problem, (2,)))
    assert passing.backward == (0, 1, 2, 3, 4, 0, 1, 5, 6)


def test_schedules_through_stretches_are_valid():
    twice = 0
    for seed in range(CASES):
        problem = random_problem(seed)
        schedule = in_stretches(problem, seed)
        schedule.check(problem)
        own = tuple(i for i in schedule.backward if problem.is_backward[i])
        assert own == problem.backward_order
        twice += max(schedule.recomputed(problem).values(), default=0) > 1
    assert twice > CASES / 50
