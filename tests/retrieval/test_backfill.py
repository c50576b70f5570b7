"""Backfill: nothing lost, right throughout, goes on after a kill."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import made_change as made
import numpy as np
import pytest

from instar.errors import GenerationError, ShapeError
from instar.interfaces import Floats, Index
from instar.retrieval.backfill import Outcome
from instar.retrieval.exact import ExactIndex

IDS, TEXTS = list(made.texts()), list(made.texts().values())


def test_everything_moves_and_what_was_old_can_be_dropped(index: Index) -> None:
    told: list[tuple[int, int]] = []
    outcome = made.backfill(index).run(lambda *two: told.append(two))
    assert (outcome.moved, outcome.left, outcome.rows, outcome.clean) == (len(IDS), 0, len(IDS), True)
    assert told[-1] == (len(IDS), len(IDS))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert outcome.checked >= 8 * (len(IDS) // 16)
    assert set(made.whole(index)) == {1}
    again = made.backfill(index).run()
    assert (again.moved, again.left) == (0, 0)
    index.finish()
    assert [g.number for g in index.generations()] == [1]


def test_half_then_all_then_back(index: Index) -> None:
    first = made.backfill(index, until=0.5).run()
    assert (first.moved, first.left) == (200, 200)
    assert made.backfill(index, until=250).run().moved == 50
    assert sorted(made.whole(index)) == [0] * 150 + [1] * 250
    assert made.backfill(index, until=0.1).run().moved == 0
    index.rollback()
    assert set(made.whole(index)) == {0}


@pytest.mark.parametrize("percent", [1, 7, 14, 28, 55, 56, 99])
def test_a_share_is_no_row_more(percent: int, index: Index) -> None:
    index.remove(IDS[100:])
    outcome = made.backfill(index, until=percent / 100).run()
    assert (outcome.moved, outcome.left) == (percent, 100 - percent)


def test_stopping_ends_after_the_batch(index: Index) -> None:
    work = made.backfill(index)
    outcome = work.run(lambda done, total: work.stop() if done >= 64 else None)
    assert (outcome.moved, outcome.stopped, outcome.left) == (64, True, len(IDS) - 64)
    made.whole(index)


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    made.store(tmp_path / "store").close()
    draw = random.Random(0)
    seen = [0]
    for _ in range(3):
        with subprocess.Popen(made.program(tmp_path / "store"), stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()  # the first batch has moved
            time.sleep(draw.uniform(0, 0.12))
            child.kill()
            child.wait()
        with ExactIndex.open(str(tmp_path / "store")) as index:
            seen.append(made.whole(index).count(1))
    assert all(before < after for before, after in itertools.pairwise(seen)), seen
    with ExactIndex.open(str(tmp_path / "store")) as index:
        assert made.backfill(index).run().moved == len(IDS) - seen[-1]
        assert set(made.whole(index)) == {1}


def test_readers_see_every_row_once_and_its_own_vector_first(tmp_path: Path) -> None:
    made.store(tmp_path / "store").close()
    queries = made.queries(TEXTS[:40])
    shares = set()
    with (
        subprocess.Popen(made.program(tmp_path / "store"), stdout=subprocess.PIPE, text=True) as child,
        ExactIndex.open(str(tmp_path / "store"), readonly=True) as reader,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        while child.poll() is None:
            hits = reader.search({g.number: queries[g.number] for g in reader.generations()}, 400)
            assert all(set(row) == set(IDS) for row in hits.ids)
            assert (hits.ids[:, 0] == IDS[:40]).all()
            shares.add(int((hits.generations[0] == 1).sum()))
        assert child.returncode == 0
    assert len(shares) > 2, shares


def test_another_encoder_is_refused(index: Index) -> None:
    made.backfill(index, until=0.1).run()
    other = made.backfill(index)
    other.generation = made.Generation(1, "another", 96)
    with pytest.raises(GenerationError, match="another"):
        other.run()
    assert made.whole(index).count(1) == 40


def test_equal_texts_are_found(tmp_path: Path) -> None:
    old = made.encoders()[0]
    names = [f"row {i}" for i in range(300)]
    vectors = np.repeat(old.encode(TEXTS[:1]), 300, 0)
    with ExactIndex.adopt(str(tmp_path / "same"), "", made.generation(0), vectors=vectors, ids=names) as index:
        outcome = made.backfill(index, texts=dict.fromkeys(names, TEXTS[0])).run()
        assert outcome.clean
        assert index.counts()[1] == 300


def test_integers_are_ids(tmp_path: Path) -> None:
    vectors = made.encoders()[0].encode(TEXTS)
    with ExactIndex.adopt(str(tmp_path / "numbers"), "", made.generation(0), vectors=vectors) as index:
        assert made.backfill(index, texts={str(i): text for i, text in enumerate(TEXTS)}).run().clean


def test_bad_settings(index: Index) -> None:
    for settings in ({"batch": 0}, {"until": -0.1}, {"until": 1.5}, {"until": float("nan")}, {"rate": -1.0}):
        with pytest.raises(ShapeError):
            made.backfill(index, **settings)
    assert Outcome().clean


def test_ctrl_c_in_the_encoder_loses_nothing(index: Index) -> None:
    calls = [0]

    def interrupted(texts: Sequence[str]) -> Floats:
        calls[0] += 1
        if calls[0] == 3:
            signal.raise_signal(signal.SIGINT)
        return made.encoders()[1].encode(texts)

    with pytest.raises(KeyboardInterrupt):
        made.backfill(index, encode=interrupted).run()
    assert made.whole(index).count(1) == 32
