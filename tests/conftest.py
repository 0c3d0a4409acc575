"""Every test starts from the same state: own caches, no settings, nothing compiled before."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import hypothesis
import pytest

# No test fails on a time: a machine may be busy with something else.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")

# Helpers that assert: pytest explains a failure only in test modules and in what is named here.
pytest.register_assert_rewrite("steps", "benchmarks.outcomes")


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled code of this session apart: an entry of an older one would hide a defect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        # What whoever runs the tests has calibrated would change plans.
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # GNU ld takes 0.7 s to link a kernel against libtorch, as long as gcc takes to compile it.
        if linker := shutil.which("ld.gold") or shutil.which("ld.lld"):
            tools = tmp_path_factory.mktemp("tools")
            (tools / "ld").symlink_to(linker)
            patch.setenv("COMPILER_PATH", str(tools))
        yield


@pytest.fixture(scope="session")
def _threads() -> None:
    """Fix how reductions are split, and so their last bits, whatever the machine."""
    import torch

    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("RECUT_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _forget_compilations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drop what torch compiled and recut reported; tests that never import torch stay quick."""
    if "torch" in sys.modules:
        request.getfixturevalue("_threads")
    _reset()
    yield
    _reset()


def _reset() -> None:
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
    if recut := sys.modules.get("recut"):
        recut.clear_reports()
