"""How many texts are longer than an encoder reads: what stands behind its longest input is not searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instar.encoders.base import CheckedEncoder
from instar.gate.words import percent
from instar.interfaces import Encoder
from instar.report import units

_SAMPLE = 1000
"""Texts whose tokens are counted."""
_LEAST = 0.01
"""Share of longer ones below which nobody needs to know."""
_LONGEST, _LOOKED, _LONGER = "longest input in tokens", "documents whose tokens were counted", "of them longer"


def facts(encoder: Encoder, texts: Sequence[str]) -> dict[str, int]:
    """What `said` reads, from at most 1,000 of the texts at random; empty for an encoder that does not say where it cuts."""
    if not isinstance(encoder, CheckedEncoder) or encoder.longest_input is None or not texts:
        return {}
    chosen = np.sort(np.random.default_rng(0).permutation(len(texts))[:_SAMPLE])
    counts = np.array(encoder.tokens([texts[i] for i in chosen]))
    return {_LONGEST: encoder.longest_input, _LOOKED: len(chosen), _LONGER: int((counts > encoder.longest_input).sum())}


def said(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sentences on the encoders that cut documents, from the facts of each; one for both where they cut alike."""
    found: dict[tuple[int, int, int], list[str]] = {}
    for name, known in (("the old encoder", old), ("the new encoder", new)):
        if _LONGEST in known and known[_LONGER] >= _LEAST * known[_LOOKED]:
            found.setdefault((known[_LONGEST], known[_LOOKED], known[_LONGER]), []).append(name)
    return [
        f"{percent(longer / looked)} of the documents (of {units.number(looked)} whose tokens were counted) are longer than "
        f"{names[0] if len(names) == 1 else 'either encoder'} reads ({units.number(longest)} tokens): their ends are not "
        "searched. Cut documents into passages to find what stands there."
        for (longest, looked, longer), names in found.items()
    ]
