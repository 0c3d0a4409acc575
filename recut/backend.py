"""The ``torch.compile`` backend: settings in, Inductor with recut's partitioner out."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import fx

from recut.choosing import Experience
from recut.errors import RecutError, SettingError
from recut.larger import noticed
from recut.machines import in_force
from recut.partitioners.errors import PlanningError
from recut.passes import _torch
from recut.passes.fusion import inductor_patches, wrap_inner_compile
from recut.passes.prices import declared_key
from recut.passes.scheduled import Observation
from recut.pipeline import Partitioned, partition_under
from recut.report import GraphReport
from recut.settings import Settings

log = logging.getLogger("recut")


@cache
def _sources_digest() -> str:
    """Return a hash over every source file of the package: any of them may change a plan."""
    root = Path(__file__).parent
    digest = hashlib.sha256(sys.version.encode())
    for folder in (root, root / "commands", root / "passes", root / "partitioners"):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


# Attempts at one graph; mostly two are enough. At the last one a fraction gets what its plan holds,
# whatever that is, and a budget in bytes the floor plan or a refusal.
_ATTEMPTS = 6


# Told of each accepted training graph: its report, and the code of its forward and backward.
Watcher = Callable[[GraphReport, Any, Any], None]
_watcher: Watcher | None = None


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` of each training graph that is compiled inside the block, in any thread."""
    global _watcher  # noqa: PLW0603 - a script that is watched brings its own torch.compile calls
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


class OverBudget(Exception):  # noqa: N818 - an answer, not a failure
    """Ends the compilation of a graph whose kernels exceed the budget; never reaches a user."""


