"""Programs drawn from a seed leave behind what eager does; ``tests/fuzz.py`` sweeps over more."""

from __future__ import annotations

from functools import partial

import pytest
from fuzz import ALONE, STEPS, compare, make
from nets import floor_expected
from steps import by_dynamo

import recut

BUDGETS = ("1.0", "0.5", "0.01")


@pytest.mark.parametrize("seed", range(12))
def test_a_program_is_eagers(monkeypatch, seed):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", BUDGETS[seed % len(BUDGETS)])
    with floor_expected():
        compare(seed)
    (report,) = recut.reports()
    assert report.peak <= max(report.budget, report.floor or 0)


@pytest.mark.parametrize("seed", range(12, 16))
def test_a_program_is_eagers_under_bytes(monkeypatch, seed):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    with floor_expected():
        compare(seed)
    (report,) = recut.reports()
    recut.clear_reports()
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", f"{(report.peak + report.fastest_peak) // 2}B")
    compare(seed)


@pytest.mark.parametrize("seed", [0, 2, 3, 10])
def test_a_program_of_symbolic_sizes_is_eagers(monkeypatch, seed):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    with floor_expected():
        compare(seed, compile_=partial(by_dynamo, dynamic=True))
    (report,) = recut.reports()
    assert report.sizes
    assert report.formula.at({}) == report.peak


def test_the_programs_recompute_and_use_every_step():
    used = {name for seed in range(300) for name, *_ in make(seed)[0].steps}
    assert used == STEPS.keys() >= ALONE
