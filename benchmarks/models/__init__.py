"""Thirteen small training models, each with its loss inside and a switch for checkpointed blocks.

``MODELS[name].make(checkpoint)`` gives ``(model, inputs)`` such that ``model(*inputs)`` is a scalar
loss.  Two calls give equal weights and inputs, so contestants can each own an instance: dynamo
keys its cache on code objects, and instances shared between contestants would share compiled code.
"""

from __future__ import annotations

from functools import partial

from benchmarks.models.convolution import Bottleneck, UNet, convnext, resnet50, unet
from benchmarks.models.diffusion import diffusion
from benchmarks.models.library import gpt2_hf, llama_hf
from benchmarks.models.recurrent import lstm
from benchmarks.models.spec import Made, ModelSpec
from benchmarks.models.t5 import t5
from benchmarks.models.transformer import Transformer, transformer, vit

__all__ = ["MODELS", "Bottleneck", "Made", "ModelSpec", "Transformer", "UNet", "transformer"]

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("gpt12", partial(transformer, 12, 256, 256), True, "GPT, 12 x 256, T=256, B=4"),
        ModelSpec("gpt16", partial(transformer, 16, 128, 512), True, "GPT, 16 x 128, T=512, B=4"),
        ModelSpec(
            "resnet50", resnet50, False, "ResNet-50 at half width, batch norm, 8 x 128 x 128"
        ),
        ModelSpec("unet", unet, False, "U-Net, 4 levels, group norm, 4 x 96 x 96"),
        ModelSpec(
            "encoder",
            partial(transformer, 8, 256, 256, causal=False, dropout=0.1),
            True,
            "transformer encoder, 8 x 256, T=256, B=4, dropout 0.1",
            random=True,
        ),
        ModelSpec("gpt2_hf", gpt2_hf, True, "transformers GPT-2, 8 x 192, T=256, B=4"),
        ModelSpec("llama_hf", llama_hf, True, "transformers Llama, 8 x 192, T=256, B=4"),
        ModelSpec("vit", vit, True, "ViT, 8 x 192, patches of 8 x 8, 4 x 112 x 112"),
        ModelSpec(
            "convnext", convnext, False, "ConvNeXt, depths 2 2 4 2 from 48 wide, 6 x 128 x 128"
        ),
        ModelSpec("t5", t5, True, "T5, 4 + 4 x 192, T=192 and 128, B=4"),
        ModelSpec(
            "moe",
            partial(transformer, 6, 192, 192, experts=4),
            True,
            "GPT with 2 of 4 experts per token, 6 x 192, T=192, B=4",
        ),
        ModelSpec("lstm", lstm, True, "LSTM, 2 x 256, 32 steps, B=96"),
        ModelSpec(
            "diffusion", diffusion, False, "diffusion U-Net, 3 levels, attention, 4 x 48 x 48"
        ),
    )
}
