"""What a budget promises without Inductor: lower peaks, a feasible floor, refusals, one report."""

from __future__ import annotations

import warnings

import pytest
from nets import NETS
from steps import by_aot, by_dynamo, check, planned

import recut


@pytest.mark.parametrize("name", NETS)
def test_less_budget_never_plans_a_higher_peak(monkeypatch, name):
    budgets = ("1.0", "0.85", "0.7", "0.01")
    reports = [planned(monkeypatch, NETS[name], budget) for budget in budgets]
    peaks = [report.peak for report in reports]
    assert peaks == sorted(peaks, reverse=True)
    # What these allocate is needed by the forward itself: their fastest plan is their floor.
    assert peaks[-1] < peaks[0] or name in ("one_hot", "several")


def test_less_budget_recomputes_more(monkeypatch):
    rich = check(monkeypatch, NETS["gpt"], "1.0")
    recut.clear_reports()
    poor = check(monkeypatch, NETS["gpt"], "0.01")
    assert len(poor.calls("backward")) > len(rich.calls("backward"))


def test_the_floor_is_feasible_and_a_byte_less_is_not(monkeypatch):
    net = NETS["shared_mlp"]
    floor = planned(monkeypatch, net, "0.01").peak
    recut.clear_reports()  # or the second byte budget of the process would warn
    report = planned(monkeypatch, net, f"{floor}B")
    assert report.peak <= floor == report.budget
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", f"{floor - 1}B")
    module, inputs = net.make()
    with pytest.raises(recut.InfeasibleBudget) as caught:
        by_aot(module)(*inputs)
    assert caught.value.floor == floor
    assert caught.value.budget == floor - 1
    assert f"{floor} bytes" in str(caught.value)
    assert "RECUT_MEMORY_BUDGET" in str(caught.value)
    assert len(recut.reports()) == 1


def test_an_infeasible_budget_names_source_lines(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "2KiB")
    module, inputs = NETS["shared_mlp"].make()
    with pytest.raises(Exception, match="cannot be met") as caught:
        by_dynamo(module)(*inputs)
    error = caught.value
    while not isinstance(error, recut.InfeasibleBudget):
        error = getattr(error, "inner_exception", None) or error.__cause__
    sizes = [c.bytes for c in error.culprits]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= error.floor
    assert any(c.source.startswith("nets.py:") for c in error.culprits)
    assert "nets.py:" in str(caught.value)
    assert all(p.grad is None for p in module.parameters())


def test_a_fraction_below_the_floor_gives_the_floor_and_one_warning(monkeypatch):
    net = NETS["shared_mlp"]
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    module, inputs = net.make()
    with pytest.warns(UserWarning, match="floor") as caught:
        by_aot(module)(*inputs)
    assert len(caught) == 1
    (report,) = recut.reports()
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1KiB")
    module, inputs = net.make()
    with pytest.raises(recut.InfeasibleBudget) as refused:
        by_aot(module)(*inputs)
    assert report.peak == refused.value.floor


def test_an_unreadable_budget_is_refused(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1.5")
    module, inputs = NETS["shared_mlp"].make()
    with pytest.raises(recut.SettingError, match="RECUT_MEMORY_BUDGET"):
        by_aot(module)(*inputs)
    assert recut.reports() == []


def test_the_second_graph_under_a_byte_budget_warns_once(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1GiB")
    messages = []
    for _ in range(3):
        module, inputs = NETS["shared_mlp"].make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            by_aot(module)(*inputs)
        messages.append([str(w.message) for w in caught if "recut" in str(w.message)])
    assert [len(m) for m in messages] == [0, 1, 0]
    assert "each compiled graph by itself" in messages[1][0]


def test_graphs_under_fractions_do_not_warn(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "100%")
    for _ in range(2):
        module, inputs = NETS["shared_mlp"].make()
        by_aot(module)(*inputs)  # pytest makes an error of any warning
    assert len(recut.reports()) == 2


def test_the_log_says_what_was_planned(monkeypatch, caplog):
    with caplog.at_level("INFO", logger="recut"):
        report = planned(monkeypatch, NETS["shared_mlp"], "90%")
    (line,) = [r.getMessage() for r in caplog.records if r.name == "recut"]
    assert line == report.line()
    assert "90%" in line
    assert f"{report.peak / 2**20:.1f} MiB" in line
    assert f"{report.ops} ops" in line
