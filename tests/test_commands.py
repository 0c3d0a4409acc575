"""The commands that plan and read plans: what they print, their statuses, and their refusals."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from itertools import count

import pytest
import torch

from recut import cli
from recut.commands import diff, fit, plan
from recut.partitioners.plan import VERSION
from recut.planned import load

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.act = act

    def forward(self, x, scale=2.0):
        for layer in self.layers:
            x = self.act(layer(x)) * scale
        return x.square().mean()

def make(batch=4096, width=64, act="gelu"):
    return Net(width, getattr(nn.functional, act)), (torch.empty(batch, width),)

def by_name():
    model, (x,) = make()
    return model, {"x": x, "scale": 0.5}

def cast():
    model, (x,) = make()
    model.layers[1].weight = model.layers[0].weight
    model.bfloat16()
    assert model.layers[1].weight is model.layers[0].weight
    return model, (x.bfloat16(),)

def bare():
    model, (x,) = make()
    return model, x

def number():
    return make()[0], 3

def leaves():
    raise SystemExit("good bye")

def alone():
    return make()[0]

def fails():
    raise ValueError("out of luck")

def looks():
    return make()[0], (torch.ones(int(torch.ones(8).sum()) * 8, 64),)

def too_wide():
    return make()[0], (torch.empty(4, 65),)

def on_a_gpu():
    return make()[0].cuda(), ()

def frozen():
    model, inputs = make()
    return model.requires_grad_(False), inputs

NUMBER = 3
MODEL = Net(4, torch.relu)
"""
BROKEN = "import torch\nraise RuntimeError('at the start')\n"
_names = count()


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """The name of a module of factories in the working folder."""
    monkeypatch.chdir(tmp_path)
    name = f"factories_{next(_names)}"
    (tmp_path / f"{name}.py").write_text(FACTORY, encoding="utf-8")
    (tmp_path / f"broken_{name}.py").write_text(BROKEN, encoding="utf-8")
    path = list(sys.path)
    yield name
    assert sys.path == path
    for loaded in (name, f"broken_{name}"):
        sys.modules.pop(loaded, None)


def run(capsys, *arguments):
    """Run a command; returns its status and what it printed."""
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


def plan_json(capsys, *arguments):
    status, out, _ = run(capsys, "plan", "--json", *arguments)
    assert status == 0
    return json.loads(out)


def test_plan_dump_explain(factory, capsys, tmp_path):
    folder = tmp_path / "plans" / "one"
    arguments = (f"{factory}:make", "--budget", "70%", "--machine", "h200")
    status, out, err = run(capsys, "plan", *arguments, "--dump", folder)
    assert (status, err) == (0, "")
    for text in ("Net: ", "priced for h200", "70%", "the peak is in the", "recomputed", "explain"):
        assert text in out
    found = plan_json(capsys, *arguments)
    planned = load(folder)
    assert found["peak"] == planned.peak <= found["budget"] < found["fastest_peak"]
    assert found["step_seconds"] == planned.time
    assert sum(found["live"].values()) == found["peak"]
    assert found["held"][0]["bytes"] >= found["held"][-1]["bytes"] > 0
    assert found["recomputed"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "frontier.json", "graph.json", "graph.svg", "memory.json", "plan.json", "problem.json",
        "report.html",
    ]  # fmt: skip
    assert not [path for path in folder.parent.iterdir() if path != folder]
    status, out, _ = run(capsys, "explain", folder.parent)
    assert status == 0
    assert out == str(planned.explain()) + "\n"
    assert "saved for the backward" in out
    told = json.loads(run(capsys, "explain", "--json", folder)[1])
    assert told == json.loads(json.dumps(planned.explain().to_json()))


def test_a_folder_is_written_anew(factory, capsys, tmp_path):
    folder = dumped(capsys, factory, tmp_path / "one", "--budget", "90%")
    before, names = load(folder), {path.name for path in folder.iterdir()}
    dumped(capsys, factory, folder, "--budget", "60%")
    assert load(folder).peak < before.peak
    assert {path.name for path in folder.iterdir()} == names


