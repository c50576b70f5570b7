"""Models that continue text, whatever their library: multiple choice by log-likelihood, and greedy generation."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instar.doors.local import Answers, Settings, Subject, Tell, batches
from instar.errors import DataError
from instar.gate.predictions import Cases

Row = tuple[list[int], int]
"""Tokens of a context and an answer, and how many of them are the answer's."""
_SPARED = 128
"""Tokens that must be spared before a shared beginning is read apart (SmolLM2-135M on a CPU breaks even at about 70)."""


class Speaker(Subject):
    """A causal model of text. `start` begins every text; `longest` is the most tokens it takes."""

    start: list[int]
    longest: int | None

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a text, nothing added."""

    @abc.abstractmethod
    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, marks aside."""

    @abc.abstractmethod
    def logits(self, tokens: Tensor, keep: Tensor, after: Any = None) -> Tensor:
        """Logits [B, n, V] at the places `keep` [n] of tokens [B, T], which are padded on the right.

        after: what `remember` gave of the tokens that come before those of every row; it is not changed.
        """

    def remember(self, tokens: Tensor) -> Any:
        """What `logits` needs of tokens [1, T] that begin every row; None for a model that cannot share them."""
        return None

    @abc.abstractmethod
    def generate(self, rows: list[list[int]], most: int, finished: Callable[[str], bool]) -> list[list[int]]:
        """The likeliest next tokens of each row, one after the other, until the end mark, `most` tokens or `finished(text)`."""

    def chat(self, text: str) -> str:
        """`text` as a user's turn, and what begins the answer."""
        raise self.refuse("with chat=true", "it has no chat template.")

    def answer(self, cases: Cases, task: str, settings: Settings, tell: Tell) -> Answers:
        """multiple_choice, generation; classification among the choices of the cases."""
        if task == "generation":
            return generation(self, cases, settings, tell)
        if task == "multiple_choice" or (task == "classification" and cases.choices is not None):
            return multiple_choice(self, cases, settings, tell)
        if task == "classification":
            raise self.refuse(task, "a model that continues text needs the labels to choose from as the choices of every item.")
        raise self.refuse(task, "a model that continues text does multiple_choice and generation.")

    def asked(self, text: str, settings: Settings) -> str:
        """The whole prompt of an item."""
        prompt = settings.prompt.replace("{input}", text)
        return self.chat(prompt) if settings.chat else prompt

    def room(self, settings: Settings) -> int | None:
        """Most tokens of a row."""
        return settings.max_length or self.longest


def multiple_choice(speaker: Speaker, cases: Cases, settings: Settings, tell: Tell) -> Answers:
    """The answer whose tokens have the largest summed log-likelihood after the prompt; of equals the first.

    An answer follows the prompt after a space, unless the prompt ends in white space or is a chat. `normalize` divides the sum
    by the characters of the answer or by its tokens.
    """
    if cases.choices is None:
        raise DataError(f"Multiple choice needs the answers to choose from; {cases.name} has no choices.")
    answers, rows = Answers.blank(len(cases)), []
    for place, (text, choices) in enumerate(zip(cases.inputs, cases.choices, strict=True)):
        context = speaker.asked(text, settings)
        gap = "" if settings.chat or not context or context[-1].isspace() else " "
        rows.append([split(speaker, context, gap + choice) for choice in choices])
        if problem := _problem(choices, rows[-1], speaker.room(settings)):
            answers.errors[place] = problem
    askable = [place for place in range(len(cases)) if place not in answers.errors]
    done = len(cases) - len(askable)
    for part in _parts(askable, rows, settings.batch):
        started = time.perf_counter()
        sums = likelihoods(speaker, [row for place in part for row in rows[place]], settings.batch)
        seconds, at = time.perf_counter() - started, 0
        for place in part:
            choices, own = cases.choices[place], sums[at : at + len(rows[place])]
            at += len(rows[place])
            answers.seconds[place] = seconds
            if np.isnan(own).any():
                answers.errors[place] = "the model's log-likelihoods are not numbers"
                continue
            sizes = {"none": [1] * len(own), "characters": [len(c) for c in choices], "tokens": [n for _, n in rows[place]]}
            answers.outputs[place] = choices[int((own / np.array(sizes[settings.normalize])).argmax())]
        done += len(part)
        tell(done)
    answers.facts = {"rule": "log-likelihood of the answer"}
    return answers


def split(speaker: Speaker, context: str, answer: str) -> Row:
    """Context and answer are encoded together, as they would be met in text; spaces between them belong to the answer."""
    bare = context.rstrip()
    whole = speaker.encode(context + answer)
    before = speaker.encode(bare)
    start = speaker.start if speaker.start or before else [0]  # something must come before the first token
    return [*start, *whole], len(whole) - len(before)


