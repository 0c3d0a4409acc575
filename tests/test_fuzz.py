"""Programs drawn from a seed leave behind what eager does, within their budgets.

``python -m benchmarks.fuzzing`` runs more of them, and under Inductor.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial

import pytest
import torch
from nets import floor_expected
from steps import by_dynamo
from torch import Tensor, nn

import recut
from benchmarks import fuzzing
from benchmarks.outcomes import assert_same, take_steps
from benchmarks.programs import ALONE, STEPS, make
from benchmarks.traced import BETWEEN, BUDGETS, FASTEST, FLOOR, Held, Traced

# All use every step; the first half is drawn on every run.
PROGRAMS, QUICK = 300, 150
# A gradient of 270,000 is off eager's by 1.4e-9 of it, on some processors, in torch's own graph.
ROUNDED_BY_TORCH = {226}


@pytest.mark.parametrize(
    "seed",
    [
        *range(QUICK),
        *(pytest.param(seed, marks=pytest.mark.long) for seed in range(QUICK, PROGRAMS)),
    ],
)
def test_a_program_is_eagers_within_three_budgets(seed):
    with suppress(*[fuzzing.TorchDiffersError] * (seed in ROUNDED_BY_TORCH)):
        fuzzing.check(seed)


@pytest.mark.parametrize("seed", [1864, 3864])
def test_a_program_that_was_refused_or_has_gradients_that_are_no_numbers_is_eagers(seed):
    fuzzing.check(seed)


@pytest.mark.parametrize("seed", [0, 2, 3, 10])
def test_a_program_of_symbolic_sizes_is_eagers(monkeypatch, seed):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "0.01")
    module, inputs = make(seed)
    want = take_steps(module, module, inputs, 2)
    module, inputs = make(seed)
    with floor_expected():
        assert_same(take_steps(by_dynamo(module, dynamic=True), module, inputs, 2), want)
    (report,) = recut.reports()
    assert report.sizes
    assert report.formula.at({}) == report.peak


def test_the_programs_use_every_step_and_both_tracers():
    used = {name for seed in range(PROGRAMS) for name, *_ in make(seed)[0].steps}
    assert used == STEPS.keys() >= ALONE
    traced = sum(map(fuzzing.by_dynamo, range(PROGRAMS)))
    assert PROGRAMS / 5 < traced < PROGRAMS / 2


class Chain(nn.Module):
    """Room to recompute, a buffer that is written and a draw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("steps", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        for _ in range(4):
            x = torch.tanh(torch.exp(torch.sin(self.layer(x)))) * torch.rand_like(x)
        return (x + self.steps).sum()


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_module_is_traced_once_for_all_budgets(dynamo, monkeypatch):
    joints = []
    partition = recut.partition

    def counted(joint, *args, **kwargs):
        joints.append(len(joint.graph.nodes))
        return partition(joint, *args, **kwargs)

    monkeypatch.setattr(recut, "partition", counted)
    module, x = Chain().double(), torch.randn(16, 8, dtype=torch.float64)
    module(x)
    traced = Traced(module, dynamo)
    before, held = {}, {}
    for budget in BUDGETS:
        traced.budget = budget
        module.zero_grad()
        held[budget] = traced.measured(partial(take_steps, traced, module, (x,)))
        before[budget] = {n: p.grad.clone() for n, p in module.named_parameters()}
    assert len(joints) == len(BUDGETS)
    assert len(set(joints)) == 1, "each gets the joint graph as it was traced"
    reports = traced.reports
    assert held[FLOOR] < held[BETWEEN] < held[FASTEST]
    for budget in BUDGETS:
        # All is counted but the gradient of the loss, which autograd makes itself; and in the
        # backward nobody holds the loss any more.
        assert reports[budget].peak - held[budget] in (8, 16)
        torch.testing.assert_close(before[budget], before[FASTEST])


def test_a_copy_into_a_slice_takes_what_lies_around_it():
    """Seeds 27 and 39 held more than was planned."""
    x = torch.randn(16, 8)[:, :4]
    assert torch.ops.aten.copy(x, x + 1).untyped_storage().nbytes() > 4 * x.numel()
    fuzzing.check(39)


def test_a_program_over_its_budget_is_told(monkeypatch):
    fixed = property(lambda _: 10**9, lambda *_: None)
    monkeypatch.setattr(Held, "peak", fixed, raising=False)
    with pytest.raises(fuzzing.WrongProgramError, match=r"budget 1\.0: 1000000000 bytes held"):
        fuzzing.check(35)


class Wrong(Traced):
    """Adds one to what a program writes."""

    def __call__(self, *inputs):
        out = super().__call__(*inputs)
        inputs[3].add_(1)
        return out


def test_a_program_that_differs_is_told_unless_torch_differs_alike(monkeypatch):
    eager = fuzzing._left_by_eager(35, "cpu")
    monkeypatch.setattr(fuzzing, "_left_by_eager", lambda *_: (eager[0], eager[1] + 1))
    with pytest.raises(fuzzing.TorchDiffersError, match=r"budget 1\.0: written input"):
        fuzzing.check(35)
    monkeypatch.setattr(fuzzing, "Traced", Wrong)
    with pytest.raises(fuzzing.WrongProgramError, match=r"budget 1\.0: written input"):
        fuzzing.check(35)  # eager's is another one, and torch's too
    monkeypatch.setattr(fuzzing, "_left_by_eager", lambda *_: eager)
    with pytest.raises(fuzzing.WrongProgramError, match=r"budget 1\.0: written input"):
        fuzzing.check(35)


def test_a_run_goes_on_where_it_was_cut_short(tmp_path, monkeypatch, capsys):
    seen = []

    def check(seed, device):
        assert device == "cpu"
        seen.append(seed)
        if seed == 7:
            raise fuzzing.WrongProgramError("budget 1.0: wrong")
        if seed == 8:
            raise fuzzing.TorchDiffersError("budget 1.0: rounded")

    monkeypatch.setattr(fuzzing, "check", check)
    command = ["0", "50", "--output", str(tmp_path)]
    assert fuzzing.main([*command, "--minutes", "0"]) == 0
    assert seen == []
    assert "goes on from here" in capsys.readouterr().out
    assert fuzzing.main(["0", "20", "--output", str(tmp_path)]) == 1
    assert seen == list(range(20))
    assert fuzzing.main(command) == 1
    assert seen == list(range(50))
    fuzzing.main(["30", "65", "--output", str(tmp_path)])
    assert seen == list(range(65))
    text = capsys.readouterr().out
    assert "65 programs in" in text
    assert "1 failed, 1 are not eager's without recut either" in text
    assert "\nseed 7: budget 1.0: wrong\nwithout recut too, seed 8: budget 1.0: rounded" in text
    record = json.loads((tmp_path / "fuzzing.json").read_text())
    assert [row["seeds"] for row in record["rows"]] == [[0, 20], [20, 40], [40, 50], [50, 65]]
    assert record["rows"][0]["failed"] == {"7": "budget 1.0: wrong"}
    assert record["rows"][0]["torch differs"] == {"8": "budget 1.0: rounded"}
