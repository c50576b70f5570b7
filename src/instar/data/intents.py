"""CLINC150 as cases: real sentences to assistants, their intents, and the domain of each as a slice."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

from instar.data import datasets
from instar.errors import DataError, UnknownNameError
from instar.gate.predictions import Cases

_SPLITS = ("train", "val", "test")


def clinc150_cases(
    split: str = "test", *, per_class: int | None = None, examples_per_class: int | None = 20, seed: int = 0
) -> Cases:
    """Sentences of 150 intents (those outside all intents are left out), with the column `domain`.

    Args:
        split: train, val or test: 100, 20 or 30 sentences an intent.
        per_class: take so many of each intent; None takes all.
        examples_per_class: so many labelled sentences of the train split come as `examples`; None gives all, 0 none.
        seed: which sentences are taken.

    Ids are places in the file (`test/17`), so that they mean the same in every draw. Raises UnknownNameError, DataError, and
    what `datasets.locate` raises.
    """
    if split not in _SPLITS:
        raise UnknownNameError.among("split of CLINC150", split, _SPLITS)
    data, domains = (json.loads(path.read_text("utf-8")) for path in datasets.locate("clinc150"))
    domain = {intent: name for name, intents in domains.items() for intent in intents}
    chosen = _drawn(data[split], per_class, f"{seed}/{split}", "per_class")
    examples = (
        [] if examples_per_class == 0 else _drawn(data["train"], examples_per_class, f"{seed}/examples", "examples_per_class")
    )
    rows = [data[split][i] for i in chosen]
    return Cases(
        name=f"clinc150/{split}",
        ids=[f"{split}/{i}" for i in chosen],
        inputs=[text for text, _ in rows],
        labels=[intent for _, intent in rows],
        columns={"domain": [domain[intent] for _, intent in rows]},
        examples=[(text, intent) for text, intent in (data["train"][i] for i in examples)],
    )


def _drawn(rows: list[Any], per_class: int | None, seed: str, name: str) -> list[int]:
    """Places of `per_class` rows of each class, in the order of the file."""
    if per_class is None:
        return list(range(len(rows)))
    places = defaultdict(list)
    for place, (_, intent) in enumerate(rows):
        places[intent].append(place)
    least = min(map(len, places.values()))
    if not 1 <= per_class <= least:
        raise DataError(f"{name} expects 1 to {least}, as many as there are of each intent; received {per_class}.")
    draw = random.Random(seed)
    return sorted(place for each in places.values() for place in draw.sample(each, per_class))
