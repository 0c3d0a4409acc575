"""Dumps: which files, what is in them, and that they cost a warning at the worst."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from nets import NETS, WIDTH, floor_expected
from planned import planned
from problems import random_problem
from steps import by_aot, by_dynamo
from torch import nn

import recut
from recut import dump as dump_module
from recut.dump import write_index
from recut.files import dump_graph
from recut.partitioners.machine import CPU
from recut.partitioners.outline import outline
from recut.partitioners.planner import Planner
from recut.planned import load

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {"joint.txt", "planned.txt", "forward.txt", "backward.txt"}
FILES = TEXTS | {
    *("problem.json", "plan.json", "frontier.json", "graph.json"),
    *("report.html", "graph.svg", "memory.json"),
}


def dumped(monkeypatch, folder, net="gpt", budget="0.7", **settings):
    """Train one step of a net op by op with a dump; returns the graphs' folders."""
    environ = {"RECUT_DUMP": str(folder), "RECUT_MEMORY_BUDGET": budget, **settings}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    module, inputs = NETS[net].make()
    with floor_expected():
        out = by_dynamo(module)(*inputs)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    return sorted(folder.glob("graph_*"))


class Links(HTMLParser):
    """The texts and links of a page."""

    def __init__(self, page):
        super().__init__()
        self.links, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """The folder of a small GPT's dump, and its report."""
    with pytest.MonkeyPatch.context() as patch:
        (folder,) = dumped(patch, tmp_path_factory.mktemp("gpt") / "out")
    return folder, recut.reports()[-1]


def test_a_graph_has_a_folder_of_files(gpt):
    folder, report = gpt
    assert folder.name.startswith(f"graph_{os.getpid()}_")
    assert {p.name for p in folder.iterdir()} == FILES
    graph = load(folder)
    assert (graph.peak, graph.plan.budget) == (report.peak, report.budget)
    assert (graph.name, graph.asked, graph.scheduled_peak) == ("nets.py", "70%", None)
    assert graph.planning_seconds == report.planning_seconds
    assert graph.fastest.peak == report.fastest_peak
    peaks = [plan.peak for plan in graph.frontier]
    assert peaks == sorted(peaks)
    assert (folder.parent / "index.html").is_file()
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]


def test_texts_show_each_node_with_decision_line_and_module(gpt):
    folder, _ = gpt
    graph = load(folder)
    text = {name: (folder / name).read_text() for name in TEXTS}
    for op, decision in zip(graph.problem.ops, graph.decisions, strict=True):
        (line,) = (x for x in text["joint.txt"].splitlines() if f" {op.name} = {op.target}(" in x)
        for known in (decision.choice, op.source, op.module):
            assert known in line
        # A reason that the choice implies stands at the head only.
        assert (decision.reason in line) != decision.is_plain
        assert (
            not decision.is_plain or f"# {decision.choice}: {decision.reason}" in text["joint.txt"]
        )
    runs = {n: len(re.findall(r" recomputed +\w+ = (?!getitem)", t)) for n, t in text.items()}
    again = sum(graph.plan.schedule.recomputed(graph.problem).values())
    assert runs["planned.txt"] == runs["forward.txt"] + runs["backward.txt"]
    assert runs["backward.txt"] == again > 0
    assert " saved " in text["backward.txt"]
    assert "return " in text["forward.txt"]


def test_the_drawing_is_well_formed_and_the_trace_holds_the_schedule(gpt):
    folder, _ = gpt
    graph = load(folder)
    assert ElementTree.parse(folder / "graph.svg").getroot().tag.endswith("svg")
    events = json.loads((folder / "memory.json").read_text())["traceEvents"]
    order = graph.plan.schedule.forward + graph.plan.schedule.backward
    names = [graph.problem.ops[i].name for i in order]
    assert [e["name"] for e in events if e["ph"] == "X"] == names
    counts = [sum(e["args"].values()) for e in events if e.get("name") == "memory"]
    assert max(counts) == graph.peak


def test_passes_are_dumped_on_request_only(monkeypatch, tmp_path):
    (folder,) = dumped(monkeypatch, tmp_path, "views", RECUT_DUMP_PASSES="1")
    passes = sorted(p.name for p in folder.iterdir() if p.name not in FILES)
    parts = ("1_prepare_before", "1_prepare_after", "2_emit_after", "3_split_forward")
    assert passes == sorted(f"pass_{part}.txt" for part in (*parts, "3_split_backward"))
    assert all("def forward" in (folder / name).read_text() for name in passes)


