"""Texts as padded rows of tokens, with the places in them that an edit reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instar.editing.facts import joined, subject_end
from instar.errors import EditError


@dataclass(frozen=True)
class Row:
    """One text: its tokens without the last of the target, which nothing is predicted from."""

    ids: list[int]
    subject: int
    """Place of the last token of the subject."""
    at: list[int]
    """Places whose next token is a token of the target."""
    target: list[int]
    """Those tokens."""


@dataclass(frozen=True)
class Rows:
    """B texts, padded on the right whatever the tokenizer does: in a causal model nothing real then sees padding."""

    ids: Tensor
    """int64 [B, T]."""
    mask: Tensor
    """int64 [B, T], 1 where a token is real."""
    subject: Tensor
    """int64 [B]."""
    at: Tensor
    """int64 [B, U], 0 where `target` is −1."""
    target: Tensor
    """int64 [B, U], −1 beyond the end."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: Tensor) -> Rows:
        """Some rows, without columns that only padding fills."""
        ids, mask, at, target = (part[places] for part in (self.ids, self.mask, self.at, self.target))
        width, answers = int(mask.sum(1).amax()), max(1, int((target >= 0).sum(1).amax()))
        return Rows(ids[:, :width], mask[:, :width], self.subject[places], at[:, :answers], target[:, :answers])

    def from_subject(self) -> Rows:
        """The rows without what stands before their subjects."""
        lengths = self.mask.sum(1) - self.subject
        columns = torch.arange(int(lengths.max()), device=self.ids.device)
        places = (self.subject[:, None] + columns).clamp(max=self.ids.shape[1] - 1)
        mask = (columns < lengths[:, None]).long()
        at = (self.at - self.subject[:, None]).clamp(min=0)
        return Rows(self.ids.gather(1, places), mask, torch.zeros_like(self.subject), at, self.target)

    def to_subject(self) -> Rows:
        """The rows without what stands after their subjects, and asked what follows there."""
        width = int(self.subject.max()) + 1
        mask = (torch.arange(width, device=self.ids.device) <= self.subject[:, None]).long()
        at = self.subject[:, None]
        return Rows(self.ids[:, :width], mask, self.subject, at, torch.full_like(at, -1))


def row(tokenizer: Any, prompt: str, subject: str | None, target: str = "", prefix: str = "") -> Row:
    """`prefix + prompt + target` as tokens, found by the places of characters that the tokenizer gives.

    An empty target leaves `at` with the subject's place and no target; without a subject its place is 0. Raises EditError where
    one token holds the end of the subject and of what follows it, or of the prompt and the target.
    """
    prompt, answer = joined(prompt, target) if target else (prompt.rstrip(), "")
    text = prefix + prompt + answer
    ids, spans = tokens(tokenizer, text)
    place = 0 if subject is None else _last_of(text, spans, prompt, subject, len(prefix))
    if not answer:
        return Row(ids, place, [place], [])
    border = len(prefix) + len(prompt)
    first = next((i for i, (start, stop) in enumerate(spans) if stop > border and start < stop), None)
    if first is None or (spans[first][0] < border and text[spans[first][0] : border].strip()):
        held = "none" if first is None else repr(text[spans[first][0] : spans[first][1]])
        raise EditError(
            f"The tokenizer joins the end of the prompt {prompt!r} with the target {target!r}: one token is {held}. Move what "
            "stands before the border from the prompt to the target."
        )
    return Row(ids[:-1], place, list(range(first - 1, len(ids) - 1)), ids[first:])


def _last_of(text: str, spans: list[tuple[int, int]], prompt: str, subject: str, before: int) -> int:
    """The last token of the subject."""
    end = before + subject_end(prompt, subject)
    place = max(i for i, (start, stop) in enumerate(spans) if start < end <= stop)
    if text[end : spans[place][1]].strip():
        raise EditError(
            f"The tokenizer joins the end of the subject {subject!r} with what follows it in {prompt!r}: one token is "
            f"{text[spans[place][0] : spans[place][1]]!r}. Write the prompt so that a space or a comma follows the subject."
        )
    return place


def tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and their places in the text; marks that the tokenizer sets at the beginning stay, those at the end go."""
    if not getattr(tokenizer, "is_fast", False):
        raise EditError(f"{type(tokenizer).__name__} does not say where its tokens stand in a text: a fast tokenizer is needed.")
    made = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, spans = list(made["input_ids"]), [tuple(span) for span in made["offset_mapping"]]
    while spans and spans[-1][0] == spans[-1][1]:
        ids.pop(), spans.pop()
    return ids, spans


def pack(rows: Sequence[Row], device: torch.device) -> Rows:
    """Rows as one batch."""
    width, answers = max(len(r.ids) for r in rows), max(1, *(len(r.target) for r in rows))
    return Rows(
        torch.tensor([r.ids + [r.ids[0]] * (width - len(r.ids)) for r in rows], device=device),
        torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in rows], device=device),
        torch.tensor([r.subject for r in rows], device=device),
        torch.tensor([r.at + [0] * (answers - len(r.at)) for r in rows], device=device),
        torch.tensor([r.target + [-1] * (answers - len(r.target)) for r in rows], device=device),
    )
