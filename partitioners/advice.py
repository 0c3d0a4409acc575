"""What would lower a plan's peak or its price next: rules of thumb over the plan's own figures.

Each rule looks at the worst moment of the step, or at what is run again, and speaks only where its
part is large. Nothing is guessed: every text names the bytes, the share or the seconds that it is
about, and the user's line where one is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from recut.partitioners.decisions import Use, use_of
from recut.partitioners.evaluator import Instance, Timeline, evaluate
from recut.partitioners.machine import Machine
from recut.partitioners.plan import Plan
from recut.partitioners.problem import Op, Problem, Rule
from recut.partitioners.timing import step_seconds
from recut.partitioners.units import duration, size

# A part of the peak from which a rule speaks: of a kind of use, and of one line of the model.
_LARGE = 0.1
_LARGE_LINE = 0.05
# Above this share of the peak gradients are named as what no plan can lower.
_LARGE_GRADIENTS = 0.25
# Shares of a step: recomputation that is worth a word, and a step that is as good as another.
_DEAR = 0.01
_CHEAP = 0.01
# Two plans differ in memory from this share of the peak on.
_LOWER = 0.05
# What a loss over classes calls, forward and backward; read from the names of ops.
_LOSS = ("log_softmax", "nll_loss", "cross_entropy", "logsumexp")


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Attributes:
        about: what it is about, in a word or two.
        text: what was found, and what to do.
        bytes: how much of the peak it is about; 0 where it is about time.
        seconds: how much of a step it is about; 0 where it is about memory.
        source: the user's source line, or the empty string.
    """

    about: str
    text: str
    bytes: int = 0
    seconds: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class _Facts:
    """What the rules look at.

    ``worst`` is what is alive at the worst moment, the largest first, with what it is for; ``step``
    is what a step takes, in seconds, 0 where it is not known, and ``others`` are peak (bytes) and
    step (seconds) of other plans.
    """

    problem: Problem
    plan: Plan
    line: Timeline
    worst: tuple[tuple[Instance, Use], ...]
    step: float
    others: tuple[tuple[int, float], ...]

    @property
    def op(self) -> Op:
        """The op that runs at the worst moment."""
        schedule = self.plan.schedule
        return self.problem.ops[(schedule.forward + schedule.backward)[self.line.worst]]

    def maker(self, instance: Instance) -> Op | None:
        """Return the op that makes an instance; None for the copy of an input."""
        producer = self.problem.values[instance.value].producer
        return self.problem.ops[producer] if producer >= 0 else None

    def held(self, *uses: Use) -> int:
        """Return the bytes at the worst moment that are for some uses."""
        return sum(i.bytes for i, use in self.worst if use in uses)

    def share(self, count: int) -> str:
        """Return bytes as text, with their share of the peak."""
        return f"{size(count)} ({count / max(self.line.peak, 1):.0%} of the peak)"


def advise(
    problem: Problem,
    plan: Plan,
    frontier: Sequence[Plan] = (),
    machine: Machine | None = None,
) -> tuple[Advice, ...]:
    """Return what would help next: what is about memory first, the largest part first.

    Args:
        problem: the problem, with what was observed of its kernels (``Problem.with_observed``).
        plan: the plan.
        frontier: other plans for the problem, in any order.
        machine: what set the prices; without it nothing is said about time.
    """
    if not plan.schedule.forward + plan.schedule.backward:
        return ()
    line = evaluate(problem, plan.schedule)
    worst = sorted(line.at(line.worst), key=lambda i: (-i.bytes, i.value))
    seconds = 0.0
    others: tuple[tuple[int, float], ...] = ()
    if machine is not None:
        seconds = step_seconds(problem, plan.schedule, machine)
        others = tuple((p.peak, step_seconds(problem, p.schedule, machine)) for p in frontier)
    uses = tuple((i, use_of(problem, line, i)) for i in worst)
    facts = _Facts(problem, plan, line, uses, seconds, others)
    found = [advice for rule in _RULES for advice in rule(facts)]
    return tuple(sorted(found, key=lambda a: (-a.bytes, -a.seconds)))


def _loss(facts: _Facts) -> Iterable[Advice]:
    """Logits and what a loss makes of them, where they are alive at the worst moment."""
    of_loss = {
        v
        for op in facts.problem.ops
        if any(name in op.target for name in _LOSS)
        for v in (*op.inputs, *op.outputs)
    }
    # Made by the op behind a log-softmax or its gradient: the backward's end of the same chain.
    held = [i for i, _ in facts.worst if i.value in of_loss]
    largest = max((i.bytes for i in held), default=0)
    wide = [i for i in held if 4 * i.bytes >= largest]
    total = sum(i.bytes for i in wide)
    if total >= _LARGE * facts.line.peak:
        makers = (facts.maker(i) for i in wide)
        source = next((op.source for op in makers if op and op.source), facts.op.source)
        yield Advice(
            "the loss",
            f"At the worst moment the logits and what the loss makes of them hold "
            f"{facts.share(total)}. Compute the loss in chunks of the batch or the sequence, so "
            "that the logits never exist as a whole.",
            bytes=total,
            source=source,
        )


def _gradients(facts: _Facts) -> Iterable[Advice]:
    held = facts.held(Use.GRADIENT)
    if held >= _LARGE_GRADIENTS * facts.line.peak:
        yield Advice(
            "gradients",
            f"Gradients that the backward returns hold {facts.share(held)}, and no plan can lower "
            "that. Shard them (FSDP), let the optimizer step inside the backward, or train "
            "parameters in a smaller dtype.",
            bytes=held,
        )


