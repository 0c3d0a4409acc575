"""A plan's peak as a formula of the sizes that its graph takes as symbols.

Which values are in memory at a moment does not depend on sizes; what they weigh does. So the peak
is the largest of some sums, one for each moment. Sums that are at most another one whatever the
sizes are left out, which leaves a handful.

Example, for a graph whose batch is the symbol s0: ``Max(4096*s0 + 81920, 6144*s0)``.

What a library call takes while it runs is known at the hint only. At other sizes it is counted in
proportion to what the call reads and makes.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import sympy

from recut.partitioners.evaluator import Liveness, measure
from recut.partitioners.problem import Problem
from recut.partitioners.schedule import Schedule

_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
}
# How torch prints functions of sizes (torch/utils/_sympy/functions.py), and what they are.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Max": sympy.Max,
    "Min": sympy.Min,
    "Mod": sympy.Mod,
    "PythonMod": sympy.Mod,
    "FloorDiv": lambda a, b: sympy.floor(a / b),
    "CleanDiv": lambda a, b: sympy.floor(a / b),
    "CeilDiv": lambda a, b: sympy.ceiling(a / b),
    "ModularIndexing": lambda a, b, c: sympy.Mod(sympy.floor(a / b), c),
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "CeilToInt": sympy.ceiling,
    "FloorToInt": sympy.floor,
    "TruncToInt": sympy.floor,  # sizes are positive
    "TruncToFloat": sympy.floor,
    "RoundToInt": lambda a: sympy.floor(a + sympy.Rational(1, 2)),
    "ToFloat": lambda a: a,
    "Identity": lambda a: a,
    "PowByNatural": operator.pow,
    "FloatPow": operator.pow,
    "LShift": lambda a, b: a * 2**b,
    "RShift": lambda a, b: sympy.floor(a / 2**b),
}
# A size nobody would ask for: 2**40.
_MOST = 1 << 40


def parse(text: str) -> sympy.Expr:
    """Read a size as torch prints it, for problem files are data: nothing of them is evaluated.

    Raises:
        ValueError: it holds anything but whole numbers, symbols and functions that are known.
    """
    try:
        size = sympy.sympify(_read(ast.parse(text, mode="eval").body))
    except (SyntaxError, RecursionError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r} is no size: {error}") from error
    if size.is_number and not size.is_integer:
        raise ValueError(f"{text!r} is no size: it is no whole number")
    return size


def _read(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Constant(value=float(value)):
            return sympy.nsimplify(value, rational=True)  # exact, as far as its digits go
        case ast.Name(id=name):
            return sympy.Symbol(name, integer=True, positive=True)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_read(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_read(left), _read(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_read, args))
    raise ValueError(f"{ast.unparse(node)!r} is no size that is known")


@dataclass(frozen=True)
class PeakFormula:
    """The peak of a plan, in bytes, at any sizes.

    Attributes:
        terms: products of symbols, or functions of them; the first is 1.
        sums: for each moment that may be the worst what each term counts, in bytes.
        hints: what the symbols stood for when the plan was made.
    """

    terms: tuple[sympy.Expr, ...]
    sums: tuple[tuple[int, ...], ...]
    hints: Mapping[str, int]

    @cached_property
    def expression(self) -> sympy.Expr:
        """The formula: the largest of some sums."""
        sums = [sympy.Add(*map(operator.mul, row, self.terms)) for row in self.sums]
        return sympy.Max(*sums, evaluate=False) if len(sums) > 1 else sums[0]

    @cached_property
    def _terms_at(self) -> Callable[..., list[Any]]:
        return _function(self.terms, self.hints)

    def at(self, sizes: Mapping[str, int]) -> int:
        """Return the peak, in bytes, at some sizes by symbol; what is not given is as planned.

        Raises:
            ValueError: a symbol that the formula does not know, or a size that its graph cannot be
                of (it divides by an eighth of it, and is asked for 7).
        """
        if unknown := sorted(sizes.keys() - self.hints.keys()):
            known = ", ".join(self.hints) or "none"
            raise ValueError(f"no size of this graph: {', '.join(unknown)}; known are {known}")
        at = {name: int(sizes.get(name, hint)) for name, hint in self.hints.items()}
        terms = _numbers(self._terms_at, at)
        return max(int(sum(map(operator.mul, row, terms))) for row in self.sums)

    def largest(self, symbol: str, budget: int) -> int | None:
        """Return up to which size the peak stays within ``budget`` bytes, the others as planned.

        None where no size does; 2**40 where all do.

        Raises:
            ValueError: a symbol that the formula does not know.
        """
        self.at({symbol: self.hints.get(symbol, 0)})  # refuses a symbol that is not known

        def peak(size: int) -> int:
            """Return the peak; 0 at sizes that are too small for the graph."""
            with suppress(ValueError):
                return self.at({symbol: size})
            return 0

        low, high = 0, 1  # low fits, or is 0; high does not
        while high < _MOST and peak(high) <= budget:
            low, high = high, 2 * high
        if high >= _MOST:
            return _MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if peak(middle) <= budget else (low, middle)
        return low if low and peak(low) else None


def peak_formula(problem: Problem, schedule: Schedule) -> PeakFormula:
    """Return the peak of a schedule as a formula of the problem's sizes.

    Raises:
        ValueError: a value's size is none that can be read.
    """
    known = {size.symbol: size.hint for size in problem.sizes}
    weights, terms, at_hint = _weights(problem)
    rows = _largest(_moments(problem, measure(problem, schedule), weights, at_hint))
    return PeakFormula(terms, tuple(tuple(map(int, row)) for row in rows), known)


def resized(problem: Problem, sizes: Mapping[str, int]) -> Problem:
    """Return a problem as it is where its symbols stand for other sizes.

    What values weigh is exact, and a library call's workspace in proportion, as in the formula.
    Prices stay as they were, so the least memory of such a problem says much, and its times little.

    Args:
        problem: of symbolic sizes.
        sizes: by symbol; what is not given stays.

    Raises:
        ValueError: a value's size is none that can be read, or the graph cannot be of such sizes.
    """
    known = {size.symbol: size.hint for size in problem.sizes} | dict(sizes)
    weights, terms, at_hint = _weights(problem)
    numbers = _numbers(_function(terms, known), known)

    def weigh(row: np.ndarray[Any, Any]) -> int:
        return sum(map(operator.mul, map(int, row), numbers))

    values = tuple(
        replace(value, bytes=weigh(row)) if value.bytes else value
        for value, row in zip(problem.values, weights, strict=True)
    )
    ops = tuple(
        replace(op, workspace=weigh(_workspace(problem, i, weights, at_hint)))
        if op.workspace
        else op
        for i, op in enumerate(problem.ops)
    )
    hints = tuple(replace(size, hint=known[size.symbol]) for size in problem.sizes)
    return replace(problem, values=values, ops=ops, sizes=hints)


def _function(terms: Sequence[sympy.Expr], symbols: Mapping[str, int]) -> Callable[..., list[Any]]:
    """Return what gives the numbers of terms for those of some symbols, in their order."""
    given = [sympy.Symbol(name, integer=True, positive=True) for name in symbols]
    function: Callable[..., list[Any]] = sympy.lambdify(given, terms, modules="math")
    return function


def _numbers(function: Callable[..., list[Any]], sizes: Mapping[str, int]) -> list[int]:
    """Return the numbers of terms at some sizes.

    Raises:
        ValueError: there are none at these.
    """
    try:
        return [int(number) for number in function(*sizes.values())]
    except ZeroDivisionError as error:
        at = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"the graph cannot be of these sizes: {at} ({error})") from error


def _weights(
    problem: Problem,
) -> tuple[np.ndarray[Any, Any], tuple[sympy.Expr, ...], np.ndarray[Any, Any]]:
    """Return what each value counts of each term, the terms, and their numbers at the hints."""
    hints = {size.symbol: size.hint for size in problem.sizes}
    read: dict[str, dict[sympy.Expr, int]] = {}
    for text in dict.fromkeys(value.expr for value in problem.values):
        expr = parse(text) if text else sympy.Integer(0)
        if {s.name for s in expr.free_symbols} <= hints.keys():
            parts = sympy.expand(expr).as_coefficients_dict()
            if all(number.is_integer for number in parts.values()):
                read[text] = {term: int(number) for term, number in parts.items()}
    found = {term: None for parts in read.values() for term in parts if term != 1}
    terms = (sympy.Integer(1), *sorted(found, key=str))
    place = {term: k for k, term in enumerate(terms)}
    weights = np.zeros((len(problem.values), len(terms)), dtype=np.int64)
    numbers = np.array(_numbers(_function(terms, hints), hints), dtype=np.int64)
    for v, value in enumerate(problem.values):
        if value.expr and value.bytes and value.expr in read:
            for term, number in read[value.expr].items():
                weights[v, place[term]] = number
            # What an allocator rounds up to blocks is taken as constant.
            weights[v, 0] += value.bytes - weights[v] @ numbers
        else:
            weights[v, 0] = value.bytes
    return weights, terms, numbers


def _moments(
    problem: Problem,
    lives: Liveness,
    weights: np.ndarray[Any, Any],
    at_hint: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Return what is in memory at each moment, by terms."""
    order = lives.trace.order
    size = weights[lives.value] * (lives.bytes > 0)[:, None]
    change = np.zeros((len(order) + 2, weights.shape[1]), dtype=np.int64)
    np.add.at(change, np.maximum(lives.start, 0), size)
    np.subtract.at(change, lives.end + 1, size)
    live = np.cumsum(change[: len(order)], axis=0)
    np.subtract.at(live, lives.start[lives.taken], size[lives.taken])
    for i in np.flatnonzero(problem.tables.workspace).tolist():
        live[order == i] += _workspace(problem, i, weights, at_hint)
    return live


def _workspace(
    problem: Problem, i: int, weights: np.ndarray[Any, Any], at_hint: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the workspace of an op by terms: in proportion to what it reads and makes."""
    op = problem.ops[i]
    touched = [*op.inputs, *op.outputs]
    total = sum(problem.values[v].bytes for v in touched)
    plain = np.zeros(weights.shape[1], dtype=np.int64)
    plain[0] = op.workspace
    share = weights[touched].sum(axis=0)
    if not total or not share[1:].any():
        return plain
    grown: np.ndarray[Any, Any] = -(-op.workspace * share // total)
    grown[0] += op.workspace - grown @ at_hint  # no more than planned at the hints
    return grown


def _largest(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return those of some sums that are not at most another one whatever the sizes."""
    rows = np.unique(rows, axis=0)[::-1]
    kept: list[np.ndarray[Any, Any]] = []
    for row in rows[np.argsort(-rows.sum(axis=1), kind="stable")]:
        if not any((other >= row).all() for other in kept):
            kept.append(row)
    return np.array(kept) if kept else np.zeros((1, rows.shape[1]), dtype=np.int64)
