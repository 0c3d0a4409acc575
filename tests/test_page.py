"""The report page: what it says, that nothing of a model's breaks out of it, and how it behaves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from browser import CHROMIUM, DARK, result
from planned import modules, planned
from problems import Net, layers

from recut import page_data
from recut.drawing import draw
from recut.page import render, ticks
from recut.partitioners.decisions import Use, memory
from recut.partitioners.machine import CPU
from recut.partitioners.plan import make_plan
from recut.partitioners.planner import Planner
from recut.partitioners.schedule import Schedule
from recut.partitioners.units import duration, size
from recut.perfetto import memory_trace
from recut.planned import PlannedGraph

EVIL = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)>&"\'{{7*7}}'

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Reader(HTMLParser):
    """Collects a page's elements and the JSON of its chart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.json = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1] == ("script", {"type": "application/json", "id": "data"}):
            self.json += data
        else:
            self.texts.append(data)

    @property
    def chart(self):
        return json.loads(self.json.split("\n", 1)[0])

    def has(self, **wanted):
        """The elements that have some attributes."""
        return [tag for tag, attrs in self.tags if wanted.items() <= attrs.items()]


@pytest.fixture(scope="module")
def graph():
    return planned(modules(layers(6)), scheduled_peak=2**22)


@pytest.fixture(scope="module")
def page(graph):
    return render(graph, ("joint.txt", "plan.json"))


def evil(graph: PlannedGraph) -> PlannedGraph:
    """Put markup into every text that a model can bring."""
    ops = tuple(
        replace(o, name=o.name + EVIL, target=EVIL, source=EVIL, module=EVIL, reason=EVIL)
        for o in graph.problem.ops
    )
    values = tuple(replace(v, name=v.name + EVIL) for v in graph.problem.values)
    problem = replace(graph.problem, ops=ops, values=values)
    machine = replace(graph.machine, name=EVIL)
    plan = replace(graph.plan, planner=EVIL)
    return replace(graph, problem=problem, plan=plan, machine=machine, name=EVIL, asked=EVIL)


