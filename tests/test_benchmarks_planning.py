"""What the comparison of planning times makes of its figures."""

from __future__ import annotations

import pytest

from benchmarks.planning import BUDGETS, DEEP, _growth, growth


def test_growth_is_the_power_of_the_number_of_ops():
    assert growth([10, 100, 1000], [1.0, 10.0, 100.0]) == pytest.approx(1.0)
    assert growth([10, 20], [3.0, 12.0]) == pytest.approx(2.0)


def test_growth_is_told_of_the_deep_models():
    names = list(DEEP)[:2]
    rows = {
        name: (1000 * k, float(k), dict.fromkeys(BUDGETS, float(k * k)))
        for k, name in enumerate(names, 1)
    }
    (_, text) = _growth({**rows, "gpt12": (1, 99.0, dict.fromkeys(BUDGETS, 99.0))})
    assert "From 1000 to 2000 ops" in text
    assert "torch's 1.00, recut's 2.00 at 1.0" in text
    assert _growth(dict(list(rows.items())[:1])) == []
