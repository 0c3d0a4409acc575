"""One GPU for several processes: each has it to itself, but for the time in which it compiles.

Compiling takes most of a benchmark's time and one core; running takes the GPU.  Processes that hold
one lock whenever they do not compile overlap the former, and never disturb what is timed.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch._dynamo.callback import callback_handler

from benchmarks import measure


@contextmanager
def turns(
    path: Path | None, before_leaving: Callable[[], object] = measure.release
) -> Iterator[None]:
    """Hold a lock inside the block, and leave it to others whenever this process compiles.

    Backwards are compiled with their forwards, so that nothing of a step is alive meanwhile.

    Args:
        path: the file to lock, made where it is missing; None for a device of one's own.
        before_leaving: called before others may go on: gives back memory.
    """
    if path is None:
        yield
        return

    def leave(_: object) -> None:
        before_leaving()
        fcntl.flock(file, fcntl.LOCK_UN)

    def enter(_: object) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    path.parent.mkdir(parents=True, exist_ok=True)
    eagerly = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
    # What is registered there is forgotten with every reset.
    starts = mock.patch.object(callback_handler, "run_start_callbacks", leave)
    ends = mock.patch.object(callback_handler, "run_end_callbacks", enter)
    with path.open("w") as file, eagerly, starts, ends:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