def test_the_page_needs_nothing_but_itself(page):
    reader = Reader(page)
    for tag, attrs in reader.tags:
        assert tag not in ("link", "img", "object", "embed", "iframe", "base")
        assert "src" not in attrs
        if tag == "a":
            assert attrs["href"] in ("joint.txt", "plan.json")
        assert not [name for name in attrs if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", page)
    assert reader.has(**{"http-equiv": "Content-Security-Policy"}) == ["meta"]


def test_the_page_tells_the_plan(graph, page):
    text = " ".join(" ".join(Reader(page).texts).split())
    op = graph.problem.ops[
        (graph.plan.schedule.forward + graph.plan.schedule.backward)[graph.timeline.worst]
    ]
    assert f"Memory peaks at {size(graph.peak)}" in text
    assert f"while {op.name}" in text
    for known in (size(graph.plan.budget), "asked: 60%", size(graph.floor), size(2**22)):
        assert known in text
    assert duration(graph.plan.bound_seconds) in text
    assert f"{len(page_data.run_again(graph)):,} ops run again" in text
    for point in page_data.points(graph):
        assert duration(point.seconds) in text


def test_the_chart_adds_up(graph, page):
    chart = Reader(page).chart
    live = [0] * len(chart["live"])
    for start, length, held in zip(
        *(chart["buffers"][name] for name in ("start", "length", "bytes")), strict=True
    ):
        for t in range(start, start + length + 1):
            live[t] += held
    for t, held in chart["workspace"]:
        live[t] += held
    reused = [a - b for a, b in zip(live, chart["live"], strict=True)]
    assert all(x >= 0 for x in reused)
    assert chart["live"] == list(graph.timeline.live)
    assert chart["live"][chart["worst"]] == graph.peak
    series = memory(graph.problem, graph.plan.schedule, graph.timeline)
    saved = [0] * len(live)
    columns = (chart["buffers"][name] for name in ("start", "length", "bytes", "use"))
    for start, length, held, use in zip(*columns, strict=True):
        if chart["uses"][use] == Use.SAVED.value:
            for t in range(start, start + length + 1):
                saved[t] += held
    assert saved == list(series[Use.SAVED])


def test_layers_of_one_kind_share_a_series(graph):
    chart = page_data.chart(graph)
    assert {"blocks.*.up", "blocks.*.act", "other modules"} <= set(chart["roles"])
    assert len(chart["roles"]) <= page_data.SERIES
    role = {
        op.name: chart["roles"][r]
        for op, r in zip(graph.problem.ops, chart["ops"]["role"], strict=True)
    }
    assert role["up0"] == role["up5"]


def test_tensors_are_told_with_what_became_of_them(graph):
    rows = page_data.tensors(graph)
    assert [r.bytes for r in rows] == sorted((r.bytes for r in rows), reverse=True)
    became = {r.name: r.became for r in rows}
    saved = {graph.problem.values[v].name for v in graph.plan.schedule.saved(graph.problem)}
    assert {became[name] for name in saved if name in became} <= {"saved", "recomputed"}
    assert {"saved", "backward"} <= set(became.values())
    assert all(r.why for r in rows)


def test_what_runs_again_is_all_there_dearest_first(graph):
    rows = page_data.run_again(graph)
    again = graph.plan.schedule.recomputed(graph.problem)
    assert sum(r.runs for r in rows) == sum(again.values())
    assert [r.seconds for r in rows] == sorted((r.seconds for r in rows), reverse=True)


def test_markup_of_a_models_stays_text(graph):
    reader = Reader(render(evil(graph)))
    assert "img" not in [tag for tag, _ in reader.tags]
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert reader.chart["ops"]["target"]
    assert EVIL in reader.chart["targets"]
    assert "49" not in " ".join(t for t in reader.texts if "{{7" in t)


def test_markup_of_a_models_stays_text_in_drawing_and_trace(graph):
    drawn = draw(evil(graph))
    root = ElementTree.fromstring(drawn)
    assert not [e for e in root.iter() if e.tag.endswith(("script", "img"))]
    assert json.loads(memory_trace(evil(graph)))["traceEvents"]


def test_a_notebook_shows_the_page_walled_off(graph):
    shown = graph._repr_html_()
    ((tag, attrs),) = Reader(shown).tags
    assert tag == "iframe"
    assert attrs["sandbox"] == "allow-scripts"
    assert attrs["srcdoc"] == graph.to_html()


def test_a_step_without_ops_has_a_page():
    problem = Net().problem()
    plan = make_plan(problem, Schedule((), ()), 1, "none")
    graph = PlannedGraph(problem, plan, (), CPU)
    assert "The step has no ops" in graph.to_html()
    ElementTree.fromstring(draw(graph))


@pytest.mark.parametrize(
    ("depth", "module", "boxes"),
    [
        (3, "blocks.{}", (33, 40)),  # op by op
        (20, "blocks.{}", (40, 44)),
        (20, "blocks.{}.part.{}", (100, 240)),
        (60, "blocks.{}", (120, 124)),
        (300, "blocks.{}", (150, 260)),  # several layers in a box
        (60, "", (100, 260)),
        (60, "everything", (100, 260)),
    ],
)
def test_the_drawing_shows_each_op_once(depth, module, boxes):
    problem = layers(depth)
    ops = []
    for op in problem.ops:
        number = "".join(c for c in op.name if c.isdigit())
        path = module.format(number, op.name.strip("0123456789")) if number else module[:6]
        ops.append(replace(op, module=path))
    planner = Planner(replace(problem, ops=tuple(ops)), CPU)
    plan = planner.plan(planner.fastest_peak)
    graph = PlannedGraph(planner.problem, plan, (plan,), CPU)
    root = ElementTree.fromstring(draw(graph))
    name = "{http://www.w3.org/2000/svg}"
    titles = [g.find(f"{name}title").text for g in root.iter(f"{name}g")]
    counts = [re.search(r"^(\d+) ops", title, re.MULTILINE) for title in titles]
    assert sum(int(m[1]) if m else 1 for m in counts) == len(problem.ops)
    assert boxes[0] <= len(titles) <= boxes[1]


def test_what_was_measured_stands_beside_what_was_predicted(graph):
    assert "Predicted against counted" in render(graph)
    held = replace(graph, measured_peak=graph.peak - 5, measured_seconds=2 * graph.time)
    page = render(held)
    assert "Predicted against measured" in page
    assert "5 B less than predicted, by recut doctor" in page
    assert "2.00 times the predicted one" in page
    only_peak = render(replace(graph, measured_peak=graph.peak + 2**20))
    assert "1.00 MiB more than predicted, by recut doctor" in only_peak
    assert "times the predicted one" not in only_peak


def test_the_trace_keeps_to_the_trace_event_format(graph):
    def refused(text):
        raise AssertionError(f"{text} is no JSON")

    trace = json.loads(memory_trace(graph), parse_constant=refused)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    number = (int, float)
    ends: dict[tuple[int, int], int] = {}
    series: dict[str, set[str]] = {}
    named = set()
    for event in events:
        assert type(event["name"]) is str
        assert type(event["pid"]) is int
        match event["ph"]:
            case "M":
                assert event["name"] in ("process_name", "thread_name")
                assert type(event["args"]["name"]) is str
                named.add(event["tid"])
            case "C":
                assert event["ts"] >= 0
                assert all(type(value) in number for value in event["args"].values())
                # A series that is left out would keep its last value.
                assert series.setdefault(event["name"], set(event["args"])) == set(event["args"])
            case "X":
                assert type(event["ts"]) in number
                assert event["dur"] > 0
                assert type(event["cat"]) is str
                assert event["tid"] in named
                # Slices of a thread lie side by side, to the nanosecond: Perfetto's clock.
                thread = event["pid"], event["tid"]
                start, duration = (round(event[key] * 1000) for key in ("ts", "dur"))
                assert start / 1000 == event["ts"]
                assert start >= ends.get(thread, 0)
                ends[thread] = start + duration
            case other:
                raise AssertionError(f"{other} is no kind of event that is written")
    assert len(ends) == 2
    assert set(series) == {"memory", "budget"}
    budget = [e["ts"] for e in events if e["name"] == "budget"]
    assert [round(t * 1000) for t in budget] == [0, max(ends.values())]


def test_the_counters_of_the_trace_add_up_to_the_timeline(graph):
    events = json.loads(memory_trace(graph))["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert [e["args"]["moment"] for e in slices] == list(range(len(graph.timeline.live)))
    counters = {e["ts"]: e["args"] for e in events if e["ph"] == "C" and e["name"] == "memory"}
    now: dict[str, int] = {}
    for event, live in zip(slices, graph.timeline.live, strict=True):
        now = counters.get(event["ts"], now)
        assert sum(now.values()) == live
    ends = [round(e["ts"] + e["dur"], 2) for e in slices]
    starts = [round(e["ts"], 2) for e in slices]
    assert all(abs(a - b) < 0.02 for a, b in zip(ends, starts[1:], strict=False))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (3 * 2**20, "3.00 MiB"),
        (1000 * 2**20, "0.98 GiB"),
    ],
)
def test_bytes_as_text(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 us"), (1.5e-6, "1.50 us"), (0.0123, "12.3 ms"), (2.0, "2.00 s")]
)
def test_seconds_as_text(seconds, text):
    assert duration(seconds) == text


