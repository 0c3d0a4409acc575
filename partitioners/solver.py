"""Where the solver is asked (HiGHS), and what an answer that is none turns into.

A program is mostly asked again for a little more or less memory. The simplex method then goes on
from where it was, which takes a tenth of the time: so a program is kept, not its numbers only.

A solver that raises, gives up or answers with what is no number costs the better plan and never the
training: planners go on with what they have then, and the plan's planner says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
from scipy.sparse import csr_array

from recut.partitioners.tables import Flags, Floats

# What rows may be off by shows in a bound on whole numbers by as much, of the largest cost.
_SHAVED = 1e-6
# A solution in whole numbers that costs no more than this share over the bound is the best.
_GAP = 1e-5


@dataclass(frozen=True)
class Answer:
    """What a solver said of a linear program.

    Attributes:
        x: the solution, None where there is none.
        bound: what no solution costs less than: safe against the solver's tolerances; infinite
            where the program is infeasible, 0 where nothing is known.
        failed: what went wrong, or "".
    """

    x: Floats | None
    bound: float
    failed: str = ""


class LinearProgram:
    """Of the x between ``low`` and ``high`` with least <= matrix @ x <= most the cheapest.

    Args:
        cost: of each column, none of it negative.
        matrix: a row for each constraint.
        low: what each column is at least.
        high: what each column is at most.
        integer: the columns that :meth:`whole` has in whole numbers; all where not given.
    """

    def __init__(
        self,
        cost: Floats,
        matrix: csr_array,
        low: Floats | float = 0.0,
        high: Floats | float = 1.0,
        integer: Flags | None = None,
    ) -> None:
        self.rows, self.columns = matrix.shape
        self._integer = np.ones(self.columns, dtype=np.bool_) if integer is None else integer
        self._cost = cost
        self._matrix = matrix
        self._limits = low, high
        self._highs: Any = None
        self._basis: Any = None
        self._asked_for = np.zeros((2, self.rows))

    def solve(self, least: Floats | float, most: Floats | float, go_on: bool = False) -> Answer:
        """Solve the program for some limits of its rows.

        Args:
            least: what each row is at least.
            most: what each row is at most.
            go_on: start from the last answer that was found without; an answer depends on nothing
                else that was asked before, so that the same questions give the same plans.
        """
        try:
            highs = self._asked(least, most, go_on)
            status = highs.getModelStatus()
            if status == highspy.HighsModelStatus.kInfeasible:
                return Answer(None, np.inf)
            if status != highspy.HighsModelStatus.kOptimal:
                return Answer(None, 0.0, highs.modelStatusToString(status))
            x = np.array(highs.getSolution().col_value, dtype=np.float64)
            bound = float(highs.getInfo().objective_function_value)
        except Exception as error:  # whatever it is, a plan without it is as right
            self._highs = self._basis = None
            return Answer(None, 0.0, f"{type(error).__name__}: {error}")
        if x.shape != (self.columns,) or not np.isfinite(x).all() or not np.isfinite(bound):
            return Answer(None, 0.0, "the solution is none of numbers")
        return Answer(x, bound)

    def whole(
        self,
        least: Floats | float,
        most: Floats | float,
        nodes: int,
        seconds: float = math.inf,
    ) -> Answer:
        """Solve the program with ``integer`` columns in whole numbers, as far as that goes.

        The answer's x is the best solution that was found, None without one.

        Args:
            least: what each row is at least.
            most: what each row is at most.
            nodes: how many nodes of the search tree are looked at.
            seconds: time for that.
        """
        try:
            highs = self._asked(least, most, nodes=nodes, seconds=seconds)
            if highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
                return Answer(None, np.inf)
            info = highs.getInfo()
            bound = float(info.mip_dual_bound)
            found = math.isfinite(info.objective_function_value)
            x = np.array(highs.getSolution().col_value, dtype=np.float64) if found else None
        except Exception as error:  # as above: a bound is worth no failure
            return Answer(None, 0.0, f"{type(error).__name__}: {error}")
        if x is not None and (x.shape != (self.columns,) or not np.isfinite(x).all()):
            x = None
        return Answer(x, bound * (1 - _SHAVED) if math.isfinite(bound) else 0.0)

    def _asked(
        self,
        least: Floats | float,
        most: Floats | float,
        go_on: bool = False,
        nodes: int = 0,
        seconds: float = math.inf,
    ) -> Any:
        """Return the solver after it has run; with nodes one of its own, for whole numbers."""
        limits = np.stack([np.broadcast_to(x, self.rows) for x in (least, most)]).astype(np.float64)
        if nodes:
            highs = self._passed(*limits)
            which = np.flatnonzero(self._integer)
            kinds = np.full(len(which), int(highspy.HighsVarType.kInteger), dtype=np.uint8)
            highs.changeColsIntegrality(len(which), which, kinds)
            highs.setOptionValue("presolve", "on")
            highs.setOptionValue("mip_max_nodes", nodes)
            highs.setOptionValue("mip_rel_gap", _GAP)
            highs.setOptionValue("time_limit", max(seconds, 0.0))
            highs.run()
            return highs
        if self._highs is None:
            self._highs = self._passed(*limits)
        else:
            # Only what memory rows may hold changes, a few dozen numbers.
            for row in np.flatnonzero((limits != self._asked_for).any(axis=0)).tolist():
                self._highs.changeRowBounds(row, *limits[:, row].tolist())
        self._asked_for = limits
        if go_on and self._basis is not None:
            self._highs.setBasis(self._basis)
            self._highs.run()
        else:
            self._highs.clearSolver()
            self._highs.run()
            self._basis = self._highs.getBasis()
        return self._highs

    def _passed(self, least: Floats, most: Floats) -> Any:
        """Return a solver that knows the program."""
        by_column = self._matrix.tocsc()
        program: Any = highspy.HighsLp()
        program.num_col_, program.num_row_ = self.columns, self.rows
        program.col_cost_ = self._cost
        program.col_lower_, program.col_upper_ = (
            np.broadcast_to(x, self.columns).astype(np.float64) for x in self._limits
        )
        program.row_lower_, program.row_upper_ = least, most
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = by_column.indptr
        program.a_matrix_.index_ = by_column.indices
        program.a_matrix_.value_ = by_column.data
        # Not ``Highs``, which adds callbacks to Python and starts with a line on the terminal.
        highs: Any = highspy._Highs()  # type: ignore[attr-defined, unused-ignore]
        highs.setOptionValue("output_flag", False)
        # It finds little in these programs, and takes as long as the simplex method.
        highs.setOptionValue("presolve", "off")
        highs.setOptionValue("threads", 1)
        highs.passModel(program)
        return highs


__all__ = ["Answer", "LinearProgram"]