def _outputs(facts: _Facts) -> Iterable[Advice]:
    held = facts.held(Use.OUTPUT)
    if held >= _LARGE * facts.line.peak:
        largest = next(i for i, use in facts.worst if use is Use.OUTPUT)
        op = facts.maker(largest)
        yield Advice(
            "outputs",
            f"What the forward returns holds {facts.share(held)} until the step ends. Return the "
            "loss alone, or less beside it.",
            bytes=held,
            source=op.source if op else "",
        )


def _forced(facts: _Facts) -> Iterable[Advice]:
    """What a rule has the forward save, by reason and line."""
    sizes: dict[tuple[str, str], int] = {}
    for instance, use in facts.worst:
        op = facts.maker(instance)
        if op is not None and use is Use.SAVED and op.rule is Rule.MUST_SAVE:
            key = (op.reason, op.source)
            sizes[key] = sizes.get(key, 0) + instance.bytes
    for (reason, source), held in sizes.items():
        if held >= _LARGE_LINE * facts.line.peak:
            place = f" at {source}" if source and source not in reason else ""
            yield Advice(
                "forced saves",
                f"{facts.share(held)} has to be saved{place}: {reason}. {_remedy(reason)}",
                bytes=held,
                source=source,
            )


def _remedy(reason: str) -> str:
    """Return what lifts a rule, by its reason."""
    if reason.startswith("no cost is known"):
        return 'Declare its cost with recut.register_cost, or set costs="measure".'
    if "MUST_SAVE" in reason:
        return "Let your checkpoint policy say PREFER_SAVE there, and the budget decides."
    if "mutates" in reason:
        return "Write to a copy, or behind the last reader, if the model allows it."
    return "Make it smaller, or keep it out of the compiled graph, if the model allows it."


def _line(facts: _Facts) -> Iterable[Advice]:
    """The line of the model that holds most of what is saved."""
    sizes: dict[str, int] = {}
    for instance, use in facts.worst:
        op = facts.maker(instance)
        if op is not None and op.source and use is Use.SAVED and op.rule is Rule.MAY_RECOMPUTE:
            sizes[op.source] = sizes.get(op.source, 0) + instance.bytes
    source, held = max(sizes.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    if held >= 2 * _LARGE * facts.line.peak:
        yield Advice(
            "saved tensors",
            f"{source} holds {facts.share(held)} in saved tensors, more than any other line. A "
            "lower budget would recompute some of it; a smaller dtype there would halve it.",
            bytes=held,
            source=source,
        )


def _workspace(facts: _Facts) -> Iterable[Advice]:
    op = facts.op
    if op.workspace >= _LARGE * facts.line.peak:
        of_library = op.workspace - op.observed
        what = "its library call allocates" if of_library >= op.observed else "its kernels hold"
        yield Advice(
            "workspace",
            f"While {op.name} runs, {what} {facts.share(op.workspace)} beside its tensors. A "
            "smaller batch there, or another layout or dtype, needs less.",
            bytes=op.workspace,
            source=op.source,
        )


def _copies(facts: _Facts) -> Iterable[Advice]:
    held = facts.held(Use.INPUT)
    if held >= _LARGE * facts.line.peak:
        yield Advice(
            "copies of inputs",
            f"The compiler's copies of inputs in another layout hold {facts.share(held)}. Keep "
            "weights and images in torch.channels_last, and it makes none.",
            bytes=held,
        )


def _regions(facts: _Facts) -> Iterable[Advice]:
    """The user's own checkpoint regions: what they cost that the budget might not ask for."""
    again = facts.plan.schedule.recomputed(facts.problem)
    ops = facts.problem.ops
    seconds = sum(
        n * ops[i].seconds for i, n in again.items() if ops[i].rule is Rule.MUST_RECOMPUTE
    )
    if facts.step and seconds >= _DEAR * facts.step:
        yield Advice(
            "checkpoint regions",
            f"Your checkpoint regions run {duration(seconds)} again ({seconds / facts.step:.0%} "
            "of a step). Without them the budget alone decides, and recomputes what is cheapest.",
            seconds=seconds,
        )


def _frontier(facts: _Facts) -> Iterable[Advice]:
    """A neighbour on the frontier that gives much for little."""
    peak, step = facts.plan.peak, facts.step
    if not step:
        return
    lower = [o for o in facts.others if o[0] <= (1 - _LOWER) * peak and o[1] <= (1 + _CHEAP) * step]
    if lower:
        least, seconds = min(lower)
        yield Advice(
            "a lower budget",
            f"A budget of {size(least)} ({1 - least / peak:.0%} less) is expected to add "
            f"only {max(0.0, seconds / step - 1):.1%} to the step.",
            seconds=max(0.0, seconds - step),
        )
    faster = [o for o in facts.others if o[1] <= (1 - 2 * _CHEAP) * step and o[0] <= 1.25 * peak]
    if faster:
        more, seconds = min(faster)
        yield Advice(
            "a higher budget",
            f"A budget of {size(more)} ({more / peak - 1:.0%} more) is expected to take "
            f"{1 - seconds / step:.1%} off the step.",
            seconds=step - seconds,
        )


def _cut_short(facts: _Facts) -> Iterable[Advice]:
    if "cut short" in facts.plan.planner:
        gap = facts.plan.gap
        share = f" ({gap / facts.step:.1%} of a step at most)" if facts.step else ""
        yield Advice(
            "planning",
            f"Planning ran out of time; a better plan may exist{share}. Raise "
            "RECUT_SOLVER_SECONDS.",
            seconds=gap,
        )


_RULES: tuple[Callable[[_Facts], Iterable[Advice]], ...] = (
    _loss,
    _gradients,
    _outputs,
    _forced,
    _line,
    _workspace,
    _copies,
    _regions,
    _frontier,
    _cut_short,
)

__all__ = ["Advice", "advise"]
