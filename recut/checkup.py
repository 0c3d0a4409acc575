"""``recut doctor`` without a script: is all here that recut needs, and does a small run hold?

Each check is a small function that returns what it has seen; none of them changes anything.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import recut
from recut.backend import ckpt_backend, watching
from recut.doctor import Finding, finding, graphs_uncached
from recut.errors import RecutError
from recut.files import cache_folder
from recut.machines import calibrated, this_host
from recut.passes import _torch
from recut.probe import Probe

State = Literal["ok", "warning", "failed"]

# The versions of torch whose private names recut knows.
_OLDEST, _NEWEST = (2, 11), (2, 15)
# How far the small run's time may be off before the prices are mentioned.
_TOLERANCE = 0.5


@dataclass(frozen=True)
class Check:
    """What one check has seen.

    Attributes:
        name: what was looked at.
        state: "ok", "warning" (recut works, but not at its best) or "failed".
        text: what was seen, and what to do about it.
    """

    name: str
    state: State
    text: str


def checks() -> Iterator[Check]:
    """Yield one check after the other, the quick ones first."""
    quick: tuple[Callable[[], Check], ...] = (_versions, _names, _compiler, _cache)
    for ask in quick:
        yield ask()
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        yield _calibration(device)
    yield from _run()


def _versions() -> Check:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    found["recut"] = recut.__version__
    for name in ("triton", "numpy", "scipy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if not _OLDEST <= release <= _NEWEST:
        known = " to ".join(f"{a}.{b}" for a, b in (_OLDEST, _NEWEST))
        return Check("versions", "warning", f"{text}; recut was written for torch {known}")
    return Check("versions", "ok", text)


def _names() -> Check:
    # They are imported with recut: that we got here says that all are there.
    return Check("torch's private names", "ok", f"all {len(_torch.__all__)} are there")


def _compiler() -> Check:
    """Compile a line of C++, as Inductor will do for a CPU."""
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        text = f"there is no {name}: install a C++ compiler, or name one by CXX"
        return Check("C++ compiler", "failed", text)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "line.cpp"
        source.write_text('extern "C" int line() { return 1; }\n', encoding="ascii")
        command = [path, "-shared", "-fPIC", str(source), "-o", str(source.with_suffix(".so"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), "it says nothing")
        return Check("C++ compiler", "failed", f"{path} does not compile: {said}")
    return Check("C++ compiler", "ok", path)


def _cache() -> Check:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} cannot be written ({error}): set XDG_CACHE_HOME to a folder that can"
        return Check("cache folder", "warning", text)
    return Check("cache folder", "ok", str(folder))


def _calibration(device: str) -> Check:
    name = f"calibration, {device}"
    host = this_host(device)
    machine = calibrated(host)
    if machine is None:
        text = f"none for {host.product} as it is now: `recut calibrate --device {device}`"
        return Check(name, "warning", f"{text} takes a minute and makes plans fit this machine")
    return Check(name, "ok", machine.source)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = 256
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = nn.functional.gelu(layer(x)) + x
        return x.square().mean()


def _run() -> Iterator[Check]:
    """Train a small net under a budget, and compare what was planned with what is measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe = Probe(steps=5, endless=True)
    options: Any = {"memory_budget": "70%"}
    try:
        with torch.random.fork_rng(devices=[]), graphs_uncached(), watching(probe):
            model, x = _Small().to(device), torch.randn(1024, 256, device=device)
            compiled = torch.compile(model, backend=ckpt_backend, options=options, fullgraph=True)
            for _ in range(8):
                model.zero_grad(set_to_none=True)
                compiled(x).backward()
    except RecutError as error:
        yield Check("small run", "failed", str(error))
        return
    except Exception as error:  # whatever torch, its compiler or a driver has to say
        said = next(iter(str(error).strip().splitlines()), "")
        yield Check("small run", "failed", f"{type(error).__name__}: {said}")
        return
    figures = probe.figures()
    if not figures:
        text = "Inductor did not call recut's partitioner: is another version of torch installed?"
        yield Check("partitioner", "failed", text)
        return
    yield Check("partitioner", "ok", "Inductor calls it, and its plan compiles")
    found = finding(figures[0])
    yield _peak(found)
    yield _time(found)


def _peak(found: Finding) -> Check:
    if found.measured_peak is None:
        return Check("peak", "warning", "it could not be measured: a profiler runs")
    text = (
        f"measured {found.measured_peak / 2**20:.1f} MiB of {found.budget / 2**20:.1f} MiB, "
        f"planned {found.planned_peak / 2**20:.1f} MiB"
    )
    return Check("peak", "ok" if found.held else "failed", text)


def _time(found: Finding) -> Check:
    if found.measured_seconds is None or found.seconds_ratio is None:
        return Check("step time", "warning", "it could not be measured")
    text = (
        f"measured {found.measured_seconds * 1e3:.2f} ms, predicted "
        f"{found.planned_seconds * 1e3:.2f} ms by {found.machine}"
    )
    if 1 - _TOLERANCE <= found.seconds_ratio <= 1 + _TOLERANCE:
        return Check("step time", "ok", text)
    return Check("step time", "warning", f"{text}: `recut calibrate`, with nothing else running")


__all__ = ["Check", "checks"]
