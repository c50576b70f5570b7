"""Versions over the same items, item by item: nothing is joined that does not join one to one, and nothing is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError
from instar.gate import marks, tasks
from instar.gate.predictions import Cases, Json, Predictions, listed
from instar.gate.values import canonical, choice, named, pairs_of

_SILENT = ""


@dataclass(frozen=True)
class Pairs:
    """Both versions, and repeated runs of the old one, with their marks in one order."""

    ids: list[str]
    old: Predictions
    new: Predictions
    again: list[Predictions]
    labels: list[Json] | None
    task: str
    metric: str
    why: str
    """Why this task and metric, where the user left them open."""
    before: NDArray[np.float64]
    """[K, N] marks of the old version: its run, then the repeated runs."""
    after: NDArray[np.float64]
    """[N] marks of the new version."""
    binary: bool
    answered: NDArray[np.bool_]
    """[N], True where every run has an answer."""
    changed: NDArray[np.bool_]
    """[N], True where old and new do not say the same."""
    blocks: NDArray[np.int64] | None
    """[N], the natural block of each item, or None where each item is its own."""
    columns: dict[str, list[Json]]
    inputs: list[str] | None


def pair(
    old: Predictions,
    new: Predictions,
    again: Sequence[Predictions] = (),
    *,
    task: str = "auto",
    metric: str = "",
    block: str = "",
    cases: Cases | None = None,
) -> Pairs:
    """Join by id, agree on labels, and mark every answer. Raises DataError that lists what does not fit."""
    order = None if cases is None else _order(cases.ids, old.ids, cases.name, old.name)
    aligned = [old, *(align(version, old) for version in (new, *again))]
    if cases is not None and order is not None and cases.choices is not None:
        choices = [cases.choices[i] for i in order]
        aligned = [_spelled_out(version, choices) for version in aligned]
    old = aligned[0]
    labels = _labels(aligned, None if cases is None or cases.labels is None else [cases.labels[i] for i in order or ()], cases)
    task, metric, why = tasks.choose(task, metric, [replace(version, labels=labels) for version in aligned])
    # Without labels: where the old version said nothing there is nothing to keep; the item is missing, not broken.
    against = [_SILENT if o is None else o for o in old.outputs] if metric == "unchanged" else labels
    marked = [marks.mark(version, against, metric) for version in aligned]
    values = np.stack([m.values for m in marked])
    _same_documents(aligned)
    columns: dict[str, list[Json]] = {}
    for version in aligned:
        for name, column in version.columns.items():
            columns.setdefault(name, column)
    inputs = next((v.inputs for v in aligned if v.inputs is not None), None)
    if cases is not None and order is not None:
        columns |= {name: [column[i] for i in order] for name, column in cases.columns.items()}
        inputs = inputs or [cases.inputs[i] for i in order]
    return Pairs(
        ids=old.ids,
        old=old,
        new=aligned[1],
        again=aligned[2:],
        labels=labels,
        task=task,
        metric=metric,
        why=why,
        before=values[[0, *range(2, len(values))]],
        after=values[1],
        binary=all(m.binary for m in marked),
        answered=np.asarray(~np.isnan(values).any(0)),
        changed=_apart(old.outputs, aligned[1].outputs),
        blocks=_blocks(columns, block, old.name) if block else None,
        columns=columns,
        inputs=inputs,
    )


def align(version: Predictions, old: Predictions) -> Predictions:
    """`version` in the order of `old`. Raises DataError that lists the ids that only one of them has."""
    if version.ids == old.ids:
        return version
    order = _order(version.ids, old.ids, version.name, old.name)

    def sort(column: Any) -> Any:
        return None if column is None else column[order] if isinstance(column, np.ndarray) else [column[i] for i in order]

    return replace(
        version,
        ids=old.ids,
        outputs=sort(version.outputs),
        labels=sort(version.labels),
        scores=sort(version.scores),
        embeddings=sort(version.embeddings),
        inputs=sort(version.inputs),
        seconds=sort(version.seconds),
        columns={name: sort(column) for name, column in version.columns.items()},
    )


def _order(ids: list[str], wanted: list[str], name: str, other: str) -> list[int]:
    place = {one: i for i, one in enumerate(ids)}
    lacking = [one for one in wanted if one not in place]
    if lacking or len(ids) != len(wanted):
        known = set(wanted)
        surplus = [one for one in ids if one not in known]
        told = [f"{len(lacking)} only in {other}: {listed(lacking)}"] if lacking else []
        told += [f"{len(surplus)} only in {name}: {listed(surplus)}"] if surplus else []
        if {_loosely(one) for one in lacking} & {_loosely(one) for one in surplus}:
            told.append("some differ only in case, spaces, accents or the way a number is written (ids are compared as texts)")
        raise DataError(
            f"{other} ({len(wanted)} items) and {name} ({len(ids)} items) do not hold the same items; {'; '.join(told)}. "
            "Both versions must answer the same items: run the missing ones, or take them out of both files."
        )
    return [place[one] for one in wanted]


def _loosely(one: str) -> str:
    return canonical(one).casefold()


def _spelled_out(version: Predictions, choices: list[list[str]]) -> Predictions:
    """Answers and labels of multiple choice by their text, where they are given as an index or a letter."""

    def text(said: list[Json]) -> list[Json]:
        found = [choice(one, among) for one, among in zip(said, choices, strict=True)]
        return [one if meant is None else meant for one, meant in zip(said, found, strict=True)]

    return replace(version, outputs=text(version.outputs), labels=version.labels and text(version.labels))


def _labels(versions: list[Predictions], given: list[Json] | None, cases: Cases | None) -> list[Json] | None:
    """The labels that the versions (and the evaluation file) agree on; who says nothing about an item does not disagree."""
    sources = [(cases.name, given)] if cases is not None and given is not None else []
    sources += [(v.name, v.labels) for v in versions if v.labels is not None]
    sources = [(name, labels) for name, labels in sources if any(label is not None for label in labels)]
    if not sources:
        return None
    first, labels = sources[0]
    for name, others in sources[1:]:
        if others == labels:
            continue
        silent = np.array([a is None or b is None for a, b in zip(labels, others, strict=True)])
        apart = [versions[0].ids[i] for i in np.flatnonzero(_apart(labels, others) & ~silent)]
        if apart:
            raise DataError(
                f"{first} and {name} disagree about what is right for {len(apart)} items: {listed(apart)}. "
                "A change of labels is no change of the model: give both files the same labels."
            )
        labels = [b if a is None else a for a, b in zip(labels, others, strict=True)]
    return labels


def _same_documents(versions: list[Predictions]) -> None:
    """The column `doc_hash`, which evaluation harnesses write, must say that an id names the same document in every version."""
    hashes = [(v.name, v.columns["doc_hash"]) for v in versions if "doc_hash" in v.columns]
    for name, found in hashes[1:]:
        apart = [versions[0].ids[i] for i in np.flatnonzero(_apart(hashes[0][1], found))]
        if apart:
            raise DataError(f"{hashes[0][0]} and {name} were not asked the same documents: {listed(apart)} (column 'doc_hash').")


def _apart(first: Sequence[Json], second: Sequence[Json]) -> NDArray[np.bool_]:
    """[N], where two columns do not mean the same."""
    firsts, which = pairs_of(first, second)
    apart = np.array([canonical(first[i]) != canonical(second[i]) for i in firsts])
    return np.asarray(apart[which])


def _blocks(columns: dict[str, list[Json]], block: str, name: str) -> NDArray[np.int64]:
    if block not in columns:
        raise DataError(f"There is no column '{block}' for blocks in {name}; columns are {', '.join(columns) or 'none'}.")
    lacking = sum(value is None for value in columns[block])
    if lacking:
        raise DataError(f"The block column '{block}' is empty for {lacking} items; every item belongs to one block.")
    return named(columns[block])[1]
