"""``recut doctor`` without a script: what it looks at, and what makes it fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recut import checkup, cli, machines
from recut.checkup import Check
from recut.machines import this_host
from recut.partitioners.machine import CPU


@pytest.fixture
def no_run(monkeypatch):
    """Leave out the small run, which compiles."""
    monkeypatch.setattr(checkup, "_run", lambda: iter([Check("small run", "ok", "left out")]))


def doctor(capsys):
    status = cli.main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)["checks"]
    return status, {check["name"]: check for check in found}


def test_all_is_well_but_for_the_calibration(no_run, capsys):
    status, found = doctor(capsys)
    assert status == 0
    states = {name: check["state"] for name, check in found.items()}
    assert states.pop("calibration, cpu") == "warning"
    assert set(states.values()) == {"ok"}
    assert f"torch {torch.__version__}" in found["versions"]["text"]
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(found)
    assert "WARNING  calibration" in out


def test_a_calibration_of_this_machine_is_found(no_run, capsys):
    machines.store(CPU, this_host("cpu"), "2026-01-01")
    try:
        assert doctor(capsys)[1]["calibration, cpu"]["state"] == "ok"
    finally:
        for path in machines.folder().glob("*.json"):
            path.unlink()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_is_missing_or_broken_fails(compiler, no_run, capsys, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    status, found = doctor(capsys)
    assert status == 1
    assert found["C++ compiler"]["state"] == "failed"
    assert compiler in found["C++ compiler"]["text"]


def test_what_cannot_be_kept_and_an_unknown_torch_are_warnings(
    no_run, capsys, monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    status, found = doctor(capsys)
    assert status == 0
    assert found["cache folder"]["state"] == found["versions"]["state"] == "warning"
    assert "2.11 to 2.15" in found["versions"]["text"]


@pytest.mark.slow
def test_the_small_run_holds(capsys):
    generator = torch.get_rng_state()
    found = {check.name: check for check in checkup._run()}
    assert list(found) == ["partitioner", "peak", "step time"]
    assert found["partitioner"].state == found["peak"].state == "ok"
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_run_that_fails_is_told(monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("no space left\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    (check,) = checkup._run()
    assert (check.state, check.text) == ("failed", "RuntimeError: no space left")


def test_a_partitioner_that_is_never_called_is_told(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    (check,) = checkup._run()
    assert (check.name, check.state) == ("partitioner", "failed")


def test_nothing_is_left_behind(no_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doctor(capsys)
    assert not list(Path.cwd().iterdir())