class Partitioner(_torch.CustomPartitionerFn):  # type: ignore[misc, name-defined, unused-ignore]
    """Inductor's partitioner hook, bound to the settings of one ``torch.compile`` call.

    It remembers what the kernels of an attempt held beyond their plan, and plans again with that.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.machines = in_force(settings)
        self.experience: dict[str, Experience] = {}
        self.current: dict[str, Partitioned] = {}
        self.seen: dict[str, int] = {}  # the highest peak of the current attempt's kernels
        self.code: dict[tuple[str, bool], Any] = {}  # the current attempt's, by digest and part
        self.refused: Observation | None = None
        # What "auto" stands for is known while planning, and never the same twice.
        self.once = uuid4().hex if settings.memory_budget.kind == "auto" else None

    def __deepcopy__(self, _memo: object) -> Partitioner:
        """Return itself: torch copies its configuration now and then, and what is learnt is one."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without what was learnt: torch's cache keys hold its configuration, pickled."""
        return Partitioner, (self.settings,)

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Partition ``gm``; called by Inductor after its joint-graph passes."""
        result = partition_under(
            self.settings,
            gm,
            num_fwd_outputs=kwargs["num_fwd_outputs"],
            static_lifetime_input_indices=kwargs.get("static_lifetime_input_indices"),
            compiler="inductor",
            machines=self.machines,
            experience=self.experience,
        )
        if result.digest is not None:
            self.current[result.digest] = result
        return result.forward, result.backward

    def listen(self, seen: Observation) -> None:
        """Take note of what a graph's kernels hold.

        Raises:
            OverBudget: it is more than the plan has promised.
        """
        self.seen[seen.digest] = max(seen.peak, self.seen.get(seen.digest, 0))
        # A trial's forward has no limit of its own: it is held to the backward's.
        seen = replace(seen, peak=self.seen[seen.digest])
        if not seen.fits:
            self.refused = seen
            raise OverBudget(f"kernels hold {seen.peak} of {seen.limit} bytes")

    def keep(self, digest: str, is_backward: bool, code: Any) -> None:
        """Keep the code of a planned graph until the attempt is accepted or dropped."""
        self.code[digest, is_backward] = code

    def learn(self, spent: bool) -> bool:
        """Prepare the next attempt by what the one before has shown; False if it showed nothing.

        Args:
            spent: the attempts are used up.
        """
        seen, self.refused = self.refused, None
        if seen is None:
            return False
        attempt = self.current[seen.digest]
        report = attempt.report
        assert report is not None, "only planned graphs are observed"
        before = self.experience.get(seen.digest)
        tried = dict(before.tried) if before else {}
        # The kernels of plans that hold more say nothing of a floor plan's.
        observed = dict(before.observed) if before and attempt.trial != "plain" else {}
        if attempt.trial:
            tried[attempt.trial] = seen.peak
        for op, size in seen.excess.items():
            observed[op] = observed.get(op, 0) + size
        self.experience[seen.digest] = Experience(attempt.budget, observed, tried, spent)
        log.debug(
            "kernels hold %d bytes at the worst moment, %d were planned: planning again",
            seen.peak,
            report.peak,
        )
        self.current.clear()
        self.seen.clear()
        self.code.clear()
        return True

    def announce(self, attempts: int) -> list[GraphReport]:
        """Report the accepted partitions, and return what was reported."""
        reports = []
        for digest, result in self.current.items():
            report = result.announce(self.seen.get(digest), attempts)
            parts = [
                self.code[key] for key in ((digest, False), (digest, True)) if key in self.code
            ]
            if report is None:
                continue
            reports.append(report)
            if _watcher is not None and len(parts) == 2:
                _watcher(report, *parts)
        self.code.clear()
        return reports

    def uuid(self) -> object:
        """Return what the compile caches key a plan on: sources, settings and machine.

        What was learnt is no part of it: it follows from these and the graph. Never ``None``:
        Inductor gives a partitioner without an id the key of no partitioner at all, and would
        serve a stale plan.
        """
        machines = tuple(self.machines[device].key() for device in sorted(self.machines))
        # Libraries allocate by thread and by the width of a vector.
        libraries = (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
        prices = (machines, declared_key())
        return ("recut", _sources_digest(), self.settings.key(), prices, libraries, self.once)


def ckpt_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """Compile a graph with Inductor under a peak-memory budget: ``torch.compile(backend=...)``.

    Args:
        gm: the graph that Dynamo captured.
        example_inputs: its inputs.
        mode: an Inductor mode ("default", "max-autotune", ...).
        options: see :class:`recut.settings.Settings`.

    Raises:
        SettingError: an unknown option, or a value that cannot be read.
        InfeasibleBudget: no plan fits the budget.
    """
    try:
        return _compile(gm, example_inputs, mode, options)
    except (RecutError, PlanningError) as error:
        raise _bare(error) from error.__cause__


def _bare(error: Exception) -> Exception:
    """Return an error as one that Dynamo does not wrap: it can be caught by its type."""
    kind = type(error)
    unwrapped = type(
        kind.__name__,
        (kind, _torch.ShortenTraceback),
        {"__module__": kind.__module__, "__init__": lambda *_: None, "__str__": kind.__str__},
    )
    bare: Exception = unwrapped(*error.args)
    bare.__dict__.update(error.__dict__, first_useful_frame=None)
    return bare.with_traceback(error.__traceback__)


def _compile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    mode: str | None,
    options: Mapping[str, object] | None,
) -> Callable[..., Any]:
    import torch._inductor
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    settings = Settings.read(options)
    patches: dict[str, Any] = {}
    if mode is not None and mode != "default":
        modes = torch._inductor.list_mode_options()
        if mode not in modes:
            raise SettingError(
                "mode", mode, "unknown mode", f"use one of {', '.join(sorted(modes))}"
            )
        patches.update(modes[mode])
    patches.update(settings.inductor)
    patches.update(inductor_patches(patches))
    partitioner = Partitioner(settings)
    patches["custom_partitioner_fn"] = partitioner
    for attempt in count(1):
        try:
            # The backward is compiled at once: after the first forward it could not be planned
            # again.
            with _torch.functorch_config.patch(force_non_lazy_backward_lowering=True):
                compiled: Any = compile_fx(
                    gm,
                    list(example_inputs),
                    inner_compile=wrap_inner_compile(
                        compile_fx_inner, partitioner.listen, partitioner.keep
                    ),
                    config_patches=patches,
                )
        except Exception:
            # It ends: of a graph whose attempts are spent only its floor plan is tried.
            if not partitioner.learn(attempt + 1 >= _ATTEMPTS):
                raise
        else:
            for report in partitioner.announce(attempt):
                compiled = noticed(compiled, gm.graph, report)
            return compiled  # type: ignore[no-any-return]
    raise AssertionError("count has no end")
