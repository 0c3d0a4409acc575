"""Models for ``recut plan`` and its kin: each function returns a model and what it is called with.

They are far larger than this machine, and meant to be called with fake tensors::

    recut plan benchmarks.factories:llama_7b --budget 40GiB --machine h200
    recut fit benchmarks.factories:llama_7b --size batch=1..64 --budget 80GiB --machine h200
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.models.library import LanguageModel

Made = tuple[nn.Module, tuple[Tensor, ...]]


@contextmanager
def _made_of(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def llama_7b(batch: int = 1, length: int = 4096, layers: int = 32) -> Made:
    """Return the Llama of 7 billion parameters of ``transformers``, in bfloat16, and tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=32,
        intermediate_size=11008,
        vocab_size=32_000,
        max_position_embeddings=length,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with _made_of(torch.bfloat16):
        model = LlamaForCausalLM(config)
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    return LanguageModel(model.train()), (tokens,)
