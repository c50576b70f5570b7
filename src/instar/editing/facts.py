"""Facts from files, and what is refused before a weight is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instar.errors import EditError
from instar.interfaces import Fact

_KEYS = {"prompt", "subject", "target", "old", "paraphrases", "neighbours"}
_SHOWN = 12
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Scripts that are written without spaces between words."""


def read(path: str | Path) -> list[Fact]:
    """The facts of a JSONL file: `{"prompt", "subject", "target", "old"?, "paraphrases"?, "neighbours"?}` a line.

    Raises EditError that lists every line that is no fact, and what `check` raises, with the numbers of lines.
    """
    file = Path(path)
    try:
        lines = file.read_text("utf-8").split("\n")  # str.splitlines would also cut at U+2028 and its like, which JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise EditError(f"The facts {file} cannot be read: {error}.") from error
    found: list[Fact] = []
    places: list[str] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_fact(json.loads(line)))
            places.append(f"line {number}")
        except (ValueError, RecursionError) as error:
            wrong.append(f"line {number}: {error}")
    _refuse(wrong, len(found) + len(wrong))
    if not found:
        raise EditError(f"{file} holds no facts. Expected a JSON object a line: prompt, subject, target.")
    check(found, places)
    return found


def check(facts: Sequence[Fact], places: Sequence[str] | None = None) -> list[Fact]:
    """The facts in one order, whatever the order they came in. Raises EditError that lists all that cannot be written.

    Refused: empty prompts, subjects and targets; a subject that is not in its prompt; the same prompt twice, with the same target
    or with another one.
    """
    places = places or [f"fact {number}" for number in range(1, len(facts) + 1)]
    wrong: list[str] = []
    said: dict[str, tuple[str, str]] = {}
    for place, fact in zip(places, facts, strict=True):
        prompt, target = fact.prompt.strip(), fact.target.strip()
        if empty := [name for name in ("prompt", "subject", "target") if not getattr(fact, name).strip()]:
            wrong.append(f"{place}: empty {' and '.join(empty)}")
            continue
        if fact.subject.strip() not in prompt:
            wrong.append(f"{place}: the subject {fact.subject!r} is not in its prompt {fact.prompt!r}")
            continue
        where, other = said.setdefault(prompt, (place, target))
        if other != target:
            wrong.append(f"{place}: {prompt!r} has the target {target!r}, but {other!r} at {where}")
        elif where != place:
            wrong.append(f"{place}: says the same as {where}")
    _refuse(wrong, len(facts))
    return sorted(facts, key=lambda fact: (fact.prompt, fact.target))


def joined(prompt: str, target: str) -> tuple[str, str]:
    """The prompt without space at its end, and what follows it: the target after a space, where its script has spaces."""
    target = target.strip()
    return prompt.rstrip(), target if _UNSPACED.match(target) else f" {target}"


def subject_end(prompt: str, subject: str) -> int:
    """The place in the prompt after the subject: its last mention as a whole word, or else its last one."""
    subject = subject.strip()
    words = [m.end() for m in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]
    return words[-1] if words else prompt.rindex(subject) + len(subject)


def _fact(value: Any) -> Fact:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, received {type(value).__name__}")
    if unknown := value.keys() - _KEYS:
        raise ValueError(f"unknown key {', '.join(map(repr, sorted(unknown)))}; known are {', '.join(sorted(_KEYS))}")
    for key in ("prompt", "subject", "target"):
        if not isinstance(value.get(key), str):
            raise ValueError(f"'{key}' expects a text, received {value.get(key)!r}")
    if not isinstance(value.get("old"), str | None):
        raise ValueError(f"'old' expects a text, received {value['old']!r}")
    for key in ("paraphrases", "neighbours"):
        texts = value.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"'{key}' expects a list of texts, received {texts!r}")
    old = value.get("old")
    return Fact(**{**value, "old": old if old and old.strip() else None})


def _refuse(wrong: Sequence[str], total: int) -> None:
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        listed = "\n  ".join([*wrong[:_SHOWN], *more])
        raise EditError(f"{len(wrong)} of {total} facts cannot be written; nothing was changed:\n  {listed}")
