"""Models of the ``transformers`` library, with random weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.spec import Checkpoint, Made, contexts


class LanguageModel(nn.Module):
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


_COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "use_cache": False,
    "attn_implementation": "sdpa",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _wrap_transformers(model: nn.Module, vocab: int, checkpoint: Checkpoint) -> Made:
    if checkpoint:
        # transformers renamed this in version 5; both take the arguments of torch's checkpoint.
        enable = getattr(model, "activation_checkpointing_enable", None)
        enable = enable or model.gradient_checkpointing_enable
        enable({"use_reentrant": False, **contexts(checkpoint)})
    return LanguageModel(model.train()), (torch.randint(vocab, (4, 256)),)


def gpt2_hf(checkpoint: Checkpoint) -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        **_COMMON,
        n_positions=256,
        n_embd=192,
        n_layer=8,
        n_head=6,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return _wrap_transformers(GPT2LMHeadModel(config), config.vocab_size, checkpoint)


def llama_hf(checkpoint: Checkpoint) -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **_COMMON,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=0.0,
    )
    return _wrap_transformers(LlamaForCausalLM(config), config.vocab_size, checkpoint)