def test_an_inductor_graph_tells_what_its_kernels_hold(tmp_path):
    module = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
    x = torch.randn(256, WIDTH)
    options = {"memory_budget": 0.9, "dump": str(tmp_path), "dump_passes": True}
    compiled = torch.compile(module, backend="recut", options=options, fullgraph=True)
    with floor_expected():
        compiled(x).sum().backward()
    (folder,) = tmp_path.glob("graph_*")
    (report,) = recut.reports()
    graph = load(folder)
    assert graph.scheduled_peak == report.scheduled_peak is not None
    assert "Inductor&#39;s kernels" in (folder / "report.html").read_text()
    # Inductor rewrites the graphs that it gets; what is dumped is what the plan made.
    assert "aten.addmm.default" in (folder / "forward.txt").read_text()
    torch._dynamo.reset()
    options = {"plan": str(folder / "plan.json"), "dump": str(tmp_path)}
    again = torch.compile(module, backend="recut", options=options, fullgraph=True)
    again(x).sum().backward()
    assert len(list(tmp_path.glob("graph_*"))) == 2


@pytest.mark.parametrize("where", ["write", "index", "page"])
def test_a_dump_that_fails_costs_one_warning(monkeypatch, tmp_path, where):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("a defect")

    if where == "write":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        name = {"index": "write_index", "page": "render"}[where]
        monkeypatch.setattr(dump_module, name, full if where == "index" else broken)
    with pytest.warns(UserWarning, match="training goes on without it") as seen:
        folders = dumped(monkeypatch, tmp_path / "new" / "dumps", "views")
    assert len(seen) == 1
    assert len(recut.reports()) == 1
    # Nothing half written: no folder, or a whole one that only the index misses.
    left = sorted(p.name for p in tmp_path.rglob("*"))
    whole = ["new", "dumps", *(f.name for f in folders), *FILES]
    assert left == (sorted(whole) if where == "index" else [])