@torch.no_grad()
def likelihoods(speaker: Speaker, rows: list[Row], batch: int) -> np.ndarray:
    """Summed log-likelihood [N] of each row's answer. A long beginning that all rows share is read once."""
    shared, after = _shared(rows), None
    if _worth(rows):
        after = speaker.remember(torch.tensor([rows[0][0][:shared]], device=_device(speaker)))
    if after is not None:
        rows = [(ids[shared:], n) for ids, n in rows]
    return np.concatenate([_likelihoods(speaker, rows[i : i + batch], after) for i in range(0, len(rows), batch)])


def _likelihoods(speaker: Speaker, rows: list[Row], after: Any) -> np.ndarray:
    device = _device(speaker)
    tokens = torch.zeros(len(rows), max(len(ids) for ids, _ in rows) - 1, dtype=torch.int64)
    for row, (ids, _) in zip(tokens, rows, strict=True):
        row[: len(ids) - 1] = torch.tensor(ids[:-1])  # nothing follows the last
    wanted = [torch.arange(len(ids) - 1 - n, len(ids) - 1) for ids, n in rows]
    keep = torch.unique(torch.cat(wanted))
    logits = speaker.logits(tokens.to(device), keep.to(device), after).cpu()
    sums = np.empty(len(rows))
    for i, (ids, n) in enumerate(rows):
        own = logits[i, torch.searchsorted(keep, wanted[i])].float().log_softmax(-1)
        sums[i] = own.gather(1, torch.tensor(ids[-n:]).unsqueeze(1)).double().sum().item()
    return sums


def _shared(rows: list[Row]) -> int:
    """How many tokens begin every row, short of the last before an answer, whose logits are needed."""
    most = min(len(ids) - n for ids, n in rows) - 1
    first = rows[0][0]
    return next((i for i in range(most) if any(ids[i] != first[i] for ids, _ in rows)), max(most, 0))


def _worth(rows: list[Row]) -> bool:
    """Whether reading the shared beginning apart spares more than a second call of the model costs."""
    return _shared(rows) * (len(rows) - 1) >= _SPARED


def _device(speaker: Speaker) -> torch.device:
    return next(speaker.model.parameters()).device


def generation(speaker: Speaker, cases: Cases, settings: Settings, tell: Tell) -> Answers:
    """Greedy continuations, cut before the first stop text."""
    answers = Answers.blank(len(cases))
    rows = [[*speaker.start, *speaker.encode(speaker.asked(text, settings))] for text in cases.inputs]
    room = speaker.room(settings)
    for place, row in enumerate(rows):
        if not row:
            answers.errors[place] = "its prompt is empty"
        elif room is not None and len(row) + settings.max_new_tokens > room:
            answers.errors[place] = (
                f"its prompt of {len(row)} tokens and {settings.max_new_tokens} new ones are more than the {room} that fit"
            )
    askable = [place for place in range(len(rows)) if place not in answers.errors]

    def finished(text: str) -> bool:
        return any(stop in text for stop in settings.stop)

    done = len(rows) - len(askable)
    for part in batches([len(rows[place]) for place in askable], settings.batch):
        places = [askable[i] for i in part]
        started = time.perf_counter()
        found = speaker.generate([rows[place] for place in places], settings.max_new_tokens, finished)
        answers.seconds[places] = time.perf_counter() - started
        for place, tokens in zip(places, found, strict=True):
            text = speaker.decode(tokens)
            answers.outputs[place] = text[: min((text.index(s) for s in settings.stop if s in text), default=len(text))]
        done += len(part)
        tell(done)
    answers.facts = {"rule": "greedy"}
    return answers


def _problem(choices: list[str], rows: list[Row], room: int | None) -> str | None:
    if not choices:
        return "it has no choices"
    if not all(choices):
        return "one of its choices is empty"
    longest = max(len(ids) for ids, _ in rows)
    return f"its prompt and answer of {longest} tokens are more than the {room} that fit" if room and longest > room else None


def _parts(places: list[int], rows: list[list[Row]], size: int) -> Iterator[list[int]]:
    """Items in groups of at most `size` answers (one item at least), the longest first; alone where that shares a beginning."""
    part: list[int] = []
    for place in sorted(places, key=lambda p: -max(len(ids) for ids, _ in rows[p])):
        if _worth(rows[place]):
            yield [place]
            continue
        if part and sum(len(rows[p]) for p in part) + len(rows[place]) > size:
            yield part
            part = []
        part.append(place)
    if part:
        yield part
