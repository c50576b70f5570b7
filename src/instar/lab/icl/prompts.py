"""Tasks of Boolean functions as text, and how often a causal language model continues them rightly.

Bhattamishra et al. 2024 (arXiv 2310.03016), section 6: prompts of 3 to 7 bits, against nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from instar.errors import DataError, ShapeError

Continue = Callable[[str, Sequence[str]], Sequence[float]]
"""The scores (such as log-probabilities) of continuations of a prompt; the highest is the answer."""
LABELS = ("0", "1")
_TASK = "Below are inputs of an unknown Boolean function, and its values. Say the value of the last input."


def prompt(xs: Tensor, ys: Tensor, query: Tensor, *, task: str = _TASK) -> str:
    """One task in words: xs [N, D] and ys [N] in {−1, 1}, the query [D]. It ends where the label has to come.

    Raises ShapeError for shapes that do not fit.
    """
    if xs.dim() != 2 or ys.shape != xs.shape[:1] or query.shape != xs.shape[1:]:
        raise ShapeError(
            f"A prompt takes xs [N, D], ys [N] and a query [D]; received {list(xs.shape)}, {list(ys.shape)}, {list(query.shape)}."
        )
    shown = [f"Input: {_bits(x)}\nLabel: {LABELS[int(y > 0)]}" for x, y in zip(xs, ys, strict=True)]
    return "\n\n".join([task, *shown, f"Input: {_bits(query)}\nLabel:"])


def accuracy(say: Continue, xs: Tensor, ys: Tensor) -> Tensor:
    """Whether `say` finds the last label of each task from the pairs before it, 0 or 1 [B]; a tie counts half.

    xs [B, N, D], ys [B, N]; N is 1 or more. Raises ShapeError, and DataError where `say` does not score both labels.
    """
    if xs.dim() != 3 or xs.shape[:2] != ys.shape or xs.shape[1] < 1:
        raise ShapeError(f"Tasks are xs [B, N, D] and ys [B, N]; received {list(xs.shape)} and {list(ys.shape)}.")
    right = []
    for x, y in zip(xs, ys, strict=True):
        scores = list(say(prompt(x[:-1], y[:-1], x[-1]), [f" {label}" for label in LABELS]))
        if len(scores) != 2 or any(score != score for score in scores):
            raise DataError(f"Each prompt needs the scores of {len(LABELS)} continuations; received {scores}.")
        apart = (scores[1] - scores[0]) * float(y[-1])
        right.append(0.5 if apart == 0 else float(apart > 0))
    return torch.tensor(right)


def by_model(model: Any, tokenizer: Any) -> Continue:
    """Log-probabilities of continuations under a causal model of `transformers` (or any whose output has `logits`).

    Continuations may have several tokens. They are cut from the text of prompt and continuation together, as tokens may join.
    """

    @torch.no_grad()
    def say(text: str, continuations: Sequence[str]) -> list[float]:
        begin = len(tokenizer(text)["input_ids"])
        scores = []
        for continuation in continuations:
            tokens = torch.tensor([tokenizer(text + continuation)["input_ids"]])
            tokens = tokens.to(next(model.parameters()).device)
            logits = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
            begin_at = min(begin, tokens.shape[1] - 1)  # a continuation that joined the last token is scored with it
            picked = logits.gather(-1, tokens[0, 1:, None])[begin_at - 1 :, 0]
            scores.append(float(picked.sum()))
        return scores

    return say


def _bits(x: Tensor) -> str:
    return " ".join(LABELS[int(bit > 0)] for bit in x)
