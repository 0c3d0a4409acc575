"""What the comparison of planning times makes of its figures."""

from __future__ import annotations

import pytest

from benchmarks.planning import BUDGETS, DEEP, growth, markdown

MADE = dict.fromkeys(("date", "torch", "device", "command"), "some")


def test_growth_is_the_power_of_the_number_of_ops():
    assert growth([10, 100, 1000], [1.0, 10.0, 100.0]) == pytest.approx(1.0)
    assert growth([10, 20], [3.0, 12.0]) == pytest.approx(2.0)


def row(model, ops, torch, recut):
    return {
        "model": model,
        "ops": ops,
        "rounds": 3,
        "torch": torch,
        "recut": [recut] * len(BUDGETS),
    }


def test_growth_is_told_of_the_deep_models():
    one, two = list(DEEP)[:2]
    rows = [row("gpt12", 1, 99.0, 99.0), row(one, 1000, 1.0, 1.0), row(two, 2000, 2.0, 4.0)]
    text = markdown(rows, MADE)
    assert "From 1000 to 2000 ops" in text
    assert "torch's 1.00, recut's 2.00 at 1.0" in text
    assert "grow" not in markdown(rows[:2], MADE)


def test_the_table_has_each_model_and_how_much_longer_recut_takes():
    text = markdown([row("gpt12", 1234, 0.5, 0.25)], MADE)
    assert "| gpt12 | 1234 | 3 | 0.500 | 0.250 (0.50) |" in text
