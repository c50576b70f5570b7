"""Parts of transformers are found in every architecture that is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from instar.anatomy import Anatomy, anatomy, linears
from instar.data import pretrained
from instar.errors import MissingExtraError, ModelError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**SMALL, "num_key_value_heads": 2}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 50},
    "gptj": {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 50, "rotary_dim": 4},
    "gpt_neox": SMALL,
    "gpt_neo": {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "attention_types": [[["global"], 2]], "vocab_size": 50},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma3_text": {**GROUPED, "head_dim": 8},
    "olmo2": SMALL,
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": SMALL,
    "phi3": SMALL,
    "bloom": {"n_layer": 2, "hidden_size": 32, "n_head": 4, "vocab_size": 50},
    "falcon": SMALL,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "mpnet": SMALL,
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50},
    "modernbert": {**SMALL, "cls_token_id": 1, "sep_token_id": 2},
}


def made(kind: str, settings: dict[str, Any], auto: Any) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind, **settings, **SPECIAL)
    return auto.from_config(config).eval()


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_named_architecture(kind: str) -> None:
    causal = kind in CAUSAL
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model = made(kind, CAUSAL[kind] if causal else ENCODERS[kind], auto)
    parts = anatomy(model)
    assert (len(parts.blocks), parts.width, parts.heads) == (2, 32, 4)
    assert parts.embedding is not None
    assert parts.embedding.embedding_dim == 32
    assert (parts.final_norm is None) == (kind in {"bert", "roberta", "mpnet", "distilbert"})
    assert (parts.head is not None) == causal
    for block in parts.blocks:
        assert block.attention_out.inputs == parts.heads * parts.head_dim
        assert block.ffn_out.outputs == block.attention_out.outputs == 32
        assert {part.inputs for part in (*block.attention_in, *block.ffn_in)} == {32}
        hidden = sum(part.outputs for part in block.ffn_in)
        assert hidden in (block.ffn_out.inputs, 2 * block.ffn_out.inputs)
        assert len(block.linears) == len([x for x in linears(model) if x.name.startswith(block.name + ".")])
        if block.value is not None:
            assert block.value.outputs == parts.kv_heads * parts.head_dim


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_outputs_of_attention_and_ffn_are_what_is_added_to_the_residual(kind: str) -> None:
    """With both outputs at zero, a block of a pre-norm model is the identity."""
    torch.manual_seed(0)
    model = made(kind, CAUSAL[kind], transformers.AutoModelForCausalLM)
    parts = anatomy(model)
    with torch.no_grad():
        for block in parts.blocks:
            for part in (block.attention_out, block.ffn_out):
                part.parameter.zero_()
                if part.bias is not None:
                    part.bias.zero_()
        states = model(torch.arange(3, 9).view(1, -1), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[0], states[1])


def test_a_weight_is_out_by_in_however_it_is_stored() -> None:
    model = made("gpt2", CAUSAL["gpt2"], transformers.AutoModelForCausalLM)
    layer = anatomy(model).blocks[0].ffn_out
    assert layer.transposed
    assert layer.weight.shape == (32, 128)
    x = torch.randn(5, 128)
    torch.testing.assert_close(layer.module(x), x @ layer.weight.T + layer.bias)
    assert dict(model.named_parameters())[layer.parameter_name] is layer.parameter


@pytest.mark.parametrize(("name", "shape"), [("all-MiniLM-L6-v2", (6, 384, 12, 12)), ("SmolLM2-135M-Instruct", (30, 576, 9, 3))])
def test_real_models(name: str, shape: tuple[int, ...]) -> None:
    try:
        model, _ = pretrained.load(name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    parts: Anatomy = anatomy(model)
    assert (len(parts.blocks), parts.width, parts.heads, parts.kv_heads) == shape
    assert parts.head_dim == shape[1] // shape[2]
    assert parts.tied == (name != "all-MiniLM-L6-v2")


def test_what_cannot_be_taken_apart_is_named() -> None:
    with pytest.raises(ModelError, match="Sequential has no list of blocks"):
        anatomy(nn.Sequential(nn.Linear(3, 3)))
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
    with pytest.raises(ModelError, match="has an encoder and a decoder"):
        anatomy(transformers.T5ForConditionalGeneration(config))
    packed = made("llama", GROUPED, transformers.AutoModelForCausalLM)
    packed.config.quantization_config = {"quant_method": "gguf"}
    with pytest.raises(ModelError, match="are quantised"):
        anatomy(packed)
    experts = made("mixtral", {**GROUPED, "num_local_experts": 2}, transformers.AutoModelForCausalLM)
    with pytest.raises(ModelError):
        anatomy(experts)
