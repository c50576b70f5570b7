"""Generation with a causal model of `transformers` for prompts of very different lengths, without any padding.

    tokens = hf_ragged.generate(model, [tokenizer(text)["input_ids"] for text in texts], max_new_tokens=32)

Importing this module imports `transformers`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from instar import extras
from instar.doors import hf_decode
from instar.doors.hf_ragged_cache import RaggedCache
from instar.errors import ModelError, ShapeError
from instar.models.generation import choose, require_sampling
from instar.models.modes import evaluating

outputs: Any = extras.require("transformers.modeling_outputs", "models")
CACHE = "cache" if "cache" in outputs.CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name of the argument, and of what a model returns: it changed."""
_PLACES = frozenset({"wpe", "embed_positions", "position_embeddings"})
"""What models call the table of the positions that they have learned."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Tensor | Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop: int | Sequence[int] | None = None,
    quantised: bool = False,
) -> list[Tensor]:
    """The new tokens of each prompt, int64, at most `max_new_tokens`, the one that stopped it included.

    Each prompt is read alone, by SDPA; then all rows decode together, each over its own keys. Greedy tokens are those of
    `model.generate` for each prompt alone, unless two logits are nearer than rounding.

    Args:
        model: a causal model with full attention in all layers, in any mode; it samples in eval mode.
        prompts: token ids, [T] or [1, T] with T ≥ 1 each.
        temperature, top_k, generator: as in `instar.models.generation.stream`.
        stop: tokens that end a row; None is `eos_token_id` of the model's generation config. () for none.
        quantised: keys and values kept as int8 (see `RaggedCache`): longer texts in the same memory, and faster where the cache
            is much of what is read; tokens may differ.

    Raises ShapeError for prompts that are no token ids of the model and for settings that `stream` refuses, ModelError for a
    model with other caches than keys and values of all tokens.
    Time: of prompts Σ_b (T_b P + T_b² D), of tokens P + Σ_b T_b D each, for P parameters.
    """
    rows = [_row(prompt, model) for prompt in prompts]
    if not rows:
        raise ShapeError("generate expects at least one prompt; received none.")
    require_sampling(temperature, max_new_tokens, top_k)
    stops = _stops(model, stop)
    if max_new_tokens == 0:
        return [row[0, :0] for row in rows]
    capacity = max(row.shape[1] for row in rows) + max_new_tokens
    _require_places(model, capacity - 1)  # the last token is not read
    cache = RaggedCache(len(rows), _layers(model), capacity, quantised=quantised)
    with _attention(model), evaluating(model):
        logits = []
        for number, row in enumerate(rows):
            with cache.filling(number):
                logits.append(model(input_ids=row, use_cache=True, logits_to_keep=1, **{CACHE: cache}).logits[:, -1])
        tokens = choose(torch.cat(logits), temperature, top_k, generator)
        found, finished = [tokens], torch.isin(tokens, stops)
        while len(found) < max_new_tokens and not bool(finished.all()):
            said = model(
                input_ids=tokens.unsqueeze(1),
                attention_mask=cache.mask().to(tokens.device),
                position_ids=cache.positions().to(tokens.device),
                use_cache=True,
                **{CACHE: cache},
            )
            tokens = choose(said.logits[:, -1], temperature, top_k, generator)
            found.append(tokens)
            finished = finished | torch.isin(tokens, stops)
    return [_until(row, stops) for row in torch.stack(found, 1)]


def _row(prompt: Tensor | Sequence[int], model: Any) -> Tensor:
    """int64 [1, T] on the model's device. Raises ShapeError for what is no prompt of it."""
    found = torch.as_tensor(prompt)
    batch = found.dim() not in (1, 2) or (found.dim() == 2 and found.shape[0] != 1)
    if batch or found.numel() == 0 or found.is_floating_point() or found.dtype == torch.bool:
        raise ShapeError(
            "generate expects prompts of at least one token, [T] or [1, T] integers each; received "
            f"{tuple(found.shape)} of {found.dtype}."
        )
    most = model.get_input_embeddings().num_embeddings
    if not 0 <= int(found.min()) <= int(found.max()) < most:
        raise ShapeError(
            f"The model knows tokens from 0 to {most - 1}; a prompt has them from {int(found.min())} to {int(found.max())}."
        )
    return found.reshape(1, -1).to(model.device, torch.int64)


def _require_places(model: Any, tokens: int) -> None:
    """Raise ShapeError for more tokens than a model that has learned its positions knows; rotations have no end."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    names = (name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding))
    if most is not None and tokens > most and not _PLACES.isdisjoint(names):
        raise ShapeError(
            f"The model has learned {most} positions; the longest prompt and what follows it need {tokens}. Shorten the prompt "
            "or ask for fewer tokens."
        )


def _until(tokens: Tensor, stops: Tensor) -> Tensor:
    """The tokens up to the first that stops."""
    ends = torch.isin(tokens, stops).nonzero()
    return tokens if not len(ends) else tokens[: int(ends[0]) + 1]


def _stops(model: Any, stop: int | Sequence[int] | None) -> Tensor:
    found = getattr(model.generation_config, "eos_token_id", None) if stop is None else stop
    return torch.tensor([found] if isinstance(found, int) else list(found or ()), dtype=torch.int64, device=model.device)


def _layers(model: Any) -> int:
    """How many layers of keys and values. Raises ModelError for other layers."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    known = getattr(model, "_supports_attention_backend", False)
    if kinds != {"full_attention"} or windowed or not known:
        has = f"has {', '.join(sorted(kinds))}{' with a window' if windowed else ''}"
        raise ModelError(
            f"Ragged generation expects a causal model with full attention in all layers, by the attention interface; "
            f"{type(model).__name__} {has if known else 'does not use that interface'}."
        )
    return int(config.num_hidden_layers)


@contextlib.contextmanager
def _attention(model: Any) -> Iterator[None]:
    """The model with our attention inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(hf_decode.register())
    try:
        yield
    finally:
        model.set_attn_implementation(before)
