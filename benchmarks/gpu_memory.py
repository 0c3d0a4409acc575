"""Fixed memory: for each method and cap the largest batch that fits, and its tokens per second.

A *probe* is one batch size, compiled and trained for a few whole steps with AdamW.  Peaks are
close to linear in the batch, so a line through two of them says where the next probe belongs.
recut fills whatever budget it gets; its line goes through the floors that it names where a budget
is too low, which costs a trace and a plan and no generated code.  Two such questions come first.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import contest, measure
from benchmarks.contest import INFEASIBLE, KINDS, Kind
from benchmarks.gpu_setup import BLOCK, MIB, STOCK, Bench, Method, Size, Tell, out_of_memory
from benchmarks.resume import Clock, Record

_ATTEMPTS = 3  # at one batch under one cap, each with a budget lower by what the last was over
_GROWTH = 8  # how far beyond the largest known batch a line is trusted
_QUERY = 2  # bytes; a budget that no plan meets, so that the floor is told


@dataclass(frozen=True)
class Probe:
    """What one batch size was asked and what it did; bytes, None where unknown.

    Attributes:
        method: label of the method.
        batch: sequences in a step.
        cap: what the whole step may take; recut's only. Without one, recut is asked for its floor.
        margin: how much less than the cap's rest recut is given.
        resident: what is alive before the forward: weights, moments of the optimizer, inputs.
        budget: what recut was given.
        predicted: what its plan takes.
        peak: the most that was alive at once, all included.
        need: the least that recut can do with, all included.
        seconds: median of a training step.
        failure: why there are no measurements.
    """

    method: str
    batch: int
    cap: int | None = None
    margin: int = 0
    resident: int = 0
    budget: int | None = None
    predicted: int | None = None
    peak: int | None = None
    need: int | None = None
    seconds: float | None = None
    failure: str | None = None

    @property
    def full(self) -> bool:
        """Whether the batch was too large, for the device or for the budget."""
        failure = self.failure
        return failure is not None and (failure == INFEASIBLE or out_of_memory(failure))

    @property
    def broken(self) -> bool:
        """Whether it failed for another reason than memory."""
        return self.failure is not None and not self.full


def probe_of(stored: dict[str, Any]) -> Probe:
    """The probe behind its stored form, which also says how long it took."""
    return Probe(**{key: value for key, value in stored.items() if key != "spent"})


@dataclass(frozen=True)
class Bracket:
    """What is known of a method under a cap.

    Attributes:
        fits: the largest batch that fits; 0 where none is known.
        fails: the smallest that does not; None where none is known.
        needs: bytes by batch, for the line.
        settled: nothing can be found out any more.
    """

    fits: int
    fails: int | None
    needs: dict[int, int]
    settled: bool = False


def bracket(method: Method, cap: int, probes: Sequence[Probe]) -> Bracket:
    """What ``probes`` tell of a method under ``cap``."""
    mine = [p for p in probes if p.method == method.label]
    recut = method.kind == "recut"
    here = [p for p in mine if not recut or p.cap == cap]
    needs = {p.batch: value for p in mine if (value := p.need if recut else p.peak) is not None}
    fits = {p.batch for p in here if p.peak is not None and p.peak <= cap}
    fails = {p.batch for p in here if p.full}
    fails |= {batch for batch, need in needs.items() if need > cap}
    if recut:
        fails |= {p.batch for p in here if _overs(here, p.batch, cap) >= _ATTEMPTS}
    fails -= fits
    broken = any(p.broken for p in here)
    return Bracket(max(fits, default=0), min(fails, default=None), needs, settled=broken)


def _overs(here: Sequence[Probe], batch: int, cap: int) -> int:
    return sum(p.batch == batch and p.peak is not None and p.peak > cap for p in here)


def line(needs: dict[int, int], fixed: int) -> Callable[[int], float] | None:
    """Bytes by batch, through the two largest known batches, or one and ``fixed`` at batch 0."""
    if not needs:
        return None
    (x0, y0), (x1, y1) = sorted({0: fixed, **needs}.items())[-2:]
    slope = (y1 - y0) / (x1 - x0)
    return lambda batch: y1 + slope * (batch - x1)


def next_batch(known: Bracket, cap: int, fixed: int, first: int, exact: bool) -> int | None:
    """The batch to try next, or None where the largest that fits is known.

    Args:
        known: what is known.
        cap: bytes.
        fixed: bytes at batch 0, roughly.
        first: the batch to begin with.
        exact: whether two measured peaks are enough to believe the line about the batch behind the
            largest that fits.
    """
    low, high = known.fits + 1, known.fails
    if known.settled or (high is not None and high <= low):
        return None
    at = line(known.needs, fixed)
    if at is None:
        guess = first
    else:
        if exact and len(known.needs) > 1 and known.fits and at(low) > cap:
            return None
        slope = at(1) - at(0)
        most = _GROWTH * max(known.needs)
        guess = math.floor((cap - at(0)) / slope) if slope > 0 else most
        guess = min(guess, most)
    return _between(guess, known)


def _between(guess: int, known: Bracket) -> int:
    """``guess`` where it can tell something; else a step, or the middle, where the line was off."""
    low, high = known.fits + 1, known.fails
    if guess == known.fits:
        return low
    if guess < low:  # more fits than the line says
        guess = low + known.fits // 16 if high is None else (low + high - 1) // 2
    if high is not None and guess >= high:  # less does
        guess = (low + high - 1) // 2
    return guess


def largest(method: Method, cap: int, probes: Sequence[Probe]) -> Probe | None:
    """The probe of the largest batch that fits."""
    fitting = [p for p in _measured(method, cap, probes) if p.peak is not None and p.peak <= cap]
    return max(fitting, key=lambda p: p.batch, default=None)


def fastest(method: Method, cap: int, probes: Sequence[Probe]) -> Probe | None:
    """The probe with the most sequences per second among those that fit."""
    fitting = [p for p in _measured(method, cap, probes) if p.peak is not None and p.peak <= cap]
    return max(fitting, key=lambda p: p.batch / (p.seconds or math.inf), default=None)


def _measured(method: Method, cap: int, probes: Sequence[Probe]) -> list[Probe]:
    own = (p for p in probes if p.method == method.label)
    return [p for p in own if method.kind != "recut" or p.cap == cap]


def next_probe(
    size: Size, caps: Sequence[int], fixed: int, probes: Sequence[Probe]
) -> tuple[Method, Probe] | None:
    """The next probe and its method, or None where all is known.

    Args:
        size: what is compared.
        caps: bytes that a training step may take.
        fixed: bytes of weights, gradients and moments.
        probes: what is known.
    """
    for method in size.methods:
        if method.kind == "recut":
            asked = _next_recut(method, size, caps, fixed, probes)
        else:
            asked = _next_other(method, size, caps, fixed, probes)
        if asked is not None:
            return method, asked
        if method.kind == "recut" and (beside := _beside_others(method, caps, probes)):
            return method, beside
    return None


def _next_other(
    method: Method, size: Size, caps: Sequence[int], fixed: int, probes: Sequence[Probe]
) -> Probe | None:
    for cap in caps:
        known = bracket(method, cap, probes)
        batch = next_batch(known, cap, fixed, size.first_batch, exact=True)
        if batch is not None:
            return Probe(method.label, batch)
    return None


def _next_recut(
    method: Method, size: Size, caps: Sequence[int], fixed: int, probes: Sequence[Probe]
) -> Probe | None:
    mine = [p for p in probes if p.method == method.label]
    asked = {p.batch for p in mine if p.cap is None}
    if not asked:
        blocks = [p.batch for cap in caps if (p := largest(BLOCK, cap, probes))]
        return Probe(method.label, min(blocks, default=size.first_batch))
    if len(asked) == 1 and (known := bracket(method, caps[-1], probes)).needs:
        # The second point of the line, near the last cap: what is fixed is no floor of a batch.
        batch = next_batch(known, caps[-1], fixed, size.first_batch, exact=False)
        if batch is not None and batch not in asked:
            return Probe(method.label, batch)
    for cap in caps:
        known = bracket(method, cap, probes)
        batch = next_batch(known, cap, fixed, size.first_batch, exact=False)
        if batch is not None:
            return Probe(method.label, batch, cap, _margin(mine, cap))
    return None


def _margin(mine: Sequence[Probe], cap: int) -> int:
    """How much to keep back under ``cap``: the most that a probe was over it, and a bit."""
    here = [p for p in mine if p.cap == cap]
    over = [p.margin + p.peak - cap for p in here if p.peak is not None and p.peak > cap]
    # Half a per cent more keeps the next from missing by bytes.
    return max([*(p.margin for p in here), *(o + cap // 200 for o in over)], default=0)


def _beside_others(method: Method, caps: Sequence[int], probes: Sequence[Probe]) -> Probe | None:
    """The next probe of recut at the largest batches of per-block checkpointing and of stock."""
    mine = [p for p in probes if p.method == method.label]
    for cap in caps:
        if bracket(method, cap, probes).settled:
            continue
        tried = {p.batch for p in mine if p.cap == cap}
        for other in (BLOCK, STOCK):
            best = largest(other, cap, probes)
            if best and best.batch not in tried:
                return Probe(method.label, best.batch, cap, _margin(mine, cap))
    return None


def rows_left(size: Size, caps: Sequence[int], probes: Sequence[Probe]) -> int:
    """How many probes are probably still to come: three for each method and cap, and two beside."""
    return max(1, len(size.methods) * (1 + 2 * len(caps)) + 2 * len(caps) - len(probes))


class Trainer:
    """Runs probes: one optimizer and one set of weights for all of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        parameters = list(bench.base.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        # Moments, and the workspaces that libraries keep, exist from here on.
        measure.step(bench.base, bench.inputs(1))
        self._finish_step()
        measure.prepare()

    @property
    def fixed(self) -> int:
        """Bytes of weights, gradients and moments."""
        return self._resident(()) + sum(p.nbytes for p in self.bench.base.parameters())

    def _finish_step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _resident(self, inputs: Sequence[Tensor]) -> int:
        states = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        base = self.bench.base
        return self.bench.allocated([*base.parameters(), *base.buffers(), *states, *inputs])

    def measure(self, method: Method, probe: Probe) -> Probe:
        """``probe`` with its measurements, or with why there are none."""
        inputs = self.bench.inputs(probe.batch)
        resident = self._resident(inputs)
        probe = replace(probe, resident=resident, budget=_budget(method, probe, resident))
        try:
            done = self._train(method, probe, inputs)
        except Exception as failure:  # one probe's failure is its row
            done = _failed(probe, failure)
        self.bench.base.zero_grad(set_to_none=True)
        # Nothing is raced here, so nothing has to stay compiled.
        torch._dynamo.reset()
        measure.release()
        return done

    def _train(self, method: Method, probe: Probe, inputs: tuple[Tensor, ...]) -> Probe:
        import recut

        model = self.bench.compiled(method, 1.0 if probe.budget is None else probe.budget)

        def train() -> None:
            measure.step(model, inputs)
            self._finish_step()

        recut.clear_reports()
        measure.warm_up({method.label: train}, steps=1)
        report = recut.reports()[-1] if method.kind == "recut" else None
        before = self._resident(inputs)
        peak = before + measure.peak_of(train, self.bench.device)
        rounds = max(2, self.bench.size.rounds // 2)
        seconds = [measure.seconds_of(train, self.bench.device) for _ in range(rounds)]
        return replace(
            probe,
            predicted=report.peak if report else None,
            peak=peak,
            need=_need(probe, report.floor) if report else None,
            seconds=statistics.median(seconds),
        )


def _failed(probe: Probe, failure: Exception) -> Probe:
    infeasible = contest.infeasible_cause(failure)
    if infeasible is None:
        return replace(probe, failure=contest.first_line(failure))
    return replace(probe, failure=INFEASIBLE, need=_need(probe, contest.floor_of(infeasible)))


def _need(probe: Probe, floor: int | None) -> int | None:
    """All that is alive under the lowest budget; what is kept back of the cap counts as well."""
    return None if floor is None else probe.resident + floor + probe.margin


def _budget(method: Method, probe: Probe, resident: int) -> int | None:
    """What recut is given: the cap's rest; a budget that nothing meets where the floor is asked."""
    if method.kind != "recut":
        return None
    return _QUERY if probe.cap is None else max(_QUERY, probe.cap - resident - probe.margin)


def caps_of(bench: Bench) -> list[int]:
    """The caps, or the device's own size where that is less, each once."""
    free = bench.free()
    return sorted({cap if free is None else min(cap, free) for cap in bench.size.caps})


def run(
    bench: Bench, record: Record, clock: Clock, tell: Tell, kinds: Collection[Kind] = KINDS
) -> bool:
    """Measure what is missing of methods of ``kinds``; returns whether all of it is there."""
    methods = tuple(method for method in bench.size.methods if method.kind in kinds)
    size = replace(bench.size, methods=methods)
    # The first run's caps are everyone's: what is free differs by a little each time.
    document = record.document
    if "caps" not in document:
        document["caps"] = caps_of(bench)
    caps: list[int] = document["caps"]
    trainer: Trainer | None = None
    if "fixed" not in document:
        trainer = Trainer(bench)
        document["fixed"] = trainer.fixed
    while True:
        probes = [probe_of(stored) for stored in record.rows]
        asked = next_probe(size, caps, document["fixed"], probes)
        if asked is None:
            return True
        if not clock.allows(record.longest or size.row_seconds):
            return False
        trainer = trainer or Trainer(bench)
        method, probe = asked
        tell(_text(probe, method), rows_left(size, caps, probes))
        start = time.monotonic()
        done = trainer.measure(method, probe)
        record.add({**asdict(done), "spent": time.monotonic() - start})


def _text(probe: Probe, method: Method) -> str:
    if method.kind != "recut":
        return f"{probe.method}, batch {probe.batch}"
    if probe.cap is None:
        return f"recut's floor at batch {probe.batch}"
    return f"recut, batch {probe.batch} under {probe.cap / MIB:,.0f} MiB"
