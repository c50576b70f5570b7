"""What is left of a model's answers to texts that its change has nothing to do with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from instar.data.topics import topics
from instar.editing.drift import stretches
from instar.errors import DataError, ModelError
from instar.problems.language import evaluating

_TEXTS, _WORDS, _TOKENS = 100, 40, 2048


def texts() -> list[str]:
    """English that comes with Python."""
    return [" ".join(text.split()[:_WORDS]) for text in (topics().texts or ())[:_TEXTS]]


@torch.no_grad()
def answers(model: Any, tokenizer: Any, kind: str, asked: Sequence[str]) -> list[Tensor]:
    """What `compared` compares. encoder: the mean vector of each text. classifier: [[class]]. causal: [T, 2] of each stretch,
    the likeliest next token and the nats of the real one."""
    with evaluating(model):
        found = (_tokens if kind == "causal" else _whole)(model, tokenizer, kind, asked)
    if not found:
        raise DataError("What a model keeps is seen on texts; received none.")
    if not all(bool(torch.isfinite(answer).all()) for answer in found):
        raise ModelError(f"{type(model).__name__} answers texts with NaN or infinity: its weights are not finite.")
    return found


def compared(before: Sequence[Tensor], after: Sequence[Tensor], kind: str) -> dict[str, float]:
    """Figures by name.

    encoder: `cosine` of each text's vector to the one before, mean, and the `worst cosine`. classifier: the share of the `same
    class`. causal: the share of the `same next token`, and `perplexity before` and `after`.
    """
    if kind == "encoder":
        cosines = torch.cosine_similarity(torch.stack(list(before)), torch.stack(list(after)))
        return {"cosine": float(cosines.mean()), "worst cosine": float(cosines.min())}
    same = torch.cat([(old[..., 0] == new[..., 0]).float().reshape(-1) for old, new in zip(before, after, strict=True)])
    if kind == "classifier":
        return {"same class": float(same.mean())}
    old, new = (math.exp(float(torch.cat([one[:, 1] for one in side]).mean())) for side in (before, after))
    return {"same next token": float(same.mean()), "perplexity before": old, "perplexity after": new}


def _tokens(model: Any, tokenizer: Any, kind: str, asked: Sequence[str]) -> list[Tensor]:
    found = []
    for stretch in stretches(model, tokenizer, asked, _TOKENS):
        ids = torch.tensor([stretch], device=model.device)
        logp = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        found.append(torch.cat([logp.argmax(-1, keepdim=True).float(), -logp.gather(-1, ids[0, 1:, None])], 1))
    return found


def _whole(model: Any, tokenizer: Any, kind: str, asked: Sequence[str]) -> list[Tensor]:
    found = []
    for text in asked:
        answer = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=128).to(model.device))
        encoded = kind == "encoder"
        found.append(answer.last_hidden_state[0].float().mean(0) if encoded else answer.logits.argmax(-1, keepdim=True))
    return found
