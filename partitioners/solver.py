"""Where the solver is asked (HiGHS through scipy), and what an answer that is none turns into.

A solver that raises, gives up or answers with what is no number costs the better plan and never the
training: planners go on with what they have then, and the plan's planner says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from recut.partitioners.tables import Floats

# What milp's status says of an answer.
_OPTIMAL, _INFEASIBLE = 0, 2


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


def minimise(
    cost: Floats,
    matrix: csr_array,
    low: Floats | float,
    high: Floats | float,
    bounds: Bounds,
    presolve: bool = True,
) -> Answer:
    """Solve a linear program: of the x within ``bounds`` with low <= matrix @ x <= high the least.

    Args:
        cost: of each column, none of it negative.
        matrix: a row for each constraint.
        low: what each row is at least.
        high: what each row is at most.
        bounds: what each column lies between.
        presolve: whether the solver first looks for what it can leave out.
    """
    try:
        result = milp(
            cost,
            constraints=LinearConstraint(matrix, low, high),
            bounds=bounds,
            options={"presolve": presolve},
        )
    except Exception as error:  # whatever it is, a plan without it is as right
        return Answer(None, 0.0, f"{type(error).__name__}: {error}")
    if result.status == _INFEASIBLE:
        return Answer(None, np.inf)
    dual = getattr(result, "mip_dual_bound", None)
    bound = float(dual if dual is not None else result.fun or 0.0)
    bound = bound if np.isfinite(bound) else 0.0
    if result.status != _OPTIMAL:
        return Answer(None, bound, str(result.message))
    x = np.asarray(result.x, dtype=np.float64)
    if x.shape != np.shape(cost) or not np.isfinite(x).all():
        return Answer(None, 0.0, "the solution is none of numbers")
    return Answer(x, bound)
