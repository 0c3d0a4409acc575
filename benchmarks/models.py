"""Seven small training models, each with its loss inside and a switch for per-block checkpointing.

``MODELS[name].make(checkpoint)`` gives ``(model, inputs)`` such that ``model(*inputs)`` is a scalar
loss.  Two calls give equal weights and inputs, so contestants can each own an instance: dynamo keys
its cache on code objects, and instances shared between contestants would share compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

Made = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class ModelSpec:
    """One training model.

    ``has_blocks`` says that the net repeats one block (what planners by block can exploit);
    ``random`` that it draws random numbers, so that gradients are comparable only within one
    random stream (Inductor's differs from eager's).
    """

    name: str
    make: Callable[[bool], Made]
    has_blocks: bool
    note: str
    random: bool = False


class _Blocks(nn.Module):
    """Blocks run one after the other, each under ``torch.utils.checkpoint`` when asked."""

    def __init__(self, blocks: list[nn.Module], checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = _run(block, x, self.checkpoint)
        return x


def _run(block: nn.Module, x: Tensor, checkpoint: bool) -> Tensor:
    return torch_checkpoint(block, x, use_reentrant=False) if checkpoint else block(x)


class TransformerBlock(nn.Module):
    """Pre-norm attention and GELU MLP; ``dropout`` acts on attention weights and both branches."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self._attend(self.norm1(x)))
        hidden = self._drop(F.gelu(self.up(self.norm2(x))))
        return x + self._drop(self.down(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def _drop(self, x: Tensor) -> Tensor:
        # A probability of zero leaves no random op in the graph.
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    """A transformer over tokens with cross entropy per position; causal for a GPT."""

    def __init__(
        self,
        layers: int,
        width: int,
        length: int,
        *,
        heads: int = 8,
        vocab: int = 256,
        causal: bool = True,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.token, self.place = nn.Embedding(vocab, width), nn.Embedding(length, width)
        blocks = [TransformerBlock(width, heads, causal, dropout) for _ in range(layers)]
        self.blocks = _Blocks(list(blocks), checkpoint)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.apply(_init_small)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _init_small(module: nn.Module) -> None:
    """GPT-2's initialisation: torch's default embeddings of scale 1 slow the first steps down."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def transformer(
    layers: int,
    width: int,
    length: int,
    checkpoint: bool,
    *,
    batch: int = 4,
    vocab: int = 256,
    causal: bool = True,
    dropout: float = 0.0,
) -> Made:
    torch.manual_seed(0)
    model = Transformer(
        layers,
        width,
        length,
        vocab=vocab,
        causal=causal,
        dropout=dropout,
        checkpoint=checkpoint,
    )
    tokens = torch.randint(vocab, (batch, length + 1))
    return model, (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class Bottleneck(nn.Module):
    """ResNet's bottleneck: 1x1, 3x3, 1x1 convolutions with batch norm, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (width, width, out))
        # Branches of full weight make a random net of this depth chaotic: rounding flips ReLUs, and
        # eager's own gradients are then 17 % off those in float64, which hides real errors.
        nn.init.constant_(self.bn3.weight, 0.2)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50's [3, 4, 6, 3] bottlenecks at half its width.

    At full width and this size the parameters' gradients are half of the peak, and no plan can
    shrink those.
    """

    def __init__(self, checkpoint: bool, width: int = 32, classes: int = 100) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate((3, 4, 6, 3)):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(Bottleneck(channels, width << stage, stride))
                channels = 4 * (width << stage)
        self.blocks = _Blocks(blocks, checkpoint)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.blocks(self.stem(images)).mean((2, 3))
        return F.cross_entropy(self.head(x), labels)


def _resnet50(checkpoint: bool) -> Made:
    torch.manual_seed(0)
    model = ResNet50(checkpoint)
    return model, (torch.randn(8, 3, 128, 128), torch.randint(100, (8,)))


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with group norm and SiLU: U-Net's block."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, 1, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.norm1, self.norm2 = nn.GroupNorm(8, out), nn.GroupNorm(8, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Four levels with skips concatenated on the way up: activations live across the whole net."""

    def __init__(self, checkpoint: bool, width: int = 32, levels: int = 4) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        sizes = [width << level for level in range(levels)]
        self.down = nn.ModuleList(
            DoubleConv(a, b) for a, b in zip([3, *sizes[:-1]], sizes, strict=True)
        )
        self.middle = DoubleConv(sizes[-1], sizes[-1])
        self.up = nn.ModuleList(
            DoubleConv(2 * b, a) for a, b in zip([width, *sizes[:-1]], sizes, strict=True)
        )
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        x, skips = images, []
        for block in self.down:
            x = _run(block, x, self.checkpoint)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = _run(self.middle, x, self.checkpoint)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1)
            x = _run(block, x, self.checkpoint)
        return F.mse_loss(self.head(x), targets)


def _unet(checkpoint: bool) -> Made:
    torch.manual_seed(0)
    model = UNet(checkpoint)
    images = torch.randn(4, 3, 96, 96)
    return model, (images, torch.randn_like(images))


class _LanguageModel(nn.Module):
    """A causal language model of ``transformers``, with its loss taken here.

    Given labels, the library looks its loss up by the model's name and logs what it chose, and a
    logging call inside ``forward`` breaks the graph.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _wrap_transformers(model: nn.Module, vocab: int, checkpoint: bool) -> Made:
    if checkpoint:
        # transformers renamed this in version 5; both take the arguments of torch's checkpoint.
        enable = getattr(model, "activation_checkpointing_enable", None)
        enable = enable or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return _LanguageModel(model.train()), (torch.randint(vocab, (4, 256)),)


def _gpt2_hf(checkpoint: bool) -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512,
        n_positions=256,
        n_embd=192,
        n_layer=8,
        n_head=6,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    return _wrap_transformers(GPT2LMHeadModel(config), config.vocab_size, checkpoint)


def _llama_hf(checkpoint: bool) -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=0.0,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    return _wrap_transformers(LlamaForCausalLM(config), config.vocab_size, checkpoint)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("gpt12", partial(transformer, 12, 256, 256), True, "GPT, 12 x 256, T=256, B=4"),
        ModelSpec("gpt16", partial(transformer, 16, 128, 512), True, "GPT, 16 x 128, T=512, B=4"),
        ModelSpec(
            "resnet50", _resnet50, False, "ResNet-50 at half width, batch norm, 8 x 128 x 128"
        ),
        ModelSpec("unet", _unet, False, "U-Net, 4 levels, group norm, 4 x 96 x 96"),
        ModelSpec(
            "encoder",
            partial(transformer, 8, 256, 256, causal=False, dropout=0.1),
            True,
            "transformer encoder, 8 x 256, T=256, B=4, dropout 0.1",
            random=True,
        ),
        ModelSpec("gpt2_hf", _gpt2_hf, True, "transformers GPT-2, 8 x 192, T=256, B=4"),
        ModelSpec("llama_hf", _llama_hf, True, "transformers Llama, 8 x 192, T=256, B=4"),
    )
}
