"""Sentences with a label: the public sets by name, or a user's CSV with the columns text and label."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from instar.data import datasets
from instar.errors import DataError, UnknownNameError

SETS = ("trec", "sst2", "clinc150", "custrev", "subj")
_FEWEST = 30
"""Sentences of a file: fewer cannot be split into parts that say anything."""


@dataclass(frozen=True)
class Labelled:
    """Sentences and what they are."""

    texts: Sequence[str]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Sentences:
    """A data set in three parts."""

    name: str
    train: Labelled
    valid: Labelled
    test: Labelled

    @property
    def classes(self) -> list[str]:
        """The labels of the training part, sorted."""
        return sorted(set(self.train.labels))


def sentences(data: str) -> Sentences:
    """A set of `SETS`, or a CSV file.

    TREC has a test file of its own, and a tenth of its training sentences (by their hash) choose settings. Sets of one file, and
    CSVs, are split by the hash of the sentence: a tenth to test, a tenth to choose settings, so that equal sentences stay on one
    side. CLINC150 and SST-2 come in three parts. Raises UnknownNameError, DataError, and what `datasets.locate` raises.
    """
    if data in SETS:
        found = _public(data)
    elif Path(data).suffix.lower() == ".csv":
        found = _split(Path(data).name, _csv(Path(data)))
    else:
        raise UnknownNameError.among("data set of sentences (and it is no .csv file)", data, SETS)
    for part, rows in (("training", found.train), ("validation", found.valid), ("test", found.test)):
        if not len(rows):
            raise DataError(f"{found.name} leaves no sentences for {part}; {_FEWEST} sentences are the least.")
    if len(found.classes) < 2:
        raise DataError(f"All training sentences of {found.name} have the label {found.classes[0]!r}: there is nothing to learn.")
    if new := sorted({*found.valid.labels, *found.test.labels} - set(found.classes)):
        raise DataError(f"{found.name} has labels that no training sentence has: {', '.join(new[:5])}. Add sentences of them.")
    return found


def _public(name: str) -> Sentences:
    paths = datasets.locate(name)
    if name == "clinc150":
        table = json.loads(paths[0].read_text("utf-8"))
        return Sentences(name, *(_columns(table[part]) for part in ("train", "val", "test")))
    if name == "sst2":
        parts = {path.stem: [line.rsplit("\t", 1) for line in _lines(path, "utf-8")] for path in paths}
        return Sentences(name, *(_columns(parts[part]) for part in ("train", "dev", "test")))
    files = [_columns((text, label) for label, _, text in (line.partition(" ") for line in _lines(p, "latin-1"))) for p in paths]
    if name == "trec":
        train, valid, _ = _parts(files[0], (1,), ())
        return Sentences(name, train, valid, files[1])
    return _split(name, files[0])


def _lines(path: Path, encoding: str) -> list[str]:
    return [line for line in path.read_text(encoding).split("\n") if line.strip()]


def _columns(rows: Iterable[Sequence[str]]) -> Labelled:
    pairs = [(text.strip(), label.strip()) for text, label in rows]
    return Labelled([text for text, _ in pairs], [label for _, label in pairs])


def _split(name: str, rows: Labelled) -> Sentences:
    return Sentences(name, *_parts(rows, (1,), (0,)))


def _parts(rows: Labelled, valid: Sequence[int], test: Sequence[int]) -> tuple[Labelled, Labelled, Labelled]:
    """Training, validation and test by the hash of each sentence modulo 10."""
    tenths = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10 for text in rows.texts]

    def chosen(keep: Sequence[int]) -> Labelled:
        places = [place for place, tenth in enumerate(tenths) if tenth in keep]
        return Labelled([rows.texts[p] for p in places], [rows.labels[p] for p in places])

    return chosen([t for t in range(10) if t not in (*valid, *test)]), chosen(valid), chosen(test)


def _csv(path: Path) -> Labelled:
    texts, labels = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if lacking := {"text", "label"} - set(reader.fieldnames or ()):
                raise DataError(f"{path} expects the columns text and label; it lacks {', '.join(sorted(lacking))}.")
            for row in reader:
                if None in row:  # a comma inside a text, which would make its rest the label
                    raise DataError(
                        f"{path}, line {reader.line_num} has more fields than the header. "
                        'A text with a comma in it stands between quotes ("…").'
                    )
                text, label = (row["text"] or "").strip(), (row["label"] or "").strip()
                if not text or not label:
                    raise DataError(
                        f"{path}, line {reader.line_num}: the {'label' if text else 'text'} is empty. Fill or remove it."
                    )
                texts.append(text)
                labels.append(label)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}.") from error
    if len(texts) < _FEWEST:
        raise DataError(f"{path} has {len(texts)} sentences; {_FEWEST} are the least that can be split in three.")
    return Labelled(texts, labels)
