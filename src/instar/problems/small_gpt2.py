"""The GPT-2 of random weights that problems train their own small language models from."""

from __future__ import annotations

from typing import Any

from torch import nn

from instar import extras


def small_gpt2(vocabulary: int, mark: int, *, length: int, width: int, depth: int, heads: int) -> nn.Module:
    """`depth` layers of a width, tied head, no dropout. mark: the token that stands before and after texts."""
    config: Any = extras.require("transformers", "models").GPT2Config(
        **{"vocab_size": vocabulary, "n_positions": length, "n_embd": width, "n_layer": depth, "n_head": heads},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": mark, "eos_token_id": mark},
    )
    model: nn.Module = extras.require("transformers", "models").GPT2LMHeadModel(config)
    return model
