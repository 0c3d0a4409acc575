"""The machine's own description: measured, kept, found again, and left alone where it is stale."""

from __future__ import annotations

import dataclasses
import json
import logging
import os

import pytest

from recut import cli, machines
from recut.calibrate import Calibration
from recut.errors import SettingError
from recut.partitioners.machine import CPU, FAMILIES, FUNCTIONS, MACHINES, Machine
from recut.settings import Settings

# The number of threads that tests run with (conftest.py), on a machine of any size.
HOST = dataclasses.replace(machines.this_host("cpu"), threads=min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machines._notice.cache_clear()


def keep(host=HOST, machine=CPU):
    return machines.store(dataclasses.replace(machine, name="measured"), host, "2026-01-01")


@pytest.mark.slow
def test_calibration_measures_every_figure(monkeypatch):
    monkeypatch.setattr("recut.calibrate._SECONDS", 0.01)
    calibration = Calibration(HOST, scale=0.1)
    labels = []
    for label, run in calibration.steps():
        labels.append(label)
        run()
    machine = calibration.machine()
    assert Machine.from_json(machine.to_json()) == machine
    assert set(machine.rates) == set(FAMILIES)
    assert {"default", "float32", "bfloat16"} <= set(machine.flops)
    assert set(machine.functions) <= set(FUNCTIONS)
    assert machine.device == "cpu"
    assert HOST.torch in machine.source
    assert len(labels) == len(set(labels)) == 9 + len(FUNCTIONS)


def test_what_was_kept_is_in_force():
    assert machines.in_force(Settings())["cpu"] == CPU
    path = keep()
    assert path.parent == machines.folder()
    assert machines.in_force(Settings())["cpu"].name == "measured"


def test_the_settings_come_first():
    keep()
    given = Settings(machine=MACHINES["h100"])
    assert machines.in_force(given)["cpu"] is MACHINES["h100"]


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("torch", "1.0", "torch 1.0"),
        ("threads", HOST.threads + 1, "another number of threads"),
    ],
)
def test_a_calibration_of_another_state_is_noticed_once_and_not_used(field, value, text, caplog):
    other = dataclasses.replace(HOST, **{field: value})
    path = keep(other)
    if field == "torch":  # what was measured before an update lies under the same name
        assert path == machines._path(HOST)
    with caplog.at_level(logging.WARNING, "recut"):
        for _ in range(2):
            assert machines.in_force(Settings())["cpu"] == CPU
    (record,) = caplog.records
    assert text in record.getMessage()
    assert "recut calibrate" in record.getMessage()


@pytest.mark.parametrize("text", ["", "{}", '{"machine": {}, "host": {}}', "[]", "\x00"])
def test_an_unreadable_calibration_is_noticed_and_not_used(text, caplog):
    keep().write_text(text)
    with caplog.at_level(logging.WARNING, "recut"):
        assert machines.in_force(Settings())["cpu"] == CPU
    assert "cannot be read" in caplog.text


def test_a_calibration_of_another_product_is_not_found():
    keep(dataclasses.replace(HOST, product="another"))
    assert machines.in_force(Settings())["cpu"] == CPU


def test_the_setting_takes_a_name_a_file_or_a_description(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(CPU.to_json()))
    assert Settings.read({"machine": "H100"}, {}).machine is MACHINES["h100"]
    assert Settings.read({}, {"RECUT_MACHINE": str(path)}).machine == CPU
    assert Settings.read({"machine": CPU}, {}).machine is CPU
    assert Settings.read({"machine": None}, {"RECUT_MACHINE": "h100"}).machine is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("h1000", "no known machine, and no file.*h100"),
        (3, "not a path"),
        ("bad.json", "no readable description.*bandwidth"),
    ],
)
def test_a_bad_setting_is_refused(value, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text(json.dumps({**CPU.to_json(), "bandwidth": 0}))
    with pytest.raises(SettingError, match=text):
        Settings.read({"machine": value}, {})


class Quick(Calibration):
    """A calibration that takes no time."""

    def steps(self):
        yield "nothing", lambda: None

    def machine(self):
        return dataclasses.replace(CPU, name="quick")


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr("recut.calibrate.Calibration", Quick)


@pytest.mark.usefixtures("_quick")
def test_the_command_keeps_and_shows_what_it_measured(capsys):
    assert cli.main(["calibrate", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "GFLOP/s" in out
    assert str(machines._path(HOST)) in out
    assert machines.in_force(Settings())["cpu"].name == "quick"


@pytest.mark.usefixtures("_quick")
def test_the_command_writes_a_file_for_the_setting(tmp_path, capsys):
    path = tmp_path / "mine.json"
    assert cli.main(["calibrate", "--device", "cpu", "--output", str(path), "--json"]) == 0
    assert Machine.from_json(json.loads(capsys.readouterr().out)).name == "quick"
    assert Settings.read({"machine": path}, {}).machine.name == "quick"
    assert machines.calibrated(HOST) is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "cuda"], "no GPU"),
        (["--device", "cpu", "--output", "missing/x.json"], "make the folder"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, text, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["calibrate", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_no_command_is_an_error():
    with pytest.raises(SystemExit) as error:
        cli.main([])
    assert error.value.code == 2
