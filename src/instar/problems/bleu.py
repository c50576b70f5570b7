"""BLEU of one sentence (Papineni et al. 2002), smoothed as in Lin and Och 2004."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+|[^\w\s]")
ORDER = 4


def bleu(output: str, references: Sequence[str]) -> float:
    """exp(min(0, 1 − r/c)) · (Π p_n)^¼ over words and signs, without case; p_n with one added to both counts for n > 1.

    c is the length of the output and r that of the reference nearest in length. An n-gram counts as often as it does in the
    reference that has it most. 0 for an empty output.
    """
    words = _words(output)
    others = [_words(reference) for reference in references]
    if not words or not others:
        return 0.0
    total = 0.0
    for n in range(1, ORDER + 1):
        have = _grams(words, n)
        most: Counter[tuple[str, ...]] = Counter()
        for other in others:
            most |= _grams(other, n)
        right, all_ = (have & most).total(), have.total()
        if n == 1 and not right:
            return 0.0
        total += math.log(right / all_) if n == 1 else math.log((right + 1) / (all_ + 1))
    nearest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    return math.exp(min(0.0, 1 - nearest / len(words)) + total / ORDER)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
