"""``recut fit``: the largest batch, or length, that trains under a budget."""

from __future__ import annotations

import argparse
import sys

from recut.commands.console import FOUND, WELL, add_json, answer, refuse, working
from recut.commands.factory import add_factory, made, traced, traced_call
from recut.errors import SettingError
from recut.fit import Fit, Sizes, largest
from recut.partitioners.units import size as bytes_text
from recut.planned import PlannedGraph
from recut.planning import Traced, planned, read_settings
from recut.settings import Settings
from recut.symbolic import Symbolic, symbolic


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its arguments."""
    parser.description = (
        "Find the largest size that still has a plan under a budget. The function is "
        "called with the size as a keyword. Where the model can be traced once for all sizes, that "
        "says where to look; each size that is tried is traced and planned, which takes as long as "
        "`recut plan`. Without, a handful is tried. Exit status: 1 where none fits."
    )
    parser.epilog = (
        "example: recut fit train.py:make --size batch=1..256 --budget 80GiB --machine h100"
    )
    add_factory(parser)
    parser.add_argument("--budget", required=True, help='bytes, such as "40GiB"')
    parser.add_argument(
        "--size",
        required=True,
        metavar="NAME=FIRST..LAST[:STEP]",
        help="the keyword to vary, and the range: batch=1..64, length=512..65536:512",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Search and tell."""
    settings = read_settings(options.budget, options.machine)
    if settings.memory_budget.kind != "bytes":
        raise SettingError(
            "budget", options.budget, "a share fits at every size", 'give bytes, such as "40GiB"'
        )
    budget = int(settings.memory_budget.value)
    sizes = Sizes.read(options.size)
    if sizes.name in dict(options.set):
        return refuse(f"--set and --size both give {sizes.name}")

    fitting: dict[int, Traced] = {}  # the largest so far
    seen: dict[int, int] = {}
    guide = _guide(options, settings, sizes, budget)

    def needs(size: int) -> int:
        if guide and (need := guide.surely_over(size, budget, seen)):
            told(size, need, " by the graph of symbolic sizes")
            return need
        with working(f"tracing and planning {sizes.name}={size}"):
            graph = traced(options, settings, **{sizes.name: size})
            need = graph.planner(settings.solver_seconds).floor
        if need <= budget and size > max(fitting, default=0):
            fitting.clear()
            fitting[size] = graph
        seen[size] = need
        told(size, need)
        return need

    def told(size: int, need: int, how: str = "") -> None:
        verdict = "fits" if need <= budget else "is too large"
        print(f"{sizes.name}={size} {verdict}: {bytes_text(need)}{how}", file=sys.stderr)

    found = largest(sizes, budget, needs, guide.expected if guide else None)
    if found.size is None:
        print(
            f"recut: not even {sizes.name}={sizes.first} fits: the least memory that a plan was "
            f"found for is {bytes_text(found.asked[sizes.first])}",
            file=sys.stderr,
        )
        return FOUND
    with working(f"planning {sizes.name}={found.size}"):
        graph = planned(fitting[found.size], settings)
    return _tell(options, sizes, found, graph)


def _guide(
    options: argparse.Namespace, settings: Settings, sizes: Sizes, budget: int
) -> Symbolic | None:
    """Return the model with symbolic sizes, or None, with a line that says why."""
    with working(f"tracing for every {sizes.name} at once"):
        try:
            found = symbolic(
                sizes,
                lambda size: made(options, **{sizes.name: size}),
                lambda call, dynamic: traced_call(options, settings, call, dynamic),
                settings.solver_seconds,
                small=options.real,
            )
            if isinstance(found, Symbolic):
                found.look(sizes, budget)
                return found
        except Exception as error:  # a size by itself may well be traced, or says what is wrong
            found = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    print(f"each {sizes.name} is traced by itself: {found}", file=sys.stderr)
    return None


def _tell(options: argparse.Namespace, sizes: Sizes, found: Fit, graph: PlannedGraph) -> int:
    explained = graph.explain()
    if options.json:
        about = {"name": sizes.name, "size": found.size, "bounded": found.bounded}
        answer({**about, "needs": found.asked, "plan": explained.to_json()})
        return WELL
    more = "" if found.bounded else " (the last of the range: a larger one may fit as well)"
    print(f"{sizes.name}={found.size} is the largest that fits{more}\n")
    print("\n".join(explained.summary()))
    return WELL
