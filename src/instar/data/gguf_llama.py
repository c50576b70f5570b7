"""A Llama model in a GGUF file made into a folder that plain `transformers` loads: dense float32, marked as nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instar import extras
from instar.errors import ModelError
from instar.models import checkpoint

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path) -> None:
    """Write config, tokenizer and float32 weights of `source` into the existing `folder`, durably.

    `transformers` reads configuration and tokenizer; the tensors are read here, since its own way needs another package, takes
    longer, and leaves a model that is marked as quantised and can be neither saved nor trained. Raises MissingExtraError,
    ModelError.
    """
    extras.require("gguf", "models")
    transformers = extras.require("transformers", "models")
    where = {"gguf_file": source.name, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(source.parent, **where)
    if config.model_type != "llama":
        raise ModelError(f"{source} holds a model of type {config.model_type}; only llama is converted.")
    tensors = read(source, config.num_attention_heads, config.num_key_value_heads)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.float32
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expected = {k: v for k, v in model.state_dict().items() if not (config.tie_word_embeddings and k == "lm_head.weight")}
    checkpoint.compare(source, tensors, expected)
    model.load_state_dict(tensors, assign=True, strict=False)  # strict but for the tied head, which the comparison covers
    model.tie_weights()
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read(source: Path, heads: int, key_heads: int) -> dict[str, Tensor]:
    """The tensors of a GGUF file of Llama type by their names in `transformers`, float32. Raises ModelError."""
    gguf = extras.require("gguf", "models")
    found = {}
    for tensor in gguf.GGUFReader(source).tensors:
        name = _name(tensor.name)
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _halves(values, heads if "q_proj" in name else key_heads)
        found[name] = torch.from_numpy(values)
    return found


def _name(name: str) -> str:
    parts = name.split(".")
    if len(parts) == 2 and parts[0] in OUTSIDE:
        return f"{OUTSIDE[parts[0]]}.{parts[1]}"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in INSIDE:
        return f"model.layers.{parts[1]}.{INSIDE[parts[2]]}.{parts[3]}"
    raise ModelError(f"The GGUF file holds a tensor '{name[:80]}', which no Llama model has.")


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of every head from pairs (llama.cpp's rotary layout) back to halves (that of `transformers`)."""
    rows, width = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width))
