"""The GPU benchmark on a CPU: the search for batches, interruptions, the report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu, gpu_memory, gpu_setup, gpu_table, measure
from benchmarks.contest import INFEASIBLE, Row
from benchmarks.gpu_memory import Probe, bracket, largest, next_probe
from benchmarks.gpu_setup import BLOCK, MATMULS, MIB, RECUT, SIZES, STOCK
from benchmarks.models.llama import Shape, llama, sharing, tokens
from benchmarks.resume import Clock, ForeignRecordError, Record

CPU = torch.device("cpu")
TINY = SIZES["tiny"]
# What a simulated batch takes: fixed bytes, and so many for each sequence.
FIXED = 5_000
SLOPES = {STOCK.label: 2_000, BLOCK.label: 500, RECUT.label: 400}


def simulate(method, probe, excess=0.0, card=100_000):
    """A device on which peaks are a line; recut's kernels hold ``excess`` of a budget too much."""
    resident = FIXED // 2
    need = resident + 4_000 + SLOPES[method.label] * probe.batch
    if method.kind == "recut":
        budget = (probe.cap or resident + 2) - resident - probe.margin
        if need - resident > budget:
            floor = need + probe.margin
            return replace(probe, resident=resident, need=floor, failure=INFEASIBLE)
        return replace(probe, peak=int(resident + budget * (1 + excess)), seconds=1.0)
    if need > card:
        return replace(probe, failure="OutOfMemoryError: CUDA out of memory")
    return replace(probe, peak=need, seconds=1.0)


def search(size, caps, **device):
    probes = []
    while asked := next_probe(size, caps, FIXED, probes):
        assert len(probes) < 40
        probes.append(simulate(*asked, **device))
    return probes


def best(size, caps, probes):
    found = {m.label: [largest(m, cap, probes) for cap in caps] for m in size.methods}
    return {label: [p.batch if p else 0 for p in row] for label, row in found.items()}


THREE = replace(TINY, methods=(STOCK, BLOCK, RECUT))