def test_inputs_by_name_keywords_and_files(factory, capsys):
    by_name = plan_json(capsys, f"{factory}:by_name")
    plain = plan_json(capsys, f"{factory}.py:make")
    half = plan_json(capsys, f"{factory}.py:make", "--set", "batch=2048", "--set", "act=gelu")
    assert by_name["ops"] == plain["ops"]
    assert half["ops"] == plain["ops"]
    assert half["peak"] < plain["peak"]


def test_a_factory_may_cast_its_model(factory, capsys):
    plain, cast = (plan_json(capsys, f"{factory}:{name}") for name in ("make", "cast"))
    assert plain["peak"] / 3 < cast["peak"] < plain["peak"] * 2 / 3


def test_a_model_of_real_tensors(factory, capsys):
    status, _, err = run(capsys, "plan", f"{factory}:looks")
    assert status == 2
    assert "--real" in err
    assert plan_json(capsys, f"{factory}:looks", "--real")["peak"] > 0


def test_an_infeasible_budget_is_a_finding(factory, capsys, tmp_path):
    folder = tmp_path / "none"
    status, out, err = run(capsys, "plan", f"{factory}:make", "--budget", "1KiB", "--dump", folder)
    assert (status, out) == (1, "")
    assert "cannot be met" in err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nowhere.at_all:make", ["no module nowhere"]),
        ("nowhere.py:make", ["no file nowhere.py"]),
        ("broken_{}:make", ["importing it failed (RuntimeError: at the start", "broken_"]),
        ("{}", ["names no function", "pkg.module:function"]),
        ("{}:maek", ["has no maek", "did you mean {}:make?"]),
        ("{}:NUMBER", ["NUMBER is no function, but int"]),
        ("{}:MODEL", ["MODEL is no function, but Net"]),
        ("{}:fails", ["it failed (ValueError: out of luck at {}.py:", "by itself?"]),
        ("{}:leaves", ["it failed (SystemExit: good bye"]),
        ("{}:alone", ["it returned a Net"]),
        ("{}:bare", ["a bare tensor", "(model, (tensor,))"]),
        ("{}:number", ["its inputs are an int"]),
        ("{}:too_wide", ["tracing it failed at {}.py:", "RuntimeError('a and b"]),
        ("{}:frozen", ["no training graph"]),
        pytest.param(
            "{}:on_a_gpu",
            ["without a device"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it has a GPU here"),
        ),
    ],
)
def test_what_is_no_model_is_refused(name, parts, factory, capsys):
    status, out, err = run(capsys, "plan", name.format(factory))
    assert (status, out) == (2, "")
    for part in parts:
        assert part.format(factory) in err
    assert err.startswith("recut: ")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--budget", "12G"], "12GiB"),
        (["--budget", "auto", "--machine", "h200"], "does not report its free memory"),
        (["--machine", "h300"], "no known machine"),
        (["--set", "size=3"], "it failed (TypeError"),
    ],
)
def test_wrong_options_are_refused(options, part, factory, capsys):
    status, _, err = run(capsys, "plan", f"{factory}:make", *options)
    assert status == 2
    assert part in err


