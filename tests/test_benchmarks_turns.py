"""Processes that share a device: alone but while they compile."""

from __future__ import annotations

import fcntl

import pytest
import torch

from benchmarks.turns import turns


def test_the_device_is_left_while_compiling_only(tmp_path):
    path = tmp_path / "lock"
    left = []

    def is_free() -> bool:
        with path.open("w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    seen = []

    def backend(gm, _):
        seen.append(is_free())
        return gm.forward

    with turns(path, lambda: left.append(not is_free())):
        torch._dynamo.reset()  # forgets callbacks
        assert not is_free()
        call = torch.compile(lambda x: x + 1, backend=backend)
        assert call(torch.ones(2)).sum() == 4
        assert not is_free()
        torch._dynamo.reset()
        with pytest.raises(Exception, match="broken"):
            torch.compile(lambda x: x + 1, backend=_broken)(torch.ones(2))
        assert not is_free()
    assert is_free()
    assert seen == [True]
    assert left == [True, True]  # memory is given back before


def _broken(*_: object) -> None:
    raise RuntimeError("broken")