def test_round_numbers_on_an_axis():
    assert ticks(0.0, 9.7, 5) == [0, 2, 4, 6, 8]
    assert ticks(46.9, 126.0, 5) == [60, 80, 100, 120]


@browser
def test_the_chart_is_drawn_and_tells_the_peak(graph, page, tmp_path):
    script = """
    const area = document.getElementById("areas").getContext("2d");
    const pixels = area.getImageData(0, 0, area.canvas.width, area.canvas.height).data;
    const colours = new Set();
    for (let k = 0; k < pixels.length; k += 4) {
      if (pixels[k + 3]) colours.add(pixels.slice(k, k + 3).join());
    }
    return [colours.size, document.getElementById("moment-facts").textContent,
      [...document.querySelectorAll("#legend li")].map((x) => x.childNodes[1].textContent.trim())];
    """
    colours, facts, legend = result(tmp_path, page, script)
    assert colours > 4
    assert f"in memory{size(graph.peak)}" in facts
    assert legend == [
        use.value for use in memory(graph.problem, graph.plan.schedule, graph.timeline)
    ]


@browser
def test_pointing_and_keys_tell_moment_and_tensors(graph, page, tmp_path):
    script = """
    const chart = document.getElementById("chart"), box = chart.getBoundingClientRect();
    const at = () => [
      Number(chart.getAttribute("aria-valuenow")), chart.getAttribute("aria-valuetext"),
      document.querySelector("#moment-tensors th").textContent];
    const key = (name) => {
      chart.dispatchEvent(new KeyboardEvent("keydown", {key: name}));
      return at();
    };
    const place = {clientX: box.left + 80, clientY: box.top + 50, bubbles: true};
    const target = new PointerEvent("pointermove", place);
    const steps = [at()];
    document.getElementById("areas").dispatchEvent(target);
    steps.push(at(), key("Home"), key("ArrowRight"), key("End"), key("ArrowLeft"), key("p"));
    key("+"); key("+");
    steps.push(at());
    for (const choice of document.querySelectorAll("[name=grouping]")) choice.click();
    return [steps, document.querySelectorAll("#legend li").length];
    """
    steps, series = result(tmp_path, page, script)
    worst, last = graph.timeline.worst, len(graph.timeline.live) - 1
    moments = [moment for moment, *_ in steps]
    assert moments[0] == worst
    assert moments[1] < last // 10
    assert moments[2:] == [0, 1, last, last - 1, worst, worst]
    order = graph.plan.schedule.forward + graph.plan.schedule.backward
    for moment, text, largest in steps:
        assert graph.problem.ops[order[moment]].name in text
        assert size(graph.timeline.live[moment]) in text
        held = graph.timeline.at(moment)
        names = {
            graph.problem.values[i.value].name
            for i in held
            if i.bytes == max(x.bytes for x in held)
        }
        assert largest in names
    assert series >= 2


