"""A plan's peak at other sizes: the formula against the evaluator, new graphs and the allocator."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import sympy
import torch
from nets import WIDTH, SharedMLP, floor_expected
from problems import random_problem
from steps import by_dynamo
from torch import nn

import recut
from benchmarks import measure
from recut.partitioners import sizes as of_sizes
from recut.partitioners.evaluator import evaluate
from recut.partitioners.machine import CPU
from recut.partitioners.planner import Planner
from recut.partitioners.problem import Problem, Size
from recut.partitioners.schedule import Schedule
from recut.partitioners.sizes import PeakFormula, parse, peak_formula, resized

# No sum of products of these is another one by chance.
HINTS = {"s0": 1009, "s1": 2003}


def number(expr: str, sizes: dict[str, int]) -> int:
    return int(parse(expr).subs({s: sizes[s.name] for s in parse(expr).free_symbols}))


def at(problem: Problem, sizes: dict[str, int]) -> Problem:
    """The problem with the bytes that its expressions give."""
    values = [replace(v, bytes=number(v.expr, sizes)) if v.expr else v for v in problem.values]
    return replace(problem, values=tuple(values))


def with_sizes(problem: Problem, seed: int) -> Problem:
    """A random problem whose values grow with two sizes; workspaces are left out."""
    rng = random.Random(f"sizes {seed}")
    kinds = ("", "4*s0", "4*s1", "2*s0*s1", "8*((s0 + 7)//8)", "4*s0 + 400", "Max(s0, s1)")
    values = [
        replace(v, expr=rng.choice(kinds) if v.producer >= 0 and v.bytes else "")
        for v in problem.values
    ]
    ops = tuple(replace(op, workspace=0) for op in problem.ops)
    sizes = tuple(Size(name, hint) for name, hint in HINTS.items())
    return at(replace(problem, ops=ops, values=tuple(values), sizes=sizes), HINTS)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_the_formula_is_the_evaluators_peak_at_any_sizes(compiler):
    several = 0
    for seed in range(24):
        problem = with_sizes(random_problem(seed, compiler), seed)
        schedule = Planner(problem, CPU).floor_plan().schedule
        formula = peak_formula(problem, schedule)
        several += len(formula.sums) > 1
        symbols = {s.name: s for s in formula.expression.free_symbols}
        for sizes in (HINTS, {"s0": 7, "s1": 5003}, {"s0": 4001, "s1": 3}):
            want = evaluate(at(problem, sizes), schedule).peak
            assert formula.at(sizes) == want
            given_sizes = {symbols[name]: n for name, n in sizes.items() if name in symbols}
            assert formula.expression.subs(given_sizes) == want
    assert several > 4


def test_a_problem_is_resized_as_its_expressions_say():
    for seed in range(12):
        problem = with_sizes(random_problem(seed), seed)
        for sizes in (HINTS, {"s0": 7, "s1": 5003}):
            found = resized(problem, sizes)
            assert found.values == at(problem, sizes).values
            assert {s.symbol: s.hint for s in found.sizes} == sizes
        assert resized(problem, {}).digest == problem.digest


def test_a_workspace_grows_with_what_its_call_touches():
    problem = with_sizes(random_problem(0), 0)
    op = next(i for i, o in enumerate(problem.ops) if any(problem.values[v].expr for v in o.inputs))
    ops = list(problem.ops)
    ops[op] = replace(ops[op], workspace=10**9)
    problem = replace(problem, ops=tuple(ops))
    schedule = Planner(problem, CPU).fastest
    formula = peak_formula(problem, schedule)
    peak = evaluate(problem, schedule).peak
    assert peak <= formula.at({}) <= peak * (1 + 1e-6)  # rounded up, term by term
    twice = {name: 2 * hint for name, hint in HINTS.items()}
    assert formula.at(twice) > peak + 5 * 10**8
    again = resized(problem, twice)
    assert again.ops[op].workspace > 15 * 10**8
    assert evaluate(again, schedule).peak == formula.at(twice)


def test_the_largest_size_is_the_last_that_fits():
    for seed in range(20):
        problem = with_sizes(random_problem(seed), seed)
        formula = peak_formula(problem, Planner(problem, CPU).fastest)
        budget = formula.at({}) + 12345
        most = formula.largest("s0", budget)
        if most != 2**40:
            assert formula.at({"s0": most}) <= budget < formula.at({"s0": most + 1})
        assert formula.largest("s0", -1) is None
    with pytest.raises(ValueError, match="no size of this graph: s9; known are s0, s1"):
        formula.at({"s9": 1})


def test_sizes_that_a_graph_cannot_be_of_have_no_peak():
    rows = parse("s0").free_symbols.pop()
    terms = (sympy.Integer(1), rows, parse("s0//(s0//8)"))
    formula = PeakFormula(terms, ((100, 4, 1),), {"s0": 64})
    assert formula.at({}) == 100 + 4 * 64 + 8
    with pytest.raises(ValueError, match="the graph cannot be of these sizes: s0 = 7"):
        formula.at({"s0": 7})
    assert formula.largest("s0", formula.at({"s0": 40})) == 40
    # At 7 nothing is held, but that is no size of the graph.
    assert formula.largest("s0", 100) is None
    problem = with_sizes(random_problem(0), 0)
    values = (replace(problem.values[0], expr="s0//(s0//8)", bytes=8), *problem.values[1:])
    problem = replace(problem, values=values)
    assert resized(problem, {"s0": 16}).values[0].bytes == 8
    with pytest.raises(ValueError, match="the graph cannot be of these sizes: s0 = 7, s1 = 2003"):
        resized(problem, {"s0": 7})
    values = (replace(values[0], expr="s0//(s0//2000)"), *values[1:])
    with pytest.raises(ValueError, match="the graph cannot be of these sizes: s0 = 1009"):
        resized(replace(problem, values=values), {})


def test_blocks_and_workspaces_are_exact_at_the_sizes_that_were_planned():
    rng = random.Random("blocks")
    for seed in range(12):
        problem = with_sizes(random_problem(seed, "inductor"), seed)
        # As a GPU's allocator hands memory out, and with what libraries take.
        values = [replace(v, bytes=-(-v.bytes // 512) * 512) for v in problem.values]
        ops = [replace(op, workspace=rng.choice((0, 513, 70_001))) for op in problem.ops]
        problem = replace(problem, values=tuple(values), ops=tuple(ops))
        schedule = Planner(problem, CPU).fastest
        formula = peak_formula(problem, schedule)
        assert formula.at({}) == evaluate(problem, schedule).peak
        assert formula.at({"s0": 5003, "s1": 9001}) > formula.at({})
        assert resized(problem, {}) == problem


def test_without_symbols_the_formula_is_the_peak():
    for problem in map(random_problem, range(5)):
        schedule = Planner(problem, CPU).fastest
        formula = peak_formula(problem, schedule)
        assert formula.expression == formula.at({}) == evaluate(problem, schedule).peak
    empty = Problem((), (), (), ())
    assert peak_formula(empty, Schedule((), ())).at({}) == 0


def test_sizes_are_read_as_torch_prints_them():
    s0, s1 = (sympy.Symbol(n, integer=True, positive=True) for n in ("s0", "s1"))
    assert parse("4*s0*s1 + 8") == 4 * s0 * s1 + 8
    assert parse("((s0 + 1)//2)") == sympy.floor((s0 + 1) / sympy.Integer(2))
    assert parse("Max(1, s0)").subs(s0, 7) == 7
    assert parse("-s0**2 % 3").subs(s0, 4) == -16 % 3
    # What memory-efficient attention pads its sums to.
    assert [parse("128*CeilToInt(IntTrueDiv(s0, 32))").subs(s0, n) for n in (1, 32, 33)] == [
        128,
        128,
        256,
    ]
    assert parse("TruncToInt(1.5*ToFloat(s0))").subs(s0, 3) == 4


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "s0.real", "1.5", "True", "s0 if s1 else 2", "f(2)", "s0 +", "1//0"],
)
def test_what_is_no_size_is_not_evaluated(text):
    with pytest.raises(ValueError, match="is no size"):
        parse(text)


class Rows(nn.Module):
    """A chain of matmuls with room to recompute, over rows of any number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(torch.exp(torch.tanh(layer(x))))
        return x.square().sum()


