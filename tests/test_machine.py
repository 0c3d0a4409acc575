"""Machine descriptions, and the time that kernels are expected to take by them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from problems import Net, random_problem, random_schedule
from reference import Reference

from recut.partitioners.machine import CPU, GPU, MACHINES, Machine, described
from recut.partitioners.problem import Kind, Phase
from recut.partitioners.schedule import lazy_schedule
from recut.partitioners.timing import step_seconds

# A byte takes a second, a launch a thousand.
SLOW = replace(CPU, bandwidth=1.0, launch=1000.0)


def slow(problem):
    """Return the problem with what kernels take for its values on the slow machine."""
    scale = CPU.bandwidth / SLOW.bandwidth
    values = (replace(v, store=scale * v.store, load=scale * v.load) for v in problem.values)
    return replace(problem, values=tuple(values))


POINTWISE = {"kind": Kind.POINTWISE}
BACKWARD = {"phase": Phase.BACKWARD}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_a_description_survives_json(machine):
    assert Machine.from_json(json.loads(json.dumps(machine.to_json()))) == machine
    assert machine.source


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 0}, "version 2"),
        ({"bandwidth": None}, "bandwidth has to be a positive number, not None"),
        ({"bandwidth": -1.0}, "bandwidth has to be"),
        ({"launch": float("nan")}, "launch has to be"),
        ({"fused": True}, "fused has to be"),
        ({"link": -5}, "link has to be"),
        ({"flops": {"float32": 1e12}}, 'no "default"'),
        ({"flops": {"default": 0}}, r"flops\['default'\] has to be"),
        ({"flops": 3}, "flops has to be a table"),
        ({"rates": {"atention": 0.5}}, "rates has unknown entries: atention"),
        ({"device": "tpu"}, "device has to be"),
        ({"name": 3}, "name has to be text"),
        ({"speed": 1}, "unknown: speed"),
    ],
)
def test_a_bad_description_is_refused_by_what_is_wrong(change, text):
    with pytest.raises(ValueError, match=text):
        Machine.from_json({**CPU.to_json(), **change})


@pytest.mark.parametrize("data", [None, [], "cpu", {}])
def test_something_else_is_no_description(data):
    with pytest.raises(ValueError, match="not a machine description"):
        Machine.from_json(data)


def test_a_missing_field_is_named():
    data = CPU.to_json()
    del data["bandwidth"]
    with pytest.raises(ValueError, match="bandwidth"):
        Machine.from_json(data)


@pytest.mark.parametrize(
    ("device", "product", "name"),
    [
        ("cpu", "AMD EPYC", "cpu"),
        ("cuda", "NVIDIA H100 80GB HBM3", "h100"),
        ("cuda", "NVIDIA H200", "h200"),
        ("cuda", "NVIDIA L40S", "l40s"),
        ("cuda", "NVIDIA L4", "l4"),
        ("cuda", "NVIDIA A100-SXM4-40GB", "a100"),
        ("cuda", "NVIDIA GeForce RTX 4090", "rtx 4090"),
        ("cuda", "AMD Instinct MI300X", "mi300x"),
        ("cuda", "something new", GPU.name),
        ("xpu", "", GPU.name),
    ],
)
def test_a_product_finds_its_description(device, product, name):
    assert described(device, product).name == name


def test_the_key_covers_every_price():
    keys = {CPU.key()}
    for name, value in (
        ("name", "x"), ("bandwidth", 1.0), ("launch", 1.0), ("fused", 0.5), ("link", 1.0),
        ("flops", {"default": 1.0}), ("rates", {"attention": 0.1}), ("device", "cuda"),
        ("functions", {"exp": 1.0}),
    ):  # fmt: skip
        keys.add(replace(CPU, **{name: value}).key())
    assert len(keys) == 10


def test_a_family_has_its_own_rate():
    assert CPU.peak_flops("float32") == CPU.flops["default"]
    half = replace(CPU, rates={"attention": 0.5})
    assert half.peak_flops("float32", "attention") == CPU.flops["default"] / 2
    assert half.peak_flops("float32", "convolution") == CPU.flops["default"]


def chain(compiler):
    """A matmul and two pointwise ops, returned by the forward and read by a matmul behind it."""
    net = Net()
    x = net.input()
    (a,) = net.op("mm", (x,), 100, seconds=7.0)
    (b,) = net.op("gelu", (a,), 100, **POINTWISE, seconds=3.0)
    (c,) = net.op("scale", (b,), 100, **POINTWISE, seconds=3.0)
    (g,) = net.op("mm_2", (c,), 100, **BACKWARD, seconds=7.0)
    return slow(net.problem((c,), (g,), compiler)), (a, b, c)


def test_ops_in_one_kernel_cost_one_launch_and_what_goes_in_and_out():
    problem, (a, _, c) = chain("inductor")
    # mm, one kernel that reads a and writes c, mm_2.
    saved = lazy_schedule(problem, (c,))
    assert step_seconds(problem, saved, SLOW) == 7 + (1000 + 200) + 7
    # The kernel once more in the backward, then the first matmul as well.
    assert step_seconds(problem, lazy_schedule(problem, (a,)), SLOW) == 7 + 2 * (1000 + 200) + 7
    assert step_seconds(problem, lazy_schedule(problem, ()), SLOW) == 14 + 2 * (1000 + 200) + 7


def test_run_op_by_op_every_op_costs_its_price():
    problem, (a, *_) = chain("eager")
    schedule = lazy_schedule(problem, (a,))
    order = schedule.forward + schedule.backward
    assert step_seconds(problem, schedule, SLOW) == sum(problem.ops[i].seconds for i in order)


def test_what_two_kernels_share_is_read_twice_and_what_one_reads_twice_once():
    net = Net()
    x = net.input()
    (a,) = net.op("mm", (x,), 100, seconds=0.0)
    (b,) = net.op("left", (a,), 100, **POINTWISE)
    (c,) = net.op("right", (a,), 100, **POINTWISE)
    (d,) = net.op("sum", (b, c), 100, **POINTWISE)
    (e,) = net.op("mm_2", (d,), 100, seconds=0.0)
    (f,) = net.op("late", (a, e), 100, **POINTWISE)
    problem = slow(net.problem((f,), (), "inductor"))
    schedule = lazy_schedule(problem, ())
    # One kernel reads a and writes d; one reads a and e and writes f.
    assert step_seconds(problem, schedule, SLOW) == (1000 + 100 + 100) + (1000 + 200 + 100)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_agrees_with_the_definition(compiler):
    for seed in range(1000):
        problem = slow(random_problem(seed, compiler))
        schedule = random_schedule(problem, seed)
        wanted = Reference(problem, schedule).seconds(SLOW)
        assert step_seconds(problem, schedule, SLOW) == pytest.approx(wanted), seed
