"""The algorithmic tasks: sequences made by chance, each with the labels that an algorithm gives them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from instar.bench.seeds import stream
from instar.errors import DataError, ShapeError, UnknownNameError
from instar.interfaces import Examples

BOS, EOS = "<s>", "</s>"
Labels = list[str | None]
Row = tuple[list[str], Labels]
_IN_VAIN = 10
"""Draws in a row that bring nothing new, for each sequence found, after which a task is taken to have no more."""


@dataclass(frozen=True)
class Task:
    """A generator. `vocab` counts the special tokens (one for padding among them), `length` those of a sequence."""

    name: str
    draw: Callable[[int, int, torch.Generator], Row]
    """(vocab, length, generator) -> tokens and labels."""
    vocab: int
    length: int
    """The paper's sizes (those of `induction` and the Dyck languages have the vocabulary of the task)."""
    specials: int
    causal: bool = False


def reverse(tokens: Sequence[str]) -> Labels:
    """`<s> a b c </s>` -> c b a; nothing is asked at the ends."""
    return [None, *reversed(tokens[1:-1]), None]


def sort(tokens: Sequence[str]) -> Labels:
    """`<s> 3 1 2 </s>` -> 1 2 3; nothing is asked at the ends."""
    return [None, *sorted(tokens[1:-1]), None]


def hist(tokens: Sequence[str]) -> Labels:
    """How often each token stands there."""
    counts = Counter(tokens[1:])
    return [None, *(str(counts[token]) for token in tokens[1:])]


def double_hist(tokens: Sequence[str]) -> Labels:
    """How many different tokens stand there as often as this one."""
    counts = Counter(tokens[1:])
    alike = Counter(counts.values())
    return [None, *(str(alike[counts[token]]) for token in tokens[1:])]


def most_freq(tokens: Sequence[str]) -> Labels:
    """The different tokens, the most frequent first and of equal ones the first seen; then `<s>`."""
    counts = Counter(tokens[1:])
    ordered = sorted(counts, key=lambda token: (-counts[token], tokens.index(token)))
    return [None, *ordered, *[BOS] * (len(tokens) - 1 - len(ordered))]


def dyck(tokens: Sequence[str]) -> Labels:
    """Of each prefix: T balanced, P it can still become so, F it cannot."""
    opens, broken = {")": "(", "}": "{"}, False
    stack: list[str] = []
    labels: Labels = [None]
    for token in tokens[1:]:
        if token in opens:
            broken = broken or not stack or stack.pop() != opens[token]
        else:
            stack.append(token)
        labels.append("F" if broken else "P" if stack else "T")
    return labels


def induction(tokens: Sequence[str]) -> Labels:
    """At a letter that was there before, the digit that followed it; `<unk>` at a letter's first time; nothing at digits."""
    followed: dict[str, str] = {}
    labels: Labels = [None]
    for place, token in enumerate(tokens[1:], 1):
        if token.isdigit():
            labels.append(None)
            followed[tokens[place - 1]] = token
        else:
            labels.append(followed.get(token, "<unk>"))
    return labels


def _choice(options: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    return [options[i] for i in torch.randint(len(options), (count,), generator=generator).tolist()]


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (1,), generator=generator))


def _symbols(label: Callable[[Sequence[str]], Labels], specials: int, ends: bool) -> Callable[[int, int, torch.Generator], Row]:
    """Tokens 0, 1, …, all as likely, of a length from 1 to what the ends leave."""

    def draw(vocab: int, length: int, generator: torch.Generator) -> Row:
        count = 1 + _below(length - (2 if ends else 1), generator)
        width = len(str(vocab - specials - 1))  # so that they sort as texts as they do as numbers
        inner = _choice([f"{i:0{width}d}" for i in range(vocab - specials)], count, generator)
        tokens = [BOS, *inner, *([EOS] if ends else [])]
        return tokens, label(tokens)

    return draw


