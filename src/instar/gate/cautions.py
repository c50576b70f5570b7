"""What a reader must know before believing a judgement."""

from __future__ import annotations

import numpy as np

from instar.gate.pairing import Pairs
from instar.gate.policy import Policy
from instar.gate.predictions import Json, Predictions
from instar.gate.values import canonical, coded
from instar.gate.words import counted

_FEW_BLOCKS = 20


def cautions(pairs: Pairs, policy: Policy) -> list[str]:
    """The cautions, as sentences."""
    told = []
    if not pairs.again:
        told.append(
            "No run of the old version was repeated: the noise floor is taken as 0, and every flip counts as the change's."
        )
    if pairs.metric == "unchanged":
        told.append(
            "There are no labels: the old version's answer counts as right, so every change of an answer is a negative flip."
        )
    told += _same_bytes(pairs)
    told += dict.fromkeys(text for version in (pairs.old, pairs.new) for text in _one_answer(version))
    if pairs.binary and not (pairs.before[0][pairs.answered] > 0).any():
        told.append(
            "The old version is right nowhere, so nothing can break: do answers and labels mean the same (a text, an index, a "
            "letter), and is it the right metric?"
        )
    if pairs.task == "classification" and pairs.labels is not None and pairs.metric == "agreement":
        told += _strangers(pairs, pairs.labels)
    documents = pairs.columns.get("doc_hash")
    if documents is not None and pairs.blocks is None and len(coded(documents)[0]) < len(documents):
        told.append(
            "Some documents are asked more than once (column doc_hash), so items are not independent: use --block doc_hash."
        )
    if pairs.blocks is not None and (blocks := len(np.unique(pairs.blocks))) < _FEW_BLOCKS:
        told.append(
            f"There {'is only' if blocks == 1 else 'are only'} {counted(blocks, 'block')}: intervals over so few are rough."
        )
    if not pairs.binary and policy.tolerance == 0:
        told.append(
            "Marks are scores and the tolerance is 0: the smallest fall is a negative flip; a tolerance ignores small ones."
        )
    return told


def _same_bytes(pairs: Pairs) -> list[str]:
    hashes = [version.facts.get("sha256") for version in (pairs.old, pairs.new, *pairs.again)]
    if hashes[0] is None:
        return []
    told = ["Both versions come from files with the same bytes."] if hashes[1] == hashes[0] else []
    if hashes[0] in hashes[2:]:
        told.append("A repeated run has the same bytes as the run of the old version, so it measures no noise.")
    return told


def _one_answer(version: Predictions) -> list[str]:
    answers = [output for output in version.outputs if output is not None]
    if len(answers) < 2 or len(coded(answers[:1000])[0]) > 1 or len(coded(answers)[0]) > 1:
        return []
    return [f"{version.name} gives the same answer to every item ({canonical(answers[0])[:60]!r})."]


def _strangers(pairs: Pairs, labels: list[Json]) -> list[str]:
    """Answers of the new version that are no label and that the old one never gave."""
    known = {canonical(one) for label in coded(labels)[0] for one in (label if isinstance(label, list) else [label])}
    former = {canonical(output) for output in coded(pairs.old.outputs)[0]}
    given = {canonical(output) for output in coded(pairs.new.outputs)[0] if output is not None and not isinstance(output, list)}
    strange = sorted(given - known - former)
    if not strange:
        return []
    some = ", ".join(one[:60] for one in strange[:5])
    kinds = counted(len(strange), "answer")
    return [f"{pairs.new.name} gives {kinds} that {'is' if len(strange) == 1 else 'are'} no label and new: {some}."]
