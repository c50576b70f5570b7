"""From what a language model wrote to the answer that a task asks for, by rules that can be read here."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Sequence

from instar.gate.predictions import Json

_AROUND = string.whitespace + "\"'`*.“”‘’"
_NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.?)(?:[eE][-+]?\d+)?(?!\w|\.\d)")
_LEAD = re.compile(r"^(?:the\s+)?(?:right\s+|correct\s+|final\s+)?(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*", re.IGNORECASE)


def utf8(text: str) -> str:
    """Text that can be written to any file: a lone surrogate (JSON allows one) becomes a question mark."""
    return text.encode(errors="replace").decode()


def label(text: str, known: Iterable[Json]) -> Json:
    """The label that a text names, without regard to case, quotes, stars and final stop; otherwise the text, stripped."""
    labels = {str(k): k for k in known if k is not None}
    text = text.strip()
    if text in labels:
        return labels[text]
    bare = text.strip(_AROUND).casefold()
    near = [k for name, k in labels.items() if name.strip(_AROUND).casefold() == bare]
    return near[0] if len(near) == 1 else text


def letters(count: int) -> list[str]:
    """What options are called: A, B, C, …; by number when there are more than letters."""
    return list(string.ascii_uppercase[:count]) if count <= 26 else [str(i + 1) for i in range(count)]


def listed(choices: Sequence[str]) -> str:
    """The options of an item, one a line: `A. text`."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters(len(choices)), choices, strict=True))


def choice(text: str, choices: Sequence[str], lettered: bool = True) -> str:
    """The option that a text names; the text itself, stripped, where it names none.

    In this order: the letter alone ("B", "(b)", "**B**", "Answer: B."), the text of an option alone, a letter before more
    text ("B. Paris", "b) Paris", "B: because"), one option at the start ("Paris, because"). "A dog" names no letter, since A is
    a word.

    Args:
        text: what the model wrote.
        choices: the options of the item.
        lettered: whether the model saw the letters; without, an option's text goes before a letter.
    """
    text = text.strip()
    bare = _LEAD.sub("", text.strip(_AROUND)).strip(_AROUND + "()[]:")
    by_letter = dict(zip(letters(len(choices)), choices, strict=True))
    by_text: dict[str, str] = {}
    for option in choices:
        by_text.setdefault(option.strip(_AROUND).casefold(), option)
    folded = bare.casefold()
    exact = [by_letter.get(bare.upper()), by_text.get(folded) if folded else None]
    for found in exact if lettered else reversed(exact):
        if found is not None:
            return found
    led = re.match(r"\(?([A-Z]|[a-z](?=\))|\d+)(?:[.):,*]|\s+[-–—]\s)", bare)
    if led and led[1].upper() in by_letter:
        return by_letter[led[1].upper()]
    starts = [name for name in by_text if name and re.match(re.escape(name) + r"(?!\w)", folded)]
    return by_text[max(starts, key=len)] if starts else text


def number(text: str) -> float | None:
    """The one number in a text; None where there is none, more than one, or one beyond all bounds. A version or date is none.

    Which of several numbers is meant, only a person could say.
    """
    found = [m for m in (match[0] for match in _NUMBER.finditer(text)) if any(c.isdigit() for c in m)]
    if len(found) != 1:
        return None
    value = float(found[0].replace(",", "").replace("−", "-"))
    return value if math.isfinite(value) else None
