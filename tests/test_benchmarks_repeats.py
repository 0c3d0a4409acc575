"""Races in several processes: what is compared with what, and that a record goes on."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from benchmarks import repeats
from benchmarks.contest import INFEASIBLE, Row
from benchmarks.models import MODELS


def raced(scale):
    rows = [
        Row("stock Inductor", "stock", measured=200 * 2**20, seconds=0.98),
        Row("checkpoint per block", "block", measured=50 * 2**20, seconds=1.2),
        Row("recut 50% of stock", "recut", asked=100 * 2**20, measured=2**20, seconds=1.05),
        Row("recut 0.9 x per block", "recut", asked=45 * 2**20, failure=INFEASIBLE),
        Row("stock Inductor again", "stock", measured=200 * 2**20, seconds=1.02),
    ]
    return [
        replace(row, seconds=row.seconds * scale, least=row.seconds * scale) if row.seconds else row
        for row in rows
    ]


def test_steps_are_compared_with_the_mean_of_both_instances_of_stock():
    found = repeats.ratios(raced(3.0))
    assert found["stock Inductor"] == pytest.approx(0.98)
    assert found["recut 50% of stock"] == pytest.approx(1.05)
    assert "recut 0.9 x per block" not in found


def test_the_fastest_round_of_all_processes_counts():
    slow, quick = raced(3.0), raced(1.0)
    slow[2] = replace(slow[2], least=1.0)  # one round of it ran undisturbed
    found = repeats.fastest([slow, quick])
    assert found["stock Inductor"] == 1.0
    assert found["recut 50% of stock"] == pytest.approx(1.0 / 0.98)
    assert found["checkpoint per block"] == pytest.approx(1.2 / 0.98)


def test_budgets_are_shares_of_measured_peaks():
    asked = {row.label: row.asked for row in repeats.budgets(2000, 400)}
    assert asked["recut 1.0"] is None
    assert asked["recut 50% of stock"] == 1000
    assert asked["recut 1.5 x per block"] == 600
    assert not any("per block" in row.label for row in repeats.budgets(2000, None))


def test_a_record_goes_on_and_its_table_says_medians_and_ranges(tmp_path, monkeypatch):
    turns = []

    def in_process(name, turn, rounds):
        turns.append((name, turn, rounds))
        rows = raced(1.0 + turn)
        rows[2] = replace(rows[2], seconds=rows[2].seconds + 0.01 * turn * (1.0 + turn))
        return [asdict(row) for row in rows]

    monkeypatch.setattr(repeats, "_in_process", in_process)
    given = ["--models", "gpt12", "--rounds", "3", "--output", str(tmp_path)]
    assert repeats.main([*given, "--processes", "1"]) == 0
    assert repeats.main([*given, "--processes", "3"]) == 0
    assert turns == [("gpt12", 0, 3), ("gpt12", 1, 3), ("gpt12", 2, 3)]
    text = (tmp_path / "repeats.md").read_text()
    assert f"## gpt12: {MODELS['gpt12'].note}" in text
    assert "3 processes" in text
    step = "1.060 (1.050 to 1.070) | 1.071 | 0.32"
    assert f"| recut 50% of stock | 100.0 | 1.0 | {step} |" in text
    assert f"| recut 0.9 x per block | 45.0 | {INFEASIBLE} |  |  |  |" in text
