"""At the budget 1.0 recut saves no more bytes than torch's min-cut on the same joint graph.

Joint graphs come from Inductor, behind its joint-graph passes. Both forwards are run op by op, so
the bytes are those of the tensors that come out, whatever either partitioner believes about them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import min_cut_rematerialization_partition
from torch import Tensor, fx, nn
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomPartitionerFn

import recut
from benchmarks.models import Bottleneck, Made, Transformer, UNet

VOCAB, WIDTH, LENGTH, BATCH = 64, 64, 64, 4


class Bert(nn.Module):
    """Norms behind the branches, as BERT has them: the residual stream itself is normalized."""

    def __init__(self, dropout: float, layers: int = 3) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout, F.gelu, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.token(text) + self.place.weight))
        return F.cross_entropy(self.head(self.layers(x)).flatten(0, 1), targets.flatten())


class ResNet(nn.Module):
    """ResNet-50's stem and its bottlenecks: two stages of two."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.blocks = nn.Sequential(
            Bottleneck(width, width, 1), Bottleneck(4 * width, width, 1),
            Bottleneck(4 * width, 2 * width, 2), Bottleneck(8 * width, 2 * width, 1),
        )  # fmt: skip
        self.head = nn.Linear(8 * width, 10)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.blocks(self.stem(images)).mean((2, 3))
        return F.cross_entropy(self.head(x), labels)


def text(module: nn.Module) -> Made:
    return module, (torch.randint(VOCAB, (BATCH, LENGTH)), torch.randint(VOCAB, (BATCH, LENGTH)))


def gpt() -> Made:
    return text(Transformer(3, WIDTH, LENGTH, vocab=VOCAB))


def bert(dropout: float) -> Made:
    return text(Bert(dropout))


def resnet() -> Made:
    return ResNet(), (torch.randn(BATCH, 3, 64, 64), torch.randint(10, (BATCH,)))


def unet() -> Made:
    return UNet(checkpoint=False, width=16, levels=2), (torch.randn(2, 3, 32, 32),) * 2


MODELS: dict[str, Callable[[], Made]] = {
    "gpt": gpt,
    "bert": partial(bert, 0.0),
    "bert_dropout": partial(bert, 0.1),
    "resnet": resnet,
    "unet": unet,
}


@dataclass(frozen=True)
class Forwards:
    """The forward graphs of both partitioners, and how many outputs of them are the user's."""

    ours: fx.GraphModule
    theirs: fx.GraphModule
    outputs: int


class BothWays(CustomPartitionerFn):
    """Splits one joint graph by both partitioners, and lets Inductor compile neither."""

    found: Forwards | None = None

    def __call__(self, gm, joint_inputs, **kwargs):
        ours, _ = recut.partition(copied(gm), joint_inputs, **kwargs)
        theirs, _ = min_cut_rematerialization_partition(copied(gm), joint_inputs, **kwargs)
        self.found = Forwards(ours, theirs, kwargs["num_fwd_outputs"])
        raise RuntimeError("both partitions are made")

    def uuid(self):
        # Without an id, code that stock Inductor cached for the same net would come in between.
        return "both ways"


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """Copy a joint graph: either partitioner changes the one that it is given."""
    graph, copies = fx.Graph(), {}
    for node in gm.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(gm, graph)


def forwards(made: Made) -> Forwards:
    """Partition the joint graph of a net, as Inductor would partition it, in both ways."""
    module, inputs = made
    hook = BothWays()
    with config.patch(custom_partitioner_fn=hook):
        try:
            torch.compile(module, fullgraph=True, dynamic=False)(*inputs)
        except Exception:
            if hook.found is None:
                raise
    assert hook.found is not None
    return hook.found


def saved_bytes(forward: fx.GraphModule, outputs: int) -> int:
    """Run a forward on zeros; count what it made for the backward, each storage once."""
    inputs = [
        torch.zeros(n.meta["val"].shape, dtype=n.meta["val"].dtype)
        for n in forward.graph.find_nodes(op="placeholder")
    ]
    with torch.no_grad():
        extra = [t for t in forward(*inputs)[outputs:] if isinstance(t, Tensor)]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in extra)}
    given = {t.untyped_storage().data_ptr() for t in inputs}
    return sum(size for where, size in storages.items() if where not in given)


@pytest.mark.parametrize("name", MODELS)
def test_no_more_is_saved_than_by_torchs_min_cut(monkeypatch, name):
    monkeypatch.setenv("RECUT_MEMORY_BUDGET", "1.0")
    torch.manual_seed(0)
    found = forwards(MODELS[name]())
    (report,) = recut.reports()
    assert report.peak == report.fastest_peak
    ours, theirs = (saved_bytes(part, found.outputs) for part in (found.ours, found.theirs))
    assert 0 < ours <= theirs, f"{ours / 2**20:.3f} MiB, torch saves {theirs / 2**20:.3f} MiB"


def test_the_count_takes_each_storage_once_and_no_inputs():
    def forward(x):
        y, z, loss = x.exp(), x[0].sin(), x.sum()
        return loss, y, y.t(), y[1:], z, x, x.view(-1), 3

    graph = fx.symbolic_trace(forward)
    graph.graph.find_nodes(op="placeholder")[0].meta["val"] = torch.empty(8, 4)
    assert saved_bytes(graph, outputs=1) == (8 * 4 + 4) * 4
    assert saved_bytes(graph, outputs=0) == (8 * 4 + 4 + 1) * 4
