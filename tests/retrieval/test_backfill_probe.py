"""Queries with known answers on the way of a backfill: recall rises, a fall stops it, and the log remembers."""

from __future__ import annotations

import itertools
from pathlib import Path

import made_change as made
import numpy as np
import pytest

from instar.errors import DataError, GenerationError, OutputError, ShapeError
from instar.interfaces import Hits, Index
from instar.retrieval.calibrating import FromRows
from instar.retrieval.fusion import Calibration
from instar.retrieval.probe import Probe
from instar.retrieval.realised import Log

IDS, TEXTS = list(made.texts()), list(made.texts().values())


def _probe(**settings: object) -> Probe:
    """Beginnings of the paragraphs ask for the whole ones."""
    asked = [" ".join(text.split()[:6]) for text in TEXTS[::2]]
    return Probe(made.queries(asked), [[name] for name in IDS[::2]], **{"k": 3, "every": 0.1, "margin": None, **settings})  # type: ignore[arg-type]


def test_recall_rises_from_the_old_to_the_new(index: Index, tmp_path: Path) -> None:
    """By calibrated scores; 24 dimensions give larger cosines than 96, so that as they are old rows would outrank new ones."""
    log, asked = tmp_path / "log.jsonl", _probe()
    rows = [encoder.encode(TEXTS) for encoder in made.encoders()]
    calibration = Calibration.fit({number: (asked.queries[number] @ rows[number].T).ravel() for number in (0, 1)})
    curves = []
    for fusion in (calibration, FromRows(index), "cosine"):
        outcome = made.backfill(index, probe=_probe(fusion=fusion), log=log).run()
        assert [round(share, 1) for share, _ in outcome.curve] == [i / 10 for i in range(11)]
        curves.append([recall for _, recall in outcome.curve])
        index.rollback()
    steps = [[later - earlier for earlier, later in itertools.pairwise(curve)] for curve in curves]
    for curve, step in zip(curves[:2], steps[:2], strict=True):
        assert curve[-1] > curve[0] + 0.1
        assert min(step) >= -0.02, curve
    assert min(curves[2]) < curves[2][0] - 0.05
    logged = [row["recall"] for row in Log(log, made.generation(1).encoder).rows()]
    assert logged == [recall for curve in curves for recall in curve]


def test_a_fall_of_recall_stops_and_is_remembered(index: Index, tmp_path: Path) -> None:
    shuffled = dict(zip(IDS, TEXTS[1:] + TEXTS[:1], strict=True))  # the wrong text for every row
    log = tmp_path / "log.jsonl"
    for _ in range(2):  # going on from the lower level is no way around it
        with pytest.raises(GenerationError, match="was measured at first"):
            made.backfill(index, texts=shuffled, probe=_probe(margin=0.1), log=log).run()
    assert sum(index.counts().values()) == len(IDS)
    outcome = made.backfill(index, texts=shuffled, probe=_probe(margin=None), log=log).run()
    assert outcome.left == 0


def test_a_prediction_is_held_against(index: Index) -> None:
    with pytest.raises(GenerationError, match="the report predicted"):
        made.backfill(index, probe=_probe(predicted=[(0.0, 1.0), (1.0, 1.0)], margin=0.01)).run()
    low = _probe(predicted=[(1.0, 0.2), (0.0, 0.1)], margin=0.01)
    assert low.expected(0.5, 0.9) == pytest.approx(0.15)
    assert made.backfill(index, probe=low).run().clean


def test_the_log_survives_what_was_torn(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", "e")
    assert log.first_recall() is None
    log.add(recall=0.5)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"recall": 0.7, "enc')
    Log(tmp_path / "log.jsonl", "other").add(recall=0.1)
    log.add(recall=0.9)
    assert [row["recall"] for row in log.rows()] == [0.5, 0.9]
    assert log.first_recall() == 0.5
    with pytest.raises(OutputError, match="--log"):
        Log(tmp_path, "e").add(recall=0.1)


def test_probes_need_answers() -> None:
    with pytest.raises(DataError, match="at least one"):
        Probe({}, [])
    with pytest.raises(ShapeError, match="2 queries in every"):
        Probe({0: np.zeros((1, 4), np.float32)}, [["a"], ["b"]])
    with pytest.raises(ShapeError, match="every"):
        _probe(every=0.0)


def test_ids_are_compared_as_texts() -> None:
    class Numbers:
        """A store whose ids are numbers."""

        def search(self, queries: object, k: int, fusion: object) -> Hits:
            ids = np.array([[3, 7], [9, None]], dtype=object)
            return Hits(np.zeros((2, 2), np.float32), ids, np.zeros((2, 2), np.int64))

    asked = Probe({0: np.eye(2, dtype=np.float32)}, [["7"], ["3", "9"]], k=2)
    assert asked.recall(Numbers()) == 0.75  # type: ignore[arg-type]
