"""Sentiment of a text about a company behind one interface: 1 (bad), 3 (neutral), 5 (good news). Missing is not neutral."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from instar.data.finance.words import words
from instar.errors import ShapeError, UnknownNameError

_WORDS = Path(__file__).with_name("opinion_words.toml")
_REACH = 3
"""Words before one of opinion among which a negation or a booster is looked for."""
NEUTRAL, LOWEST, HIGHEST = 3.0, 1.0, 5.0


@dataclass(frozen=True)
class Opinion:
    """What a scorer is asked about."""

    text: str
    symbol: str
    given: float | None = None
    """The score that the source itself gives, if it does."""


class Scorer(Protocol):
    """Rates texts. The same text gives the same number whatever it is asked together with: a run that goes on after a kill
    must end where an undisturbed one does.
    """

    name: str
    version: str
    """Changes whenever a score could."""

    def rate(self, opinions: Sequence[Opinion]) -> list[float | None]:
        """A score in [1, 5] for each, or None where there is nothing to judge."""
        ...


def signed(score: float) -> float:
    """[1, 5] to [−1, 1]: (S − 3) / 2."""
    return (score - NEUTRAL) / 2


def scaled(score: float) -> float:
    """FNSPID's scale: (S − 0.9999) / 4, in (0, 1]."""
    return (score - 0.9999) / 4


class Given:
    """The source's own scores, such as those that FNSPID had from a language model. None is ever asked."""

    name = "given"
    version = "1"

    def rate(self, opinions: Sequence[Opinion]) -> list[float | None]:
        """Clipped to [1, 5]."""
        return [None if one.given is None else min(max(one.given, LOWEST), HIGHEST) for one in opinions]


class Lexicon:
    """Counts words of opinion:  v = Σ ±1 (±1.5 beside a booster, turned round after a negation),  S = 3 + 2 v / sqrt(v² + 15).

    The squashing is VADER's (Hutto and Gilbert 2014). A text without such words is neutral, an empty one is None. It knows no
    company: "Alcoa falls, rivals gain" is even.
    """

    name = "lexicon"

    def __init__(self, path: Path = _WORDS) -> None:
        data = path.read_bytes()
        table = {key: set(value.split()) for key, value in tomllib.loads(data.decode()).items()}
        self.version = hashlib.sha256(data).hexdigest()[:12]
        self._sign = {**dict.fromkeys(table["positive"], 1.0), **dict.fromkeys(table["negative"], -1.0)}
        self._negations, self._boosters = table["negations"], table["boosters"]

    def rate(self, opinions: Sequence[Opinion]) -> list[float | None]:
        """See the class."""
        return [self._one(words(one.text)) for one in opinions]

    def _one(self, text: list[str]) -> float | None:
        if not text:
            return None
        total = 0.0
        for place, word in enumerate(text):
            if word in self._sign:
                before = set(text[max(0, place - _REACH) : place])
                beside = before | set(text[place + 1 : place + 2])  # "very good", and "rose strongly"
                weight = self._sign[word] * (1.5 if beside & self._boosters else 1.0)
                total += -weight if before & self._negations else weight
        return round(NEUTRAL + 2 * total / math.sqrt(total * total + 15), 6)


SCORERS = ("given", "lexicon", "minilm")


def scorer(name: str, settings: Mapping[str, Any] | None = None) -> Scorer:
    """A scorer by name. Raises UnknownNameError, ShapeError for a setting that it does not have."""
    given = dict(settings or {})
    if name == "minilm":
        from instar.data.finance.sentence_scorer import SentenceScorer

        known = {"model", "labels", "most"}
        if unknown := sorted(given.keys() - known):
            raise ShapeError(f"The scorer minilm has the settings {', '.join(sorted(known))}; received {', '.join(unknown)}.")
        return SentenceScorer(**given)
    if name not in SCORERS:
        raise UnknownNameError.among("scorer", name, SCORERS)
    if given:
        raise ShapeError(f"The scorer {name} has no settings; received {', '.join(sorted(given))}.")
    return Given() if name == "given" else Lexicon()
