"""What an edit did to everything else: how other texts are predicted, and whether what is written still varies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from instar.editing.rows import tokens as tokenised
from instar.editing.running import call, resting
from instar.errors import DataError, ModelError
from instar.receipt import Receipt

_LENGTH = 128


@dataclass(frozen=True)
class Moved:
    """A stretch of text under the model before and after: sums over its tokens, in nats."""

    divergence: float
    """KL(before ‖ after)."""
    before: float
    """NLL."""
    after: float
    tokens: int


def moved(model: nn.Module, tokenizer: Any, receipt: Receipt, texts: Sequence[str], *, most: int = 2048) -> list[Moved]:
    """How texts are predicted, at most so many tokens, in stretches of at most 128.

    The model must stand as the receipt left it; it is put back for the first half, and is as it was at the end. Raises DataError
    for texts without two tokens in a row, ReceiptError where the model was changed since.
    """
    windows = stretches(model, tokenizer, texts, most)
    found = []
    with resting(model):
        with receipt.reverted(model):
            before = [_logp(model, window) for window in windows]
        for window, old in zip(windows, before, strict=True):
            new = _logp(model, window)
            following = torch.tensor(window[1:], device=new.device)[:, None]
            divergence = float((old.exp() * (old - new)).sum())
            nll_before, nll_after = (-float(logp.gather(-1, following).sum()) for logp in (old, new))
            found.append(Moved(divergence, nll_before, nll_after, len(following)))
    return found


def drift(model: nn.Module, tokenizer: Any, receipt: Receipt, texts: Sequence[str], *, most: int = 2048) -> dict[str, float]:
    """Mean KL(before ‖ after) a token of held-out texts, in nats, and their perplexity before and after. See `moved`."""
    found = moved(model, tokenizer, receipt, texts, most=most)
    tokens = sum(one.tokens for one in found)
    return {
        "drift": sum(one.divergence for one in found) / tokens,
        "perplexity before": math.exp(sum(one.before for one in found) / tokens),
        "perplexity after": math.exp(sum(one.after for one in found) / tokens),
    }


def fluency(model: Any, tokenizer: Any, prompts: Sequence[str], *, length: int = 100, seed: int = 0) -> float:
    """How varied generations are: mean over prompts of ½ (⅔ H₂ + ⁴⁄₃ H₃) · 100, H_n the entropy in bits of n-grams of words.

    Top-5 sampling of `length` tokens with the model's own `generate`, fewer where it has not so many positions left; repetition
    brings it towards 0, English is near 620. Words are what stands between spaces. Raises DataError for no prompts, ModelError
    for one that leaves no position to continue it.
    """
    if not prompts:
        raise DataError("fluency expects prompts to continue; received none.")
    values = []
    positions = _positions(model)
    with resting(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for prompt in prompts:
            asked = tokenised(tokenizer, prompt)[0]
            room = length if positions is None else min(length, positions - len(asked))
            if room < 1:
                raise ModelError(
                    f"{type(model).__name__} has {positions} positions; a prompt of {len(asked)} tokens leaves none to go on."
                )
            ids = torch.tensor([asked], device=next(model.parameters()).device)
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                **{"do_sample": True, "top_k": 5, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": room},
                pad_token_id=tokenizer.pad_token_id or 0,
                eos_token_id=-1,  # it goes on: a short text has few n-grams
            )
            words = tokenizer.decode(made[0], skip_special_tokens=True).split()
            values.append((entropy(words, 2) * 2 / 3 + entropy(words, 3) * 4 / 3) / 2)
    return 100 * sum(values) / len(values)


def entropy(words: Sequence[str], n: int) -> float:
    """Of n-grams, in bits."""
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0


def _positions(model: nn.Module) -> int | None:
    """Tokens that a model can read at most, where it says so."""
    found: int | None = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return found


@torch.no_grad()
def _logp(model: nn.Module, window: Sequence[int]) -> torch.Tensor:
    ids = torch.tensor([window], device=next(model.parameters()).device)
    return call(model, ids, torch.ones_like(ids))[0, :-1].float().log_softmax(-1)


def stretches(model: nn.Module, tokenizer: Any, texts: Sequence[str], most: int) -> list[list[int]]:
    length = min(_LENGTH, _positions(model) or _LENGTH)
    found: list[list[int]] = []
    left = most
    for text in texts:
        ids = tokenised(tokenizer, text)[0]
        for start in range(0, len(ids), length):
            window = ids[start : start + min(length, left)]
            if len(window) > 1:
                found.append(window)
                left -= len(window)
    if not found:
        raise DataError("Drift needs texts of two tokens or more; received none.")
    return found
