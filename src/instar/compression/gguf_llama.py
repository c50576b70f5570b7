"""Where the parts of a Llama of `transformers` stand in a GGUF file that llama.cpp runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from instar import extras
from instar.data.gguf_llama import INSIDE, OUTSIDE
from instar.errors import ModelError

Values = np.ndarray[Any, Any]
_BYTES = {"type": "ByteLevel", "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLITS: dict[str, list[dict[str, Any]]] = {"gpt-2": [_BYTES], "smollm": [_DIGITS, _BYTES]}
"""How a text is cut before pairs are merged, by llama.cpp's names."""


@dataclass(frozen=True)
class Place:
    """Names and metadata of a file; by default the model's own names, and no metadata."""

    architecture: str = "instar"
    describe: Callable[[Any], None] = lambda writer: None
    """Adds the metadata to a `gguf.GGUFWriter`."""
    tensor: Callable[[str, Values], tuple[str, Values] | None] = lambda name, values: (name, values)
    """(name, rows) as they stand in the file, None for what does not. Rows may be codes of a block format, and are only moved."""


def place(model: nn.Module, tokenizer: Any) -> Place:
    """For a `LlamaForCausalLM` with a byte-level BPE tokenizer.

    Rows of queries and keys go from halves (the rotary layout of `transformers`) to pairs (that of llama.cpp). Raises ModelError
    for another architecture, biases, parts cut out, scaled rotary positions, and other tokenizers.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind != "llama":
        raise ModelError(
            f"A GGUF file for llama.cpp is written of models of type llama; received {kind}. Without a tokenizer the tensors are "
            "written under their own names; for other types, llama.cpp's convert_hf_to_gguf.py takes the plain weights."
        )
    rotary = dict(getattr(config, "rope_parameters", None) or {})
    if rotary.get("rope_type", "default") != "default":
        raise ModelError(f"Rotary positions of type {rotary['rope_type']} are not written to GGUF files.")
    words = _vocabulary(tokenizer, config.vocab_size)
    outside = {ours: theirs for theirs, ours in OUTSIDE.items()}
    inside = {ours: theirs for theirs, ours in INSIDE.items()}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    rows = {"attn_q": heads["attn_q"] * width, "attn_k": heads["attn_k"] * width, "attn_v": heads["attn_k"] * width}
    rows |= {"ffn_gate": config.intermediate_size, "ffn_up": config.intermediate_size}

    def tensor(name: str, values: Values) -> tuple[str, Values] | None:
        part = name.removesuffix(".weight")
        if name.endswith("inv_freq") or (part == "lm_head" and config.tie_word_embeddings):
            return None  # llama.cpp computes the one, and reads the embedding for the other
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", part)
        if name == part or (found is None and part not in outside) or (found is not None and found[2] not in inside):
            raise ModelError(f"A Llama of llama.cpp has no place for {name}.")
        if found is None:
            return f"{outside[part]}.weight", values
        kin = inside[found[2]]
        if len(values) != rows.get(kin, len(values)):
            raise ModelError(
                f"{name} has {len(values)} rows where the configuration says {rows[kin]}; llama.cpp does not run a model out of "
                "which parts were cut."
            )
        return f"blk.{found[1]}.{kin}.weight", _pairs(values, heads[kin]) if kin in heads else values

    def describe(writer: Any) -> None:
        gguf = extras.require("gguf", "models")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(float(rotary.get("rope_theta", 10000.0)))
        writer.add_rope_dimension_count(width)
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_vocab_size(config.vocab_size)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        words(writer)

    return Place("llama", describe, tensor)


def _pairs(rows: Values, heads: int) -> Values:
    """The inverse of what `data.gguf_llama` does when it reads."""
    count, width = rows.shape
    return np.ascontiguousarray(rows.reshape(heads, 2, count // heads // 2, width).swapaxes(1, 2).reshape(count, width))


def _vocabulary(tokenizer: Any, size: int) -> Callable[[Any], None]:
    """Adds a byte-level BPE tokenizer to a writer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"Only fast tokenizers are written to GGUF files; received {type(tokenizer).__name__}.")
    held = json.loads(backend.to_str())
    model, kind = held["model"], _split(held["pre_tokenizer"])
    if model["type"] != "BPE" or kind is None or held["normalizer"]:
        raise ModelError(
            f"Only byte-level BPE tokenizers that cut texts as {' or '.join(_SPLITS)} do are written to GGUF files; this one is "
            f"{model['type']} with {json.dumps(held['pre_tokenizer'])[:200]}. llama.cpp's own converter knows more of them."
        )
    added = {token["id"]: token for token in held["added_tokens"]}
    by_id = {number: text for text, number in model["vocab"].items()} | {
        number: token["content"] for number, token in added.items()
    }
    if max(by_id) >= size:
        raise ModelError(f"The tokenizer has the id {max(by_id)}; the model's table has {size} rows.")

    def words(writer: Any) -> None:
        types = extras.require("gguf", "models").TokenType

        def type_of(number: int) -> Any:
            if number not in by_id:
                return types.UNUSED
            if number not in added:
                return types.NORMAL
            return types.CONTROL if added[number]["special"] else types.USER_DEFINED

        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_list([by_id.get(number, f"[unused{number}]") for number in range(size)])
        writer.add_token_types([type_of(number) for number in range(size)])
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
        for role in ("bos", "eos", "unk", "pad"):
            if (number := getattr(tokenizer, f"{role}_token_id", None)) is not None:
                getattr(writer, f"add_{role}_token_id")(number)
        writer.add_add_bos_token(tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
        writer.add_add_space_prefix(False)
        if template := getattr(tokenizer, "chat_template", None):
            writer.add_chat_template(template)

    return words


def _split(held: dict[str, Any] | None) -> str | None:
    steps = (held or {}).get("pretokenizers", [held]) if held else []
    found = [{key: value for key, value in step.items() if key in ("type", "use_regex", "individual_digits")} for step in steps]
    return next((name for name, known in _SPLITS.items() if found == known), None)
