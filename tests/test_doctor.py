"""``recut doctor``: scripts run, measured, ended in time, and otherwise left as they are."""

from __future__ import annotations

import gc
import json
import runpy
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest
import torch
from nets import floor_expected
from torch.profiler import ProfilerActivity, profile

import recut
from benchmarks import measure
from recut import cli, doctor
from recut.backend import watching
from recut.budget import parse_budget
from recut.dump import add_measured
from recut.planned import load
from recut.probe import Enough, Figures, Probe

SCRIPT = """
import sys
import torch
from torch import nn
import recut

class Model(nn.Module):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1))
        self.head = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

    def forward(self, x):
        x = self.layers(x)
        if self.broken:
            torch._dynamo.graph_break()
        return self.head(x).square().mean()

def prepare(budget, broken=False):
    torch.manual_seed(0)
    model = Model(broken)
    options = {"memory_budget": budget}
    compiled = torch.compile(model, backend=recut.ckpt_backend, options=options, dynamic=False)
    return model, compiled, torch.randn(256, 64)

def train(budget, steps, broken=False):
    model, compiled, x = prepare(budget, broken)
    for step in range(steps):
        model.zero_grad(set_to_none=True)
        compiled(x).backward()
        with open("steps", "w") as file:
            file.write(str(step + 1))
    return [p.grad for p in model.parameters()]

if __name__ == "__main__":
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return how to write a script that runs one line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"

    def write(line):
        path.write_text(f"{SCRIPT}    {line}\n", encoding="utf-8")
        return str(path)

    return write


def examine(capfd, *arguments):
    """Run ``recut doctor --json``; returns its status, its answer and what went to stderr."""
    status = cli.main(["doctor", "--json", *arguments])
    out, err = capfd.readouterr()
    return status, json.loads(out), err


def test_the_dump_gets_what_was_measured(script, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RECUT_DUMP", str(tmp_path / "out"))
    status, answer, _ = examine(capfd, "--steps", "2", script("train(1.0, 10_000)"))
    assert status == 0
    (found,), (report,) = answer["graphs"], recut.reports()
    assert report.folder.parent == tmp_path / "out"
    graph = load(report.folder)
    assert graph.measured_peak == found["measured_peak"] > 0
    assert graph.measured_seconds == found["measured_seconds"] > 0
    page = (report.folder / "report.html").read_text()
    assert "Predicted against measured" in page
    assert all(f'href="{p.name}"' in page for p in report.folder.iterdir() if p.suffix != ".html")
    (report.folder / "plan.json").unlink()
    with pytest.warns(UserWarning, match="what was measured cannot be written"):
        add_measured(report.folder, 1, None)


@pytest.mark.parametrize("budget", [1.0, 0.01])
def test_peaks_are_measured_to_the_byte_and_the_script_is_ended(budget, script, tmp_path, capfd):
    path = script(f"print('hello'); train({budget}, 10_000)")
    expected = floor_expected() if budget < 1 else nullcontext()
    with expected:
        status, answer, err = examine(capfd, "--steps", "3", path)
    (graph,), (report,) = answer["graphs"], recut.reports()
    assert status == 0
    assert "hello" in err
    assert answer["ending"] == "stopped"
    # A warm-up and one for the peak, and no new graph for five steps.
    assert int((tmp_path / "steps").read_text()) == graph["steps"] == 5
    assert graph["timed_steps"] == 3
    assert graph["measured_seconds"] > 0
    assert graph["held"] is (True if budget < 1 else None)
    assert graph["planned_peak"] == report.peak
    assert graph["counted_peak"] == report.scheduled_peak
    assert graph["planned_seconds"] == report.step_seconds + report.added_seconds
    assert "cpu" in graph["machine"]
    torch._dynamo.reset()
    _, compiled, x = runpy.run_path(path)["prepare"](budget)
    with floor_expected() if budget < 1 else nullcontext():
        loss = measure.step(compiled, (x,))
    # The loss's own gradient is made by autograd, outside of the graph.
    assert graph["measured_peak"] == measure.peak_bytes(compiled, (x,)) - loss.nbytes


def test_graphs_are_told_apart(script, capfd):
    path = script("train(1.0, int(sys.argv[1]), broken=True)")
    assert cli.main(["doctor", "--full", path, "4"]) == 0
    out, _ = capfd.readouterr()
    first, second = recut.reports()
    rows = [line.split()[:2] for line in out.splitlines()]
    assert ["1", str(first.ops)] in rows
    assert ["2", str(second.ops)] in rows
    assert "2 training graphs" in out
    assert "bounds nothing" in out
    assert "ended the script" not in out


def test_the_peak_of_a_graph_leaves_out_what_others_allocate_and_it_frees(script):
    # The second graph's input gradient is the first one's tangent, and dies in its backward.
    path = script("train(1.0, 3, broken=True)")
    gc.collect()  # tensors of other tests, freed in the middle of a step, would count as its own
    outcome = doctor.examine(doctor.Target(path, False, ()), steps=1)
    assert outcome.ending == "ended"
    for figures in outcome.graphs:
        assert figures.steps == 3
        assert len(figures.seconds) == 1
        assert figures.calls == 1
        assert abs(figures.peak - figures.report.scheduled_peak) <= 16


def test_what_a_short_or_failing_script_has_shown_is_told(script, capfd):
    status, answer, _ = examine(capfd, script("train(1.0, 2); sys.exit('no more')"))
    assert status == 1
    assert answer["ending"] == "failed"
    assert answer["graphs"][0]["measured_peak"] > 0
    assert "graph 1: only 2 steps ran: no time" in answer["says"]

    torch._dynamo.reset()
    status = cli.main(["doctor", script("train(1.0, 1); raise RuntimeError('out of data')")])
    out, err = capfd.readouterr()
    assert status == 1
    assert "graph 1: only 1 step ran: no peak and no time" in out
    trace = err[err.index("Traceback") :].splitlines()
    assert trace[1].endswith('train.py", line 37, in <module>')
    assert trace[-1] == "RuntimeError: out of data"


def test_results_are_those_of_the_script_alone(script):
    last = "torch.save([train(1.0, 4), torch.get_rng_state()], sys.argv[1])"
    path = script(last)
    for name in ("doctor", "alone"):
        torch._dynamo.reset()
        target = doctor.Target(path, False, (f"{name}.pt",))
        if name == "doctor":
            assert doctor.examine(target, steps=1, full=True).graphs[0].peak
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [path, "alone.pt"])
                target.run()
    (watched, watched_state), (alone, alone_state) = map(torch.load, ("doctor.pt", "alone.pt"))
    assert all(map(torch.equal, watched, alone))
    assert torch.equal(watched_state, alone_state)


def test_steps_begin_with_a_forward_behind_a_backward(script):
    _, compiled, x = runpy.run_path(script("pass"))["prepare"](1.0)
    probe = Probe(steps=1)
    ran = 0

    def step():
        # Of two forwards in a step, the last is measured, with the backward that follows.
        first, second = compiled(x), compiled(x)
        second.backward()
        first.backward()

    with doctor.graphs_uncached(), watching(probe), suppress(Enough):
        while ran < 100:
            step()
            ran += 1
    (figures,) = probe.figures()
    assert figures.steps == ran < 100
    assert figures.calls == 2
    assert abs(figures.peak - figures.report.scheduled_peak) <= 16
    # It is raised as often as the script holds it up.
    with pytest.raises(Enough):
        compiled(x)


def test_a_profiler_of_the_scripts_own_is_left_alone(script):
    _, compiled, x = runpy.run_path(script("pass"))["prepare"](1.0)
    probe = Probe(steps=1, endless=True)
    with doctor.graphs_uncached(), watching(probe):
        compiled(x).backward()
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as own:
            for _ in range(3):
                compiled(x).backward()
    (figures,) = probe.figures()
    assert (figures.steps, figures.peak, figures.seconds) == (4, None, ())
    assert any("CompiledFunction" in event.key for event in own.key_averages())
    said = doctor.sentences([doctor.finding(figures)], "ended")
    assert said == ["graph 1: a profiler of the script's own ran: no peak and no time"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-m"], "name the module"),
        (["missing.py"], "missing.py: there is no such script"),
        (["-m", "missing_module"], "there is no such module"),
        (["-m", "missing.module"], "No module named 'missing'"),
        (["plain.py", "--steps", "x"], 'has to use torch.compile(..., backend="recut")'),
        (["-m", "plain", "--steps", "x"], 'has to use torch.compile(..., backend="recut")'),
    ],
)
def test_a_request_that_cannot_be_met(arguments, text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").touch()
    plain = "import sys, beside; assert __name__ == '__main__' and sys.argv[1:] == ['--steps', 'x']"
    (tmp_path / "plain.py").write_text(plain, encoding="utf-8")
    argv, path = sys.argv, list(sys.path)
    assert cli.main(["doctor", *arguments]) == 2
    sys.modules.pop("beside", None)
    assert text in capfd.readouterr().err
    assert (sys.argv, sys.path) == (argv, path)


def figures(**changes):
    report = recut.GraphReport(
        budget=1000,
        peak=990,
        fastest_peak=2000,
        floor=None,
        added_seconds=0.5,
        step_seconds=1.5,
        planning_seconds=0.1,
        ops=7,
        planner="program",
        asked=parse_budget("1000B", "memory_budget"),
        scheduled_peak=995,
        machine="a machine (datasheet)",
    )
    measured = {"steps": 7, "calls": 1, "peak": 995, "seconds": (1.0, 2.1, 9.0)}
    return Figures(report, **{**measured, **changes})


def test_figures_are_compared():
    found = doctor.finding(figures())
    assert found.held is True
    assert found.peak_ratio == 995 / 990
    assert found.measured_seconds == 2.1
    assert found.seconds_ratio == 2.1 / 2
    assert doctor.sentences([found], "ended") == [
        "graph 1: the budget of 0.0 MiB (1000 bytes) held: the measured peak is 0.0 MiB"
    ]


def test_what_is_wrong_is_said():
    broken = doctor.finding(figures(peak=1003, seconds=(3.0,), calls=12))
    assert broken.held is False
    peak, time, calls = doctor.sentences([broken], "ended")
    assert "was broken" in peak
    assert "3 bytes over" in peak
    assert "1.50 times what was predicted" in time
    assert "a machine (datasheet): run `recut calibrate`" in time
    assert "12 times in a step" in calls
    measured_here = replace(broken, machine="a CPU (recut calibrate, torch 2.13, 2 threads)")
    assert "was the machine idle" in doctor.sentences([measured_here], "ended")[1]


def test_a_broken_budget_is_an_exit_status(monkeypatch, capfd):
    outcome = doctor.Outcome((figures(peak=1003),), "ended")
    monkeypatch.setattr(doctor, "examine", lambda *_: outcome)
    assert cli.main(["doctor", "train.py"]) == 1
    assert "was broken" in capfd.readouterr().out
