"""Recurrent nets, written as loops over a cell: one set of weights is read at every step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from benchmarks.models.spec import Checkpoint, Made, contexts

State = tuple[Tensor, Tensor]


class LSTMCell(nn.Module):
    """One step of an LSTM: the hidden and the cell state from those before and an input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width, bias=False)

    def forward(self, x: Tensor, state: State) -> State:
        hidden, cell = state
        i, f, g, o = (self.x(x) + self.h(hidden)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class LSTM(nn.Module):
    """A language model of stacked LSTMs; ``stride`` steps in time are one checkpointed block."""

    def __init__(
        self, layers: int, width: int, vocab: int, stride: int, checkpoint: Checkpoint
    ) -> None:
        super().__init__()
        self.stride, self.checkpoint = stride, checkpoint
        self.token, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab)
        self.cells = nn.ModuleList(LSTMCell(width) for _ in range(layers))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.token(tokens)
        zero = x.new_zeros(len(x), x.shape[2])
        states = [(zero, zero)] * len(self.cells)
        seen: list[Tensor] = []
        for part in x.split(self.stride, 1):
            if self.checkpoint:
                out, states = torch_checkpoint(
                    self._run, part, states, use_reentrant=False, **contexts(self.checkpoint)
                )
            else:
                out, states = self._run(part, states)
            seen.append(out)
        logits = self.head(torch.cat(seen, 1))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _run(self, x: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Return the last layer's hidden states of some steps, and the states behind them."""
        states, seen = list(states), []
        for now in x.unbind(1):
            for k, cell in enumerate(self.cells):
                states[k] = cell(now, states[k])
                now = states[k][0]  # noqa: PLW2901 - each layer reads the one below
            seen.append(now)
        return torch.stack(seen, 1), states


def lstm(checkpoint: Checkpoint) -> Made:
    torch.manual_seed(0)
    model = LSTM(layers=2, width=256, vocab=256, stride=8, checkpoint=checkpoint)
    tokens = torch.randint(256, (96, 33))
    return model, (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
