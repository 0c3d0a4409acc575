"""Sweeps: many budgets at once, monotone, and with less work than their points one by one."""

from __future__ import annotations

import pytest
from problems import layers, small_chain

from recut.partitioners.frontier import Candidate, Frontier
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.program import Program
from recut.partitioners.schedule import Schedule
from recut.partitioners.timing import step_seconds


def test_a_sweep_is_monotone_and_no_dearer_than_its_points():
    cheaper = dearer = 0
    for seed in range(8):
        problem = small_chain(seed, "inductor" if seed % 2 else "eager")
        planner = Planner(problem, CPU)
        plans = planner.sweep(9)
        budgets = [plan.budget for plan in plans]
        assert (budgets[0], len(plans)) == (planner.floor, 9)
        assert budgets[-1] == max(planner.floor, planner.fastest_peak)
        steps = [step_seconds(problem, plan.schedule, CPU) for plan in plans]
        assert steps == sorted(steps, reverse=True), seed
        peaks = [plan.peak for plan in plans]
        assert peaks == sorted(peaks), seed
        for plan, step in zip(plans, steps, strict=True):
            plan.check(problem)
            assert plan.peak <= plan.budget
            alone = Planner(problem, CPU).plan(plan.budget)
            cheaper += step < step_seconds(problem, alone.schedule, CPU) - 1e-12
            dearer += step > step_seconds(problem, alone.schedule, CPU) + 1e-12
    assert cheaper > dearer


def test_a_sweep_solves_less_than_its_points(monkeypatch):
    solved = []
    solve = Program.solve

    def counted(self, budget, go_on=False):
        solved.append(budget)
        return solve(self, budget, go_on)

    monkeypatch.setattr(Program, "solve", counted)
    problem = layers(12)
    planner = Planner(problem, CPU)
    assert planner.floor < planner.fastest_peak
    solved.clear()
    plans = planner.sweep()
    swept = len(solved)
    planner = Planner(problem, CPU)
    assert planner.floor
    solved.clear()
    for plan in plans:
        planner.plan(plan.budget)
    assert swept < 0.8 * len(solved)


def test_a_sweep_has_two_ends():
    planner = Planner(small_chain(0), CPU)
    with pytest.raises(ValueError, match="at least 2 points, not 1"):
        planner.sweep(1)
    leanest, fastest = planner.sweep(2)
    assert (leanest.peak, fastest.planner) == (planner.floor, "min-cut")


def test_a_frontier_keeps_what_is_cheapest_for_its_peak():
    frontier = Frontier()
    assert frontier.under(100) is None
    for peak, seconds in ((50, 5.0), (80, 3.0), (60, 6.0), (70, 2.0), (50, 4.0), (90, 2.0)):
        frontier.add(Candidate(peak, seconds, Schedule((), ())))
    assert [(c.peak, c.seconds) for c in frontier.candidates] == [(50, 4.0), (70, 2.0)]
    assert frontier.under(49) is None
    assert [frontier.under(budget).peak for budget in (50, 69, 70, 1000)] == [50, 50, 70, 70]
