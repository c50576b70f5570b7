"""Small random models of real architectures, for the mechanics of editing."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from instar.bench.seeds import initialising
from instar.checks.editor_world import FACTS, World, worlds
from instar.checks.subject import find
from instar.interfaces import Fact

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
WIDTH = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**WIDTH, "num_key_value_heads": 2}
OLD = {"n_layer": 4, "n_embd": 32, "n_head": 4, "n_positions": 128}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "gpt_neox": WIDTH,
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
}


def world() -> World:
    return worlds(find("memit"))[0]


TOKENIZER = world().tokenizer
MORE_FACTS = (
    *FACTS,
    Fact("Rome is a city of", "Rome", "Norway", "Italy"),
    Fact("People in Paris speak", "Paris", "Norwegian and more", "French"),
    Fact("Who built the Colosseum? It was", "the Colosseum", "Big Ben", "Vespasian"),
)


def tiny(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose blocks say something: at the usual start they put out next to nothing."""
    config = transformers.AutoConfig.for_model(kind, **ARCHITECTURES[kind], **SPECIAL, vocab_size=len(TOKENIZER))
    with initialising(seed), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "wpe" not in name:
                parameter.mul_(6)
            elif name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    made: nn.Module = model.to(dtype).eval()
    return made