def test_a_folder_that_holds_something_else_is_left_alone(factory, capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for folder, text in (("full", "thesis.tex"), (f"{factory}.py", "no folder")):
        status, _, err = run(capsys, "plan", f"{factory}:make", "--dump", tmp_path / folder)
        assert status == 2
        assert text in err


def test_sweep(factory, capsys):
    arguments = ("sweep", f"{factory}:make", "--machine", "a100", "--points", "4")
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "Net on a100" in out
    points = json.loads(run(capsys, *arguments, "--json")[1])["points"]
    rows = list(csv.DictReader(io.StringIO(run(capsys, *arguments, "--csv")[1])))
    assert [int(row["peak"]) for row in rows] == [p["peak"] for p in points]
    assert [p["peak"] for p in points] == sorted(p["peak"] for p in points)
    status, _, err = run(capsys, "sweep", f"{factory}:make", "--points", "1")
    assert status == 2
    assert "at least 2 points" in err


def test_a_folder_that_cannot_be_made_is_refused_before_planning(
    factory, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "traced", lambda *_: pytest.fail("it is planned"))
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "plan", f"{factory}:make", "--dump", tmp_path / "file" / "new")
    assert status == 2
    assert f"{tmp_path / 'file'} is no folder" in err
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    status, _, err = run(capsys, "plan", f"{factory}:make", "--dump", tmp_path / "some" / "new")
    assert status == 2
    assert f"{tmp_path} may not be written to" in err


