"""Sampling from a decoder, one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.models.modes import evaluating
from instar.state import State

if TYPE_CHECKING:
    from instar.models.decoder import Decoder

ALONE = 64
"""Tokens of padding a row from which rows are read one by one: about what a call more costs."""


@torch.no_grad()
def stream(
    model: Decoder,
    prompts: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop: int | None = None,
    mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield the next token [B] of every row, at most `max_new_tokens` times. The model samples in eval mode.

    Args:
        prompts: int64 [B, T], T ≥ 1.
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        generator: where randomness comes from (the global one when None).
        stop: a row that produced this token repeats it; the stream ends when every row has.
        mask: bool [B, T], True where a prompt's token is real; rows of different lengths are padded on either side.

    Raises ShapeError.
    """
    if prompts.dim() != 2 or prompts.shape[1] == 0:
        raise ShapeError(f"generate expects prompts [B, T] with T ≥ 1; received {tuple(prompts.shape)}.")
    require_sampling(temperature, max_new_tokens, top_k)
    last = torch.full((prompts.shape[0],), prompts.shape[1] - 1, device=prompts.device)
    if mask is not None:
        if mask.shape != prompts.shape or not bool(mask.any(1).all()):
            raise ShapeError("generate expects a mask of the prompts' shape with a real token in every row.")
        last = torch.where(mask, torch.arange(prompts.shape[1], device=prompts.device), 0).amax(1)
        if bool(mask.all()):
            mask = None
    with evaluating(model):
        logits, state = _read(model, prompts, mask, last)
        finished = torch.zeros_like(last, dtype=torch.bool)
        for number in range(max_new_tokens):
            token = choose(logits, temperature, top_k, generator)
            if stop is not None:
                token = torch.where(finished, stop, token)
                finished = finished | (token == stop)
            yield token
            if number + 1 == max_new_tokens or bool(finished.all()):
                return
            logits, state = model(token.unsqueeze(1), state)
            logits = logits[:, -1]


def _read(model: Decoder, prompts: Tensor, mask: Tensor | None, last: Tensor) -> tuple[Tensor, State]:
    """Logits [B, vocabulary] after the last real token of each row, and the state.

    Where a batch is mostly padding and the model caches keys and values, each row is read alone and the caches are put together.
    """
    from instar.mixers import softmax

    cached = all(isinstance(block.mixer, softmax.Softmax) for block in model.blocks)
    if mask is None or not cached or int((~mask).sum()) < ALONE * len(mask):
        logits, state = model(prompts, mask=mask)
        return logits[torch.arange(len(last), device=prompts.device), last], state
    found, read = [], []
    for row, real in zip(prompts, mask, strict=True):
        x, state = model.features(row[real].unsqueeze(0))
        found.append(model.logits(x[:, -1]))
        read.append(state)
    layers = tuple(softmax.join(states) for states in zip(*(state["layers"] for state in read), strict=True))
    return torch.cat(found), {"position": torch.cat([state["position"] for state in read]), "layers": layers}


def require_sampling(temperature: float, max_new_tokens: int, top_k: int | None = None) -> None:
    """Raise ShapeError for settings that nothing can be drawn with."""
    if not temperature >= 0 or max_new_tokens < 0 or (top_k is not None and top_k < 1):
        raise ShapeError(
            "generate expects temperature ≥ 0, max_new_tokens ≥ 0 and top_k ≥ 1; received "
            f"{temperature}, {max_new_tokens} and {top_k}."
        )


def choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token [B] from logits [B, vocabulary]."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator).squeeze(1)
