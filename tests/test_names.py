"""What ``import recut`` offers."""

from __future__ import annotations

import importlib

import pytest

import recut


def test_every_public_name_is_where_it_is_said_to_be():
    assert sorted(recut._HOMES) == sorted(recut.__all__)
    for name, home in recut._HOMES.items():
        found = getattr(recut, name)
        assert found is getattr(importlib.import_module(home), name)
        assert found.__module__ == home
    assert set(recut.__all__) < set(dir(recut))


def test_another_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'recut' has no attribute 'ckpt_backed'"):
        _ = recut.ckpt_backed
