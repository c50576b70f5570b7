"""Prompts and what should follow them: the E2E set of restaurants, or a user's JSONL of prompt and target."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from instar.data import datasets
from instar.errors import DataError, UnknownNameError

SETS = ("e2e",)
_FEWEST = 20
"""Distinct prompts of a file: fewer cannot be split into parts that say anything."""


@dataclass(frozen=True)
class Asked:
    """A prompt and all the texts that are right after it."""

    prompt: str
    targets: Sequence[str]


@dataclass(frozen=True)
class Prompts:
    """A data set in three parts; no prompt stands in two."""

    name: str
    train: Sequence[Asked]
    valid: Sequence[Asked]
    test: Sequence[Asked]


def prompts(data: str) -> Prompts:
    """E2E, or a JSONL file of objects with `prompt` and `target`.

    E2E: the development set teaches, but for a tenth of its prompts (by their hash), which choose settings; the test set tests.
    A file: a tenth of its prompts to test, a tenth to choose settings. Raises UnknownNameError, DataError, and what
    `datasets.locate` raises.
    """
    if data in SETS:
        taught, tested = (_csv(path) for path in datasets.locate(data))
        known = {one.prompt for one in taught}
        parts = (_tenths(taught, range(1, 10)), _tenths(taught, (0,)), [one for one in tested if one.prompt not in known])
        return Prompts(data, *parts)
    if Path(data).suffix.lower() not in (".jsonl", ".ndjson"):
        raise UnknownNameError.among("data set of prompts (and it is no .jsonl file)", data, SETS)
    rows = _jsonl(Path(data))
    found = Prompts(Path(data).name, *(_tenths(rows, keep) for keep in (range(2, 10), (1,), (0,))))
    if len(rows) < _FEWEST or not (found.train and found.valid and found.test):
        raise DataError(f"{data} has {len(rows)} distinct prompts; {_FEWEST} are the least that can be split in three.")
    return found


def _tenths(rows: Sequence[Asked], keep: Iterable[int]) -> list[Asked]:
    chosen = set(keep)
    return [r for r in rows if int.from_bytes(hashlib.sha256(r.prompt.encode()).digest()[:8], "big") % 10 in chosen]


def _csv(path: Path) -> list[Asked]:
    with path.open(newline="", encoding="utf-8") as stream:
        return _merged((row["mr"], row["ref"]) for row in csv.DictReader(stream))


def _merged(pairs: Iterable[tuple[str, str]]) -> list[Asked]:
    found: dict[str, list[str]] = {}
    for prompt, target in pairs:
        found.setdefault(prompt.strip(), []).append(target.strip())
    return [Asked(prompt, targets) for prompt, targets in found.items()]


def _jsonl(path: Path) -> list[Asked]:
    pairs = []
    try:
        lines = path.read_text("utf-8-sig").split(
            "\n"
        )  # str.splitlines would also cut at U+2028 and its like, which JSON may hold
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pair = (row["prompt"], row["target"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f'{path}, line {number}: expected {{"prompt": …, "target": …}}; {error!r}.') from error
        if not all(isinstance(part, str) and part.strip() for part in pair):
            raise DataError(f"{path}, line {number}: prompt and target expect text that is not empty.")
        pairs.append(pair)
    return _merged(pairs)
