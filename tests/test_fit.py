"""The search for the largest size that fits: right for any growing need, and seldom asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recut.errors import SettingError
from recut.fit import Sizes, largest


@given(
    st.integers(1, 50), st.integers(1, 400), st.integers(1, 7), st.integers(0, 10**6),
    st.integers(0, 1000), st.integers(0, 50), st.integers(0, 2 * 10**6),
)  # fmt: skip
def test_it_is_the_largest_that_fits(first, span, step, weights, slope, curve, budget):
    sizes = Sizes("batch", first, first + span, step)

    def needs(size):
        assert size in range(first, first + span + 1, step)
        return weights + slope * size + curve * size * size

    found = largest(sizes, budget, needs)
    every = [s for s in range(first, first + span + 1, step) if needs(s) <= budget]
    assert found.size == (max(every) if every else None)
    assert found.bounded == (len(every) < sizes.count)
    assert found.asked == {size: needs(size) for size in found.asked}


@pytest.mark.parametrize("curve", [0, 3])
def test_a_line_or_a_curve_is_found_in_few_steps(curve):
    def needs(size):
        return 10**6 + 1234 * size + curve * size * size

    found = largest(Sizes("batch", 1, 4096), 3 * 10**6, needs)
    assert needs(found.size) <= 3 * 10**6 < needs(found.size + 1)
    assert len(found.asked) <= (5 if curve == 0 else 9)


@given(
    st.integers(1, 50), st.integers(1, 400), st.integers(0, 1000), st.integers(0, 50),
    st.integers(-(10**5), 10**5), st.integers(0, 2 * 10**6),
)  # fmt: skip
def test_what_is_expected_may_be_wrong(first, span, slope, curve, off, budget):
    sizes = Sizes("batch", first, first + span)

    def needs(size):
        return 1000 + slope * size + curve * size * size

    found = largest(sizes, budget, needs, lambda size: off + (slope + 3) * size)
    every = [s for s in range(first, first + span + 1) if needs(s) <= budget]
    assert found.size == (max(every) if every else None)
    assert found.bounded == (len(every) < sizes.count)
    right = largest(sizes, budget, needs, lambda size: needs(size) + off)
    assert (right.size, right.bounded) == (found.size, found.bounded)
    exact = largest(sizes, budget, needs, needs)
    assert len(exact.asked) <= 2


def test_sizes_are_read():
    assert Sizes.read("batch=1..64") == Sizes("batch", 1, 64)
    assert Sizes.read("length=512..4096:512") == Sizes("length", 512, 4096, 512)
    assert Sizes("x", 3, 10, 4).count == 2


@pytest.mark.parametrize(
    "text", ["batch", "batch=1", "=1..2", "batch=2..1", "batch=0..4", "batch=1..x", "b=1..4:0"]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(SettingError, match="size="):
        Sizes.read(text)