def _dyck(pairs: Sequence[str]) -> Callable[[int, int, torch.Generator], Row]:
    """Half a balanced text, of length − 1 at most and cut there; half that many symbols by chance."""
    symbols = "".join(pairs)

    def balanced(generator: torch.Generator, longest: int) -> list[str]:
        found: list[str] = []
        while len(found) < longest:
            pair = pairs[_below(len(pairs), generator)]
            # Nested in what there is, or beside it: every balanced text can come about.
            found = [pair[0], *found, pair[1]] if _below(2, generator) else [*found, *pair]
            if not _below(longest, generator):
                break
        return found

    def draw(vocab: int, length: int, generator: torch.Generator) -> Row:
        inner = balanced(generator, length - 1) if _below(2, generator) else _choice(symbols, length - 1, generator)
        tokens = [BOS, *inner[: length - 1]]
        return tokens, dyck(tokens)

    return draw


def _induction(vocab: int, length: int, generator: torch.Generator) -> Row:
    """Letters, each followed by the digit that this sequence has for it."""
    letters = [chr(ord("a") + i) for i in range((vocab - 2) // 2)]
    digits = dict(zip(letters, _choice([str(i) for i in range(len(letters))], len(letters), generator), strict=True))
    tokens = [BOS]
    for letter in _choice(letters, (length - 1) // 2, generator):
        tokens += [letter, digits[letter]]
    return tokens, induction(tokens)


TASKS = {
    task.name: task
    for task in (
        Task("reverse", _symbols(reverse, 3, True), 8, 8, 3),
        Task("hist", _symbols(hist, 2, False), 8, 8, 2),
        Task("double_hist", _symbols(double_hist, 2, False), 8, 8, 2),
        Task("sort", _symbols(sort, 3, True), 8, 8, 3),
        Task("most_freq", _symbols(most_freq, 2, False), 8, 8, 2),
        Task("dyck1", _dyck(["()"]), 4, 16, 2, causal=True),
        Task("dyck2", _dyck(["()", "{}"]), 6, 16, 2, causal=True),
        Task("induction", _induction, 10, 9, 2, causal=True),
    )
}


def generate(
    name: str, *, vocab: int | None = None, length: int | None = None, samples: int = 20_000, seed: int = 0
) -> tuple[Examples, Examples, Examples]:
    """Different sequences of a task, 81 % to train, 9 % to choose, 10 % to test; None takes the paper's sizes.

    The same arguments give the same sequences. A task that has fewer different sequences than `samples` gives most of them.
    Raises UnknownNameError, ShapeError for sizes that leave nothing, DataError for fewer than 30 sequences.
    """
    if name not in TASKS:
        raise UnknownNameError.among("task", name, TASKS)
    task = TASKS[name]
    vocab, length = task.vocab if vocab is None else vocab, task.length if length is None else length
    fixed = name.startswith("dyck") and vocab != task.vocab
    if vocab < task.specials + 2 or length < 4 or samples < 1 or fixed:
        raise ShapeError(
            f"{name} expects {f'its own vocabulary ({task.vocab})' if fixed else f'vocab ≥ {task.specials + 2}'}, length ≥ 4 and "
            f"samples ≥ 1; received {vocab}, {length} and {samples}."
        )
    generator = stream(seed, f"{name}/{vocab}/{length}")
    rows: dict[tuple[str, ...], Labels] = {}
    in_vain = 0
    while len(rows) < samples and in_vain < _IN_VAIN * (len(rows) + 10):
        tokens, labels = task.draw(vocab, length, generator)
        in_vain = in_vain + 1 if tuple(tokens) in rows else 0
        rows[tuple(tokens)] = labels
    if len(rows) < 30:
        raise DataError(f"{name} with vocab={vocab} and length={length} has only {len(rows)} sequences; make either larger.")
    # Short sequences are few and so come early: without this the test would hold none of them.
    order = torch.randperm(len(rows), generator=generator).tolist()
    drawn = list(rows.items())
    return split(Examples([drawn[i][0] for i in order], [drawn[i][1] for i in order], causal=task.causal))


def split(examples: Examples) -> tuple[Examples, Examples, Examples]:
    """The first 81 %, the next 9 % and the rest."""
    count = len(examples)
    ends = (0, round(0.81 * count), round(0.9 * count), count)
    first, second, third = (
        Examples(examples.tokens[a:b], examples.labels[a:b], examples.pooled, examples.causal)
        for a, b in itertools.pairwise(ends)
    )
    return first, second, third