@browser
def test_tables_are_filtered(page, tmp_path):
    script = """
    const input = document.getElementById("tensors-filter");
    const rows = [...document.querySelectorAll("#tensors tbody tr")];
    const count = document.getElementById("tensors-count");
    const look = (text) => { input.value = text; input.dispatchEvent(new Event("input"));
      const shown = rows.filter((row) => !row.hidden);
      return [shown.map((row) => row.textContent.toLowerCase()), count.textContent]; };
    return [look("UP3"), look("up3 nothing"), look(""), rows.length];
    """
    (some, told), (none, _), (everything, _), rows = result(tmp_path, page, script)
    assert 0 < len(some) < rows
    assert all("up3" in text for text in some)
    assert told == f"{len(some)} of {rows} match"
    assert none == []
    assert len(everything) == rows


@browser
def test_light_and_dark_are_the_readers_choice(page, tmp_path):
    script = "return getComputedStyle(document.documentElement).backgroundColor;"
    assert result(tmp_path, page, script) == "rgb(255, 255, 255)"
    assert result(tmp_path, page, script, DARK) == "rgb(18, 22, 27)"


@browser
def test_markup_of_a_models_runs_nothing(graph, tmp_path):
    script = """
    for (const choice of document.querySelectorAll("[name=grouping]")) choice.click();
    return [document.title, document.querySelectorAll("img").length];
    """
    title, images = result(tmp_path, render(evil(graph)), script)
    assert title == f"{EVIL} – recut"
    assert images == 0