def dumped(folder):
    (graph,) = folder.glob("graph_*")
    return (json.loads((graph / f"{name}.json").read_text()) for name in ("problem", "plan"))


def test_the_formula_is_the_peak_of_the_graph_at_another_size(monkeypatch, tmp_path):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")

    def plan(rows, dynamic):
        torch._dynamo.reset()
        recut.clear_reports()
        monkeypatch.setenv("RECUT_DUMP", str(folder := tmp_path / str(rows)))
        torch.manual_seed(0)
        x = torch.randn(rows, WIDTH, dtype=torch.float64)
        if dynamic:
            torch._dynamo.mark_dynamic(x, 0)
        with floor_expected():
            by_dynamo(Rows().double(), dynamic=None if dynamic else False)(x)
        problem, plan = dumped(folder)
        return Problem.from_json(problem), plan, recut.reports()[-1]

    problem, found, report = plan(200, dynamic=True)
    (size,) = problem.sizes
    assert (size.hint, size.source) == (200, "x.size()[0]")
    assert report.sizes == problem.sizes
    schedule = Schedule(tuple(found["forward"]), tuple(found["backward"]))
    assert report.formula == peak_formula(problem, schedule)
    assert found["peak_expr"] == str(report.formula.expression)
    assert size.symbol in found["peak_expr"]
    assert report.formula.at({}) == found["peak"] == report.peak
    for rows in (64, 5000):
        other, *_ = plan(rows, dynamic=False)
        assert other.sizes == ()
        assert evaluate(other, schedule).peak == report.formula.at({size.symbol: rows})


