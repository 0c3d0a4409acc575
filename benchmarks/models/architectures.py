"""Architectures that people train, small and with random weights.

Those of ``transformers`` by the names of their classes, those of ``timm`` by its own names. Each is
a module that returns its loss, and what it is called with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
Make = Callable[[], tuple[nn.Module, Inputs]]

_WORDS = 200
_WIDTHS: dict[str, Any] = {
    "vocab_size": _WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 80,
}
_LLAMA = _WIDTHS | {"num_key_value_heads": 2}
_GEMMA = _LLAMA | {"head_dim": 16}
_BART = {
    "vocab_size": _WORDS, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}  # fmt: skip
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_MAMBA = {"vocab_size": _WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}

# Model, configuration and its arguments; all of them take tokens and labels.
_LANGUAGE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": ("BertForMaskedLM", "BertConfig", _WIDTHS),
    "RoBERTa": ("RobertaForMaskedLM", "RobertaConfig", _WIDTHS),
    "ALBERT": ("AlbertForMaskedLM", "AlbertConfig", _WIDTHS | {"embedding_size": 32}),
    "ELECTRA": ("ElectraForMaskedLM", "ElectraConfig", _WIDTHS | {"embedding_size": 32}),
    "DeBERTa": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        _WIDTHS | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _WIDTHS),
    "Falcon": ("FalconForCausalLM", "FalconConfig", _WIDTHS),
    "Mistral": ("MistralForCausalLM", "MistralConfig", _LLAMA | {"sliding_window": 16}),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GEMMA),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA),
    "Phi": ("PhiForCausalLM", "PhiConfig", _LLAMA),
    "Mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        _LLAMA | {"num_local_experts": 4, "output_router_logits": True},
    ),
    "Mamba": ("MambaForCausalLM", "MambaConfig", _MAMBA),
    "Mamba 2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        _MAMBA | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    ),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        _T5 | {"vocab_size": _WORDS, "decoder_start_token_id": 0},
    ),
    "BART": ("BartForConditionalGeneration", "BartConfig", _BART),
}

# Name, image size and what makes it small.
_IMAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "densenet121": (64, {"block_config": (2, 3, 3, 2)}),
    "swin_tiny_patch4_window7_224": (
        56,
        {"img_size": 56, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32},
    ),
    "convnextv2_atto": (64, {"depths": (1, 1, 2, 1)}),
    "mobilevit_xxs": (64, {}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64, "depth": 2}),
    "edgenext_xx_small": (64, {"depths": (1, 1, 2, 1)}),
    "regnety_002": (64, {}),
    "poolformer_s12": (64, {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64)}),
}


class Loss(nn.Module):
    """A model of ``transformers`` that takes its own loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        loss: Tensor = self.model(**inputs).loss
        return loss


class Classified(nn.Module):
    """A model of images with a loss behind it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])


def architectures() -> dict[str, Make]:
    """Return what makes each of them; without those of a library that is not installed."""
    found: dict[str, Make] = {}
    if importlib.util.find_spec("transformers"):
        found |= {name: partial(_language, *of) for name, of in _LANGUAGE.items()}
    if importlib.util.find_spec("timm"):
        found |= {name: partial(_images, name, *of) for name, of in _IMAGES.items()}
    return found


def _language(model: str, config: str, arguments: dict[str, Any]) -> tuple[nn.Module, Inputs]:
    import transformers

    made = getattr(transformers, model)(getattr(transformers, config)(**arguments))
    tokens = torch.randint(_WORDS, (2, 48))
    return Loss(made).train(), {"input_ids": tokens, "labels": tokens.clone()}


def _images(name: str, size: int, arguments: dict[str, Any]) -> tuple[nn.Module, Inputs]:
    import timm

    model = timm.create_model(name, num_classes=10, **arguments)
    return Classified(model).train(), {"x": torch.randn(2, 3, size, size)}


__all__ = ["Inputs", "Make", "architectures"]