def test_a_dump_that_fails_leaves_what_was_there(tmp_path):
    dump_graph(tmp_path / "dumps", {"a": ""})
    with pytest.raises(TypeError):
        dump_graph(tmp_path / "dumps", {"a": 1})
    with pytest.raises(TypeError):
        dump_graph(tmp_path / "other" / "dumps", {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["dumps"]
    assert len(list((tmp_path / "dumps").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_costs_a_warning(monkeypatch, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.warns(UserWarning, match="PermissionError"):
        assert dumped(monkeypatch, folder, "views") == []


def test_a_device_that_is_full_costs_a_warning(monkeypatch, tmp_path):
    folder = tmp_path / "out"
    monkeypatch.setattr(dump_module, "dump_graph", lambda *_: Path("/dev/full").write_text("x"))
    with pytest.warns(UserWarning, match="No space left"):
        assert dumped(monkeypatch, folder, "views") == []


def test_folders_never_overwrite_one_another(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as in containers that share a disk
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda k: dump_graph(tmp_path, {"a": str(k)}), range(40)))
    assert len(set(made)) == 40
    assert sorted(int((p / "a").read_text()) for p in made) == list(range(40))
    # Another process of that number counts from the start.
    monkeypatch.setattr("recut.files._counter", iter(range(1000)))
    assert dump_graph(tmp_path, {"a": "new"}) not in made
    assert sorted(int((p / "a").read_text()) for p in made) == list(range(40))


@pytest.mark.parametrize(
    ("rank", "prefix"), [("3", "graph_rank3_"), ("../x", "graph_"), ("", "graph_")]
)
def test_ranks_are_told_apart(monkeypatch, tmp_path, rank, prefix):
    monkeypatch.setenv("RANK", rank)
    made = dump_graph(tmp_path, {"a": ""})
    assert made.parent == tmp_path
    assert made.name.startswith(f"{prefix}{os.getpid()}_")


def test_the_index_shows_every_folder_that_is_there(tmp_path):
    for name in ("layers", "<script>alert(1)</script>"):
        graph = planned(name=name, points=2)
        dump_graph(tmp_path, {"report.html": "", **graph.files()})
    (tmp_path / 'graph_"odd#').mkdir()
    (tmp_path / "graph_broken").mkdir()
    (tmp_path / "graph_broken" / "graph.json").write_text('{"summary": {"peak": "<b>"}}')
    write_index(tmp_path)
    page = (tmp_path / "index.html").read_text()
    found = Links(page)
    assert "<script" not in page
    assert "<script>alert(1)</script>" in found.texts
    reports = [link for link in found.links if link.endswith("report.html")]
    assert len(reports) == 2
    assert all((tmp_path / link).is_file() for link in found.links)
    assert page.count("its summary cannot be read") == 2


def test_pages_and_folders_may_be_read_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        made = dump_graph(tmp_path, {"a": ""})
        write_index(tmp_path)
    finally:
        os.umask(before)
    modes = [p.stat().st_mode & 0o777 for p in (made, made / "a", tmp_path / "index.html")]
    assert modes == [0o755, 0o644, 0o644]


def test_whoever_writes_the_index_last_has_seen_all_folders(monkeypatch, tmp_path):
    written = dump_module.write_atomic

    def late(path, text):
        # Another process dumps while this one writes.
        if not (tmp_path / "graph_other_0").exists():
            (tmp_path / "graph_other_0").mkdir()
        written(path, text)

    monkeypatch.setattr(dump_module, "write_atomic", late)
    dump_graph(tmp_path, {"a": ""})
    write_index(tmp_path)
    assert "graph_other_0" in (tmp_path / "index.html").read_text()


def test_names_from_a_model_stay_text(monkeypatch, tmp_path):
    script = type("<script>alert(1)</script>", (nn.Linear,), {})
    module = nn.Sequential()
    module.add_module("<script>alert(2)<!--", script(WIDTH, WIDTH))
    module.double()
    monkeypatch.setenv("RECUT_DUMP", str(tmp_path))
    by_aot(module)(torch.randn(8, WIDTH, dtype=torch.float64)).sum().backward()
    (folder,) = tmp_path.glob("graph_*")
    page = (folder / "report.html").read_text()
    assert page.count("<script") == 2
    assert "alert(" not in page
    ElementTree.parse(folder / "graph.svg")


def test_an_outline_is_a_frontier_that_ends_with_the_fastest_plan():
    graph = planned()
    planner = Planner(graph.problem, graph.machine)
    for found in (outline(planner), outline(planner, seconds=0.0)):
        peaks, steps = [p.peak for p in found], [graph.seconds(p) for p in found]
        assert peaks == sorted(set(peaks))
        assert steps[:-1] == sorted(set(steps[:-1]), reverse=True)
        assert found[-1].schedule == planner.fastest
        for plan in found:
            plan.check(graph.problem)


def test_an_outline_ends_with_the_fastest_plan_where_a_segmentation_is_the_same():
    same = 0
    for seed in range(40):
        planner = Planner(random_problem(seed, "inductor"), CPU)
        assert outline(planner, seconds=0.0)[-1].schedule == planner.fastest
        same += any(s is not planner.fastest and s == planner.fastest for s in planner.known())
    assert same


TRACED = """
import sys, torch, recut
f = torch.compile(torch.nn.Linear(4, 4), backend="recut", options={"memory_budget": 0.9})
f(torch.randn(2, 4)).sum().backward()
ours = ("recut.dump", "recut.page", "recut.drawing", "recut.perfetto")
print([name for name in ours if name in sys.modules])
"""


def test_torchs_own_channels_and_no_import_where_nothing_is_dumped(tmp_path):
    environ = {**os.environ, "TORCH_LOGS": "recut", "TORCH_TRACE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRACED],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
    assert "planned peak" in done.stderr
    (trace,) = tmp_path.glob("*.log")
    lines = trace.read_text().splitlines()
    artifacts = {}
    for k, line in enumerate(lines):
        if '"recut_' in line:
            data = json.loads(line[line.index("{") :])
            artifacts[data["artifact"]["name"]] = (data, lines[k + 1].strip())
    report, plan = artifacts["recut_report"], artifacts["recut_plan"]
    assert "planned peak" in report[1]
    assert json.loads(plan[1])["planner"]
    assert plan[0]["artifact"]["encoding"] == "json"
    assert plan[0]["frame_id"] == 0


def test_the_log_names_the_folder(monkeypatch, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="recut"), warnings.catch_warnings():
        (folder,) = dumped(monkeypatch, tmp_path, "views")
    assert f"dumped to {folder}" in caplog.text