def test_the_report_says_up_to_which_size_a_budget_holds(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "2MiB")
    x = torch.randn(200, WIDTH, dtype=torch.float64)
    torch._dynamo.mark_dynamic(x, 0)
    by_dynamo(Rows().double())(x)
    (report,) = recut.reports()
    (size,) = report.sizes
    most = report.formula.largest(size.symbol, report.budget)
    assert f"planned for x.size()[0] = 200 (the budget holds up to {most})" in report.line()
    assert report.formula.at({size.symbol: most}) <= 2 * 2**20


def test_a_size_that_cannot_be_read_costs_the_formula_and_not_the_plan(monkeypatch, caplog):
    monkeypatch.delitem(of_sizes._FUNCTIONS, "CeilToInt")
    module = Padded()
    x = torch.randn(200, WIDTH, dtype=torch.float64)
    torch._dynamo.mark_dynamic(x, 0)
    by_dynamo(module.double())(x).backward()
    (report,) = recut.reports()
    assert report.formula is None
    assert "CeilToInt" in caplog.text
    assert "holds up to" not in report.line()


def test_a_graph_that_divides_by_a_share_of_a_size_is_planned(monkeypatch):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "2MiB")
    x = torch.randn(200, WIDTH, dtype=torch.float64)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = by_dynamo(Grouped().double())
    compiled(x).backward()
    (report,) = recut.reports()
    assert "the budget holds up to" in report.line()
    assert report.formula.at({report.sizes[0].symbol: 200}) == report.peak


class Grouped(nn.Module):
    """It divides its rows among a group for every eight of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        groups = x.shape[0] // 8
        each = x.shape[0] // groups
        y = torch.tanh(self.layer(x))[: groups * each]
        return (y.view(groups, each, WIDTH).sum(0) ** 3).sum()


class Padded(nn.Module):
    """It makes a tensor of as many rows as its input has, rounded up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = torch.tanh(self.layer(x))
        rows = math.ceil(x.shape[0] / 32) * 32
        return (torch.nn.functional.pad(y, (0, 0, 0, rows - x.shape[0])) ** 3).sum()


def test_kernels_hold_what_the_formula_says_at_other_sizes():
    torch.manual_seed(0)
    model = SharedMLP(dropout=0.0)
    x = torch.randn(512, WIDTH)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(
        model, backend=recut.ckpt_backend, options={"memory_budget": 0.01}, fullgraph=True
    )
    with floor_expected():
        compiled(x).backward()
    (report,) = recut.reports()
    for rows in (256, 512, 4096):
        x = torch.randn(rows, WIDTH)
        want = torch.autograd.grad(model(x), list(model.parameters()))
        got = torch.autograd.grad(compiled(x), list(model.parameters()))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
        peak = measure.peak_bytes(compiled, (x,))
        said = report.formula.at({report.sizes[0].symbol: rows})
        print(f"{rows} rows: said {said}, measured {peak}")
        assert 0.9 * said <= peak <= 1.01 * said + 4
    assert len(recut.reports()) == 1  # one graph for all