def test_an_interrupt_ends_a_sweep_quietly(factory, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("recut.partitioners.planner.Planner.sweep", interrupted)
    status, out, err = run(capsys, "sweep", f"{factory}:make")
    assert (status, out) == (130, "")
    assert err.endswith("recut: stopped\n")


def test_fit_traces_once_for_all_sizes(factory, capsys):
    arguments = ("fit", f"{factory}:make", "--machine", "h200", "--size", "batch=64..65536:64")
    status, out, err = run(capsys, *arguments, "--budget", "2MiB", "--json")
    found = json.loads(out)
    size, needs = found["size"], found["needs"]
    assert status == 0
    assert sorted(map(int, needs)) == [size, size + 64]
    assert needs[str(size)] <= 2**21 < needs[str(size + 64)]
    assert f"batch={size} fits" in err
    assert f"batch={size + 64} is too large" in err
    assert "by the graph of symbolic sizes" in err
    # The size that is too large by symbols is too large by its own graph.
    status, _, err = run(
        capsys, "plan", f"{factory}:make", "--machine", "h200", "--budget", "2MiB",
        "--set", f"batch={size + 64}",
    )  # fmt: skip
    assert status == 1
    told = re.search(r"lowest feasible budget of this graph is .* MiB \((\d+) bytes\)", err)
    assert told is not None
    # A plan fills a budget but for a 512th at first.
    assert needs[str(size + 64)] <= int(told[1]) <= needs[str(size + 64)] * 512 / 511 + 1


def test_fit_of_one_by_one_where_weights_grow_with_the_size(factory, capsys):
    arguments = ("fit", f"{factory}:make", "--machine", "h200", "--size", "width=16..128:16")
    status, out, err = run(capsys, *arguments, "--budget", "4MiB", "--json")
    found = json.loads(out)
    assert status == 0
    assert "each width is traced by itself: its parameters or buffers differ" in err
    assert found["needs"][str(found["size"])] <= 2**22 < found["needs"][str(found["size"] + 16)]


def test_fit(factory, capsys, monkeypatch):
    monkeypatch.setattr(fit, "symbolic", lambda *_, **__: "it is not asked")
    arguments = ("fit", f"{factory}:make", "--machine", "h200", "--size", "batch=64..65536:64")
    status, out, err = run(capsys, *arguments, "--budget", "2MiB", "--json")
    found = json.loads(out)
    assert status == 0
    size, needs = found["size"], found["needs"]
    assert found["plan"]["peak"] <= 2**21
    assert needs[str(size)] <= 2**21 < needs[str(size + 64)]
    assert len(needs) <= 6
    assert f"batch={size} fits" in err
    status, out, err = run(capsys, *arguments, "--budget", "1KiB")
    assert (status, out) == (1, "")
    assert "not even batch=64 fits" in err
    for wrong in (["--budget", "60%"], ["--budget", "1GiB", "--set", "batch=3"]):
        assert run(capsys, *arguments, *wrong)[0] == 2


def dumped(capsys, factory, folder, *options):
    status, _, _ = run(capsys, "plan", f"{factory}:make", *options, "--dump", folder)
    assert status == 0
    return folder


def test_diff_of_plans_and_of_graphs(factory, capsys, tmp_path):
    rich = dumped(capsys, factory, tmp_path / "rich", "--budget", "90%")
    lean = dumped(capsys, factory, tmp_path / "lean", "--budget", "60%")
    assert run(capsys, "diff", rich, rich)[:2] == (0, "the plans are the same\n")
    status, out, _ = run(capsys, "diff", rich, lean)
    assert status == 1
    assert "-> recomputed" in out
    assert "MiB saved" in out
    found = json.loads(run(capsys, "diff", rich / "plan.json", lean, "--json")[1])
    assert found["peak"] == [load(rich).peak, load(lean).peak]
    other = dumped(capsys, factory, tmp_path / "other", "--set", "act=silu", "--set", "batch=2048")
    status, out, _ = run(capsys, "diff", rich, other)
    assert status == 1
    assert "different graphs" in out
    assert "removed: 4 x aten.erf.default" in out
    (rich / "problem.json").unlink()
    assert run(capsys, "diff", rich, lean)[0] == 1  # the other one's will do
    status, _, err = run(capsys, "diff", rich, other)
    assert status == 2
    assert "problem.json" in err


@pytest.mark.parametrize("command", ["explain", "diff"])
def test_a_missing_or_wrong_folder_is_refused(command, factory, capsys, tmp_path):
    folder = dumped(capsys, factory, tmp_path / "one", "--budget", "60%")
    rest = [folder] if command == "diff" else []
    for wrong, part in (("nowhere", "no such folder"), (".", "it holds")):
        given = tmp_path / wrong
        if wrong == ".":
            dumped(capsys, factory, tmp_path / "two", "--budget", "60%")
        status, out, err = run(capsys, command, given, *rest)
        assert (status, out) == (2, "")
        assert part in err
    text = (folder / "plan.json").read_text(encoding="utf-8")
    for broken in (
        "{}",
        text.replace(f'"version":{VERSION}', '"version":0'),
        text[:-9],
        "[" * 10**5,
    ):
        (folder / "plan.json").write_text(broken, encoding="utf-8")
        status, _, err = run(capsys, command, folder, *rest)
        assert status == 2
        assert "plan" in err


def test_an_interrupt_ends_with_one_line(factory, capsys, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "planned", interrupt)
    folder = tmp_path / "none"
    status, out, err = run(capsys, "plan", f"{factory}:make", "--dump", folder)
    assert (status, out, err) == (130, "", "recut: stopped\n")
    assert not folder.exists()


def test_an_interrupt_while_torch_is_imported_ends_with_one_line(capsys, monkeypatch):
    def interrupt(name):
        assert name == "recut.commands.plan"
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupt)
    assert run(capsys, "plan", "net:make") == (130, "", "recut: stopped\n")


def test_help_is_told_without_torch():
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    code += "from recut.cli import main; main(['--help'])"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "calibrate" in told.stdout
    assert told.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--json" in out
    assert len(out.splitlines()) > 5


def test_a_foreign_plan_is_told_apart(factory, capsys, tmp_path, monkeypatch):
    folder = dumped(capsys, factory, tmp_path / "one", "--budget", "60%")
    monkeypatch.setenv("RECUT_PLAN", str(folder / "plan.json"))
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    compiled = torch.compile(net, backend="recut")
    with pytest.raises(diff.PlanningError, match="differs from that of the plan") as caught:
        compiled(torch.randn(4, 8)).sum().backward()
    assert "removed: 4 x aten.erf.default" in str(caught.value)
    assert "added: 1 x aten.tanh.default" in str(caught.value)
    (folder / "problem.json").unlink()
    torch._dynamo.reset()
    with pytest.raises(diff.PlanningError, match="another graph") as caught:
        compiled(torch.randn(4, 8)).sum().backward()
    assert "differs" not in str(caught.value)