def expected(caps):
    return {
        label: [max(0, (cap - FIXED // 2 - 4_000) // slope) for cap in caps]
        for label, slope in SLOPES.items()
    }


@pytest.mark.parametrize("caps", [[40_000, 80_000], [6_000], [9_000]])
def test_the_search_finds_the_largest_batches_with_few_probes(caps):
    probes = search(THREE, caps)
    assert best(THREE, caps, probes) == expected(caps)
    assert len(probes) <= 9 * len(caps) + 2


def test_a_full_device_ends_a_search_from_above():
    probes = search(THREE, [80_000], card=30_000)
    assert best(THREE, [80_000], probes)[STOCK.label] == [(30_000 - FIXED // 2 - 4_000) // 2_000]


def test_a_peak_over_its_budget_is_tried_again_with_some_of_it_kept_back():
    probes = search(THREE, [40_000], excess=0.05)
    fits = largest(RECUT, 40_000, probes)
    assert fits.margin > 0
    assert fits.peak <= 40_000
    assert fits.batch >= 0.9 * expected([40_000])[RECUT.label][0]


def test_a_method_that_breaks_is_left_alone():
    broken = Probe(STOCK.label, 4, failure="RuntimeError: no kernel")
    assert bracket(STOCK, 10_000, [broken]).settled
    method, _ = next_probe(THREE, [10_000], FIXED, [broken])
    assert method == BLOCK


def test_the_table_asks_for_shares_of_what_was_measured():
    size = replace(TINY, percents=(90, 50), factors=(1.2,), ratios=(0.5,), fixed=(STOCK, BLOCK))
    first = [row.label for row in gpu_table.waiting(size, [])]
    assert first[:2] == [STOCK.label, BLOCK.label]
    done = [Row(STOCK.label, "stock", measured=1000), Row(BLOCK.label, "block", measured=300)]
    asked = {row.label: row.asked for row in gpu_table.contestants(size, done) if row.asked}
    shares = {"recut 90 % of stock": 900, "recut 50 % of stock": 500, "recut 1.2 x per block": 360}
    assert asked == shares
    size = replace(size, fixed=(*size.fixed, MATMULS))
    done += [Row(MATMULS.label, "selective", measured=700)]
    rows = gpu_table.waiting(size, done, ["selective"])
    assert [(row.label, row.asked) for row in rows] == [(f"recut, peak of {MATMULS.label}", 700)]


def test_pieces_of_a_table_are_the_table(tmp_path, uncompiled):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert run(whole, parts=["table"]) == 0
    assert run(pieces, "--kind", "stock", "--kind", "recut", parts=["table"]) == 0
    assert "to be continued" in (pieces / "gpu.md").read_text()
    assert run(pieces, "--kind", "block", "--kind", "selective", parts=["table"]) == 0
    assert len(list(pieces.glob("table-*.json"))) == 2
    assert labels(pieces) == labels(whole)
    assert "to be continued" not in (pieces / "gpu.md").read_text()


def labels(folder):
    """The first cells of the report's tables."""
    lines = (folder / "gpu.md").read_text().splitlines()
    return [line.split("|")[1] for line in lines if line.startswith("|")]


def test_a_clock_lets_begin_what_can_end_in_time():
    now = [0.0]
    clock = Clock(2.0, lambda: now[0])
    assert clock.allows(60.0)
    now[0] = 60.0
    assert not clock.allows(60.0)


def test_a_record_of_another_setting_is_refused(tmp_path):
    path = tmp_path / "table.json"
    Record(path, {"device": "a", "shape": (1, 2)}).add({"spent": 1.0})
    assert Record(path, {"device": "a", "shape": (1, 2)}).longest == 1.0
    with pytest.raises(ForeignRecordError, match="another device"):
        Record(path, {"device": "b", "shape": (1, 2)})


@pytest.mark.parametrize("checkpoint", [True, "matmuls", "half"])
def test_contestants_share_weights_and_give_the_same_gradients(checkpoint):
    shape = Shape(2, 32, 64, 2, 1, 16, 64)
    base = llama(shape, CPU, torch.float32)
    other, inputs = sharing(base, shape, checkpoint), tokens(shape, 2, CPU)
    assert sum(p.numel() for p in base.parameters()) == shape.parameters
    pairs = zip(base.parameters(), other.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    measure.step(base, inputs)
    reference = measure.grads(base)
    measure.step(other, inputs)
    assert measure.max_error(measure.grads(other), reference) < 1e-6


@pytest.fixture
def uncompiled(monkeypatch):
    """Few contestants that run op by op: everything else is as on a GPU."""
    monkeypatch.setattr(measure, "_compile", lambda model, **_: model)
    size = replace(
        TINY, fixed=(STOCK, BLOCK), percents=(), methods=(STOCK, BLOCK), caps=(MIB // 2,)
    )
    monkeypatch.setitem(gpu_setup.SIZES, "tiny", size)
    # Recut has nothing to say of what it has not compiled; a row tells that.
    monkeypatch.setattr("recut.reports", list)


def run(folder, *more, parts=tuple(gpu.PARTS)):
    asked = [text for part in parts for text in ("--part", part)]
    return gpu.main([*asked, "--device", "cpu", "--size", "tiny", "--output", str(folder), *more])


def lasting(folder, parts=tuple(gpu.PARTS)):
    """Everything in the records that a second run gives again: not times."""
    fleeting = {"spent", "seconds", "ratio"}
    return {
        name: [
            {key: value for key, value in row.items() if key not in fleeting}
            for row in json.loads((folder / f"{name}.json").read_text())["rows"]
        ]
        for name in parts
    }


@pytest.mark.slow
def test_a_run_killed_before_every_row_ends_with_the_same_record(tmp_path, uncompiled, monkeypatch):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert run(whole) == 0
    rows = sum(map(len, lasting(whole).values()))
    assert rows >= 7

    add, kept = Record.add, []

    def add_and_die(self, row):
        add(self, row)
        kept.append(row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "add", add_and_die)
        for _ in range(rows):
            with pytest.raises(KeyboardInterrupt):
                run(pieces)
    assert len(kept) == rows
    assert run(pieces) == 0
    assert lasting(pieces) == lasting(whole)
    text = (pieces / "gpu.md").read_text()
    assert "At one batch size" in text
    assert "At fixed memory" in text
    assert "to be continued" not in text


def test_a_run_without_time_says_so_and_keeps_what_it_has(
    tmp_path, uncompiled, monkeypatch, capsys
):
    assert run(tmp_path, "--minutes", "0.1") == gpu.CONTINUED
    assert "table: to be continued" in capsys.readouterr().out
    allowed = iter([True] * 3 + [False] * 9)
    monkeypatch.setattr(Clock, "allows", lambda *_: next(allowed))
    assert run(tmp_path) == gpu.CONTINUED
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 3
    assert "(to be continued)" in (tmp_path / "gpu.md").read_text()


def test_a_contestant_that_runs_out_of_memory_is_a_row(tmp_path, uncompiled, monkeypatch):
    compiled = gpu_setup.Bench.compiled

    def full(self, method, budget=1.0):
        if method == BLOCK:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return compiled(self, method, budget)

    monkeypatch.setattr(gpu_setup.Bench, "compiled", full)
    assert run(tmp_path) == 0
    found = lasting(tmp_path)
    (row,) = [row for row in found["table"] if row["label"] == BLOCK.label]
    assert "out of memory" in row["failure"]
    probes = [gpu_memory.probe_of(p) for p in found["memory"] if p["method"] == BLOCK.label]
    assert all(p.full for p in probes)
    assert probes[-1].batch == 1


@pytest.mark.long
def test_recut_under_inductor_on_a_cpu(tmp_path, monkeypatch):
    size = replace(TINY, fixed=(STOCK,), percents=())
    monkeypatch.setitem(gpu_setup.SIZES, "tiny", size)
    assert run(tmp_path, parts=["table"]) == 0
    rows = {row["label"]: row for row in lasting(tmp_path, ["table"])["table"]}
    assert set(rows) == {STOCK.label, "recut 1.0", "recut floor"}
    for row in rows.values():
        assert row["failure"] is None
        assert row["error"] < 0.05  # two roundings of bf16
    assert rows["recut floor"]["predicted"] == rows["recut floor"]["kernels"]


@pytest.mark.long  # a minute
def test_recut_under_a_cap_on_a_cpu():
    trainer = gpu_memory.Trainer(gpu_setup.Bench(TINY, CPU))
    floor = trainer.measure(RECUT, Probe(RECUT.label, 4))
    assert floor.full
    assert floor.need < trainer.fixed + MIB
    done = trainer.measure(RECUT, Probe(RECUT.label, 4, 2 * MIB))
    assert done.failure is None
    assert done.predicted <= done.budget == 2 * MIB - done.resident
    assert done.resident < done.peak < 2 * MIB
