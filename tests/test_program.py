"""Programs: what they carry instead of recomputing is a valid schedule, and pays."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from problems import Net, layers, random_problem
from test_schedule import in_stretches

from recut.partitioners.evaluator import measure
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Kind, Phase
from recut.partitioners.program import Program
from recut.partitioners.rounding import fill
from recut.partitioners.schedule import lazy_schedule
from recut.partitioners.segments import Forward

CASES = 120


def bases(compiler):
    """Yield random problems, each with a base that recomputes some ops several times."""
    for seed in range(CASES):
        problem = random_problem(seed, compiler)
        yield seed, problem, Program(problem, in_stretches(problem, seed))


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_whatever_is_carried_the_schedule_is_valid(compiler):
    fewer = 0
    for seed, problem, program in bases(compiler):
        count = len(program.columns.instances)
        rng = random.Random(f"carried {seed}")
        for share in (0.0, 0.3, 0.7, 1.0):
            carried = np.array([rng.random() < share for _ in range(count)], dtype=np.bool_)
            schedule = program.carrying(carried)
            schedule.check(problem)
            again, base = len(schedule.backward), len(program.schedule.backward)
            assert again <= base, (seed, share)
            fewer += again < base
    assert fewer > CASES / 4


def test_carrying_nothing_gives_the_base_its_ops_at_the_latest():
    for seed, problem, program in bases("eager"):
        schedule = program.carrying(np.zeros(len(program.columns.instances), dtype=np.bool_))
        assert set(schedule.backward) == set(program.schedule.backward), seed
        assert measure(problem, schedule).peak <= program.peak, seed


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_what_fills_a_budget_fits_and_costs_no_more_than_the_base(compiler):
    cheaper = 0
    for seed, problem, program in bases(compiler):
        found = fill(program, program.peak, program.solve(program.peak))
        assert found is not None, seed
        found.schedule.check(problem)
        assert measure(problem, found.schedule).peak == found.peak <= program.peak, seed
        base = program.schedule.seconds(problem)
        assert found.seconds == found.schedule.seconds(problem) <= base + 1e-15, seed
        cheaper += found.seconds < base - 1e-12
    assert cheaper > CASES / 10


def dropouts(depth, store):
    """Layers with a mask that is drawn from large numbers; storing the mask has its own price."""
    net = Net()
    x, tangent = net.input(), net.input("tangent")
    masks = []
    for k in range(depth):
        (n,) = net.op(f"numbers{k}", (), 400, seconds=1.0)
        (m,) = net.op(f"mask{k}", (n,), 100, kind=Kind.POINTWISE, seconds=0.1)
        (x,) = net.op(f"layer{k}", (x, m), 100, kind=Kind.POINTWISE, seconds=9.0)
        masks.append((m, x))
    gradients = []
    for k in reversed(range(depth)):
        reads = (tangent, *masks[k])
        (tangent,) = net.op(f"back{k}", reads, 100, kind=Kind.POINTWISE, phase=Phase.BACKWARD)
        gradients.append(tangent)
    problem = net.problem((x,), gradients)
    values = list(problem.values)
    for m, _ in masks:
        values[m] = replace(values[m], store=store)
    return replace(problem, values=tuple(values))


@pytest.mark.parametrize(("store", "what"), [(0.0, "mask"), (50.0, "numbers")])
def test_a_small_value_that_is_dear_to_store_is_made_of_a_larger_one_that_is_saved(store, what):
    problem = dropouts(4, store)
    program = Program(problem, lazy_schedule(problem, ()))
    found = fill(program, program.peak * 3, program.solve(program.peak * 3))
    assert found is not None
    names = {problem.values[v].name.rstrip("0123456789") for v in found.schedule.saved(problem)}
    assert what in names
    assert len(names & {"mask", "numbers"}) == 1


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_the_floor_of_a_deep_net_grows_slower_than_its_depth(compiler):
    """Chen et al.: with two levels of recomputation like a root of the depth."""
    floors = {depth: Planner(layers(depth, compiler), CPU).floor for depth in (8, 32, 64)}
    assert floors[32] < 1.6 * floors[8]
    assert floors[64] < 2.2 * floors[8]
    problem = layers(64, compiler)
    forward = Forward(problem)
    total = int(forward.made_bytes.sum())
    cuts = (forward.crossings(forward.cut(total // k)) for k in range(1, 65))
    one_level = min(measure(problem, lazy_schedule(problem, cut)).peak for cut in cuts)
    assert floors[64] < 0.65 * one_level
