"""Compile caches: a plan is served again only to whom it belongs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import recut.backend
from recut.backend import Partitioner
from recut.budget import Budget
from recut.choosing import Experience
from recut.partitioners.machine import MACHINES
from recut.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

# Compiles one net under each budget in turn, and says what came of it. Each line of the output is
# [reports, planned peak, hits of AOTAutograd's cache, misses of it, gradient].
STEP = """
import json, sys, warnings
import torch, recut
from torch._dynamo.utils import counters

warnings.filterwarnings("ignore", message=".*floor.*")
torch.set_num_threads(1)

def net(x, w):
    for _ in range(4):
        x = torch.sin(torch.tanh(x) @ w)
    return x.sum()

for budget in sys.argv[1:]:
    torch._dynamo.reset()
    counters.clear()
    recut.clear_reports()
    torch.manual_seed(0)
    x, w = torch.randn(512, 64), torch.randn(64, 64, requires_grad=True)
    options = {"memory_budget": float(budget)}
    torch.compile(net, backend=recut.ckpt_backend, options=options)(x, w).backward()
    caches = counters["aot_autograd"]
    print(json.dumps([
        len(recut.reports()), recut.reports()[-1].peak if recut.reports() else None,
        caches["autograd_cache_hit"], caches["autograd_cache_miss"], w.grad.double().norm().item(),
    ]))
"""


def process(cache: Path, *budgets: str) -> list[list[object]]:
    """Run ``STEP`` in a process of its own over a cache folder."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RECUT_")}
    environ |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    environ |= {"TORCHINDUCTOR_AUTOGRAD_CACHE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEP, *budgets],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_processes_share_plans_by_budget(tmp_path):
    (first,) = process(tmp_path, "1.0")
    reports, rich_peak, hits, misses, gradient = first
    assert (reports, hits, misses) == (1, 0, 1)

    same, other = process(tmp_path, "1.0", "0.01")
    assert same[:4] == [0, None, 1, 0]  # served from the cache, not planned again
    assert same[4] == pytest.approx(gradient, rel=1e-6)
    assert (other[0], other[2], other[3]) == (1, 0, 1)  # planned anew
    assert other[1] < rich_peak
    assert other[4] == pytest.approx(gradient, rel=1e-4)


def uuid(**options: object) -> object:
    return Partitioner(Settings.read(options, {})).uuid()


def test_the_key_follows_what_changes_a_plan(tmp_path):
    plans = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in plans:
        path.write_text(path.name)
    keys = [
        uuid(),
        uuid(memory_budget=0.5),
        uuid(memory_budget="2GiB"),
        uuid(memory_budget="auto"),
        uuid(solver_seconds=20),
        uuid(plan=plans[0]),
        uuid(plan=plans[1]),
    ]
    assert None not in keys
    assert len(set(map(repr, keys))) == len(keys)


def test_the_key_ignores_what_changes_no_plan(tmp_path):
    assert uuid(dump=tmp_path) == uuid()
    assert uuid(memory_budget="50%") == uuid(memory_budget=0.5)
    assert uuid(memory_budget="1MiB") == uuid(memory_budget=2**20)


def test_a_plan_file_is_keyed_by_what_it_holds(tmp_path):
    path, copy = tmp_path / "plan.json", tmp_path / "copy.json"
    path.write_text("one")
    copy.write_text("one")
    before = uuid(plan=path)
    assert uuid(plan=copy) == before
    path.write_text("two")
    assert uuid(plan=path) != before


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the package's sources that the digest reads in the place of the installed ones."""
    copy = tmp_path / "recut"
    shutil.copytree(ROOT / "recut", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(recut.backend, "__file__", str(copy / "backend.py"))
    return copy


def digest() -> str:
    return recut.backend._sources_digest.__wrapped__()


def test_the_key_covers_every_source_file(sources):
    files = sorted(sources.rglob("*.py"))
    folders = {path.parent.relative_to(sources).as_posix() for path in files}
    assert {".", "passes", "partitioners"} <= folders
    seen = {digest()}
    for path in files:
        path.write_bytes(path.read_bytes() + b"# changed\n")
        seen.add(digest())
    (sources / "passes" / "new.py").write_text("")
    seen.add(digest())
    assert len(seen) == len(files) + 2


def test_other_sources_have_another_key(monkeypatch):
    before = uuid()
    monkeypatch.setattr(recut.backend, "_sources_digest", lambda: "another version")
    assert uuid() != before


def test_equal_sources_have_equal_keys(sources):
    assert digest() == recut.backend._sources_digest()


def test_the_key_covers_the_machine():
    keys = {uuid(), *(uuid(machine=MACHINES[name]) for name in ("h100", "a100"))}
    assert len(keys) == 3


def test_what_is_free_is_another_budget_each_time():
    auto = Settings(Budget("auto"))
    one, two = Partitioner(auto), Partitioner(auto)
    assert one.uuid() == one.uuid() != two.uuid()


def test_what_was_learnt_is_not_in_the_key():
    partitioner = Partitioner(Settings())
    before = pickle.dumps(partitioner)
    partitioner.experience["digest"] = Experience(1, {0: 1})
    partitioner.seen["digest"] = 2
    assert pickle.dumps(partitioner) == before
    assert pickle.loads(before).uuid() == partitioner.uuid()
