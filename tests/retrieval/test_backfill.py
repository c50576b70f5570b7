"""Backfill: nothing lost, right throughout, goes on after a kill, in its order, at its rate, and noticing what a store spoils."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import made_change as made
import numpy as np
import pytest

from instar.errors import DataError, GenerationError, ModelError, OutputError, ShapeError, StoreError
from instar.interfaces import Floats, Id
from instar.retrieval import order
from instar.retrieval.backfill import Outcome
from instar.retrieval.calibrating import FromRows
from instar.retrieval.exact import ExactIndex
from instar.retrieval.fusion import Calibration
from instar.retrieval.probe import Probe
from instar.retrieval.realised import Log
from instar.retrieval.throttle import Throttle
from instar.retrieval.uncertainty import Uncertainty
from instar.retrieval.verify import Verification

IDS, TEXTS = list(made.texts()), list(made.texts().values())


@pytest.fixture
def index(tmp_path: Path) -> ExactIndex:
    with made.store(tmp_path / "store") as found:
        yield found


def _queries(texts: Sequence[str]) -> dict[int, Floats]:
    return {number: encoder.encode(texts, "query") for number, encoder in enumerate(made.encoders())}


def _whole(index: ExactIndex) -> list[int]:
    """Every row is there once, with the vector of the generation in which it stands; returns those generations."""
    vectors, generations = index.fetch(IDS)
    assert sum(index.counts().values()) == len(IDS)
    right = [encoder.encode(TEXTS) for encoder in made.encoders()]
    for place, (vector, number) in enumerate(zip(vectors, generations, strict=True)):
        np.testing.assert_allclose(vector, right[number][place], atol=1e-6)
    hits = index.search(_queries(TEXTS), 3)
    assert all(len(set(row)) == 3 for row in hits.ids)
    own = hits.scores[:, 0] > 0.999
    assert own.all()
    return generations


def test_everything_moves_and_what_was_old_can_be_dropped(index: ExactIndex) -> None:
    told: list[tuple[int, int]] = []
    outcome = made.backfill(index).run(lambda *two: told.append(two))
    assert (outcome.moved, outcome.left, outcome.rows, outcome.clean) == (len(IDS), 0, len(IDS), True)
    assert told[-1] == (len(IDS), len(IDS))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert outcome.checked >= 8 * (len(IDS) // 16)
    assert set(_whole(index)) == {1}
    again = made.backfill(index).run()
    assert (again.moved, again.left) == (0, 0)
    index.finish()
    assert [g.number for g in index.generations()] == [1]


def test_half_then_all_then_back(index: ExactIndex) -> None:
    first = made.backfill(index, until=0.5).run()
    assert (first.moved, first.left) == (200, 200)
    assert made.backfill(index, until=250).run().moved == 50
    assert sorted(_whole(index)) == [0] * 150 + [1] * 250
    assert made.backfill(index, until=0.1).run().moved == 0
    index.rollback()
    assert set(_whole(index)) == {0}


def test_stopping_ends_after_the_batch(index: ExactIndex) -> None:
    work = made.backfill(index)
    outcome = work.run(lambda done, total: work.stop() if done >= 64 else None)
    assert (outcome.moved, outcome.stopped, outcome.left) == (64, True, len(IDS) - 64)
    _whole(index)


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
            seen.append(_whole(index).count(1))
    assert all(before < after for before, after in itertools.pairwise(seen)), seen
    with ExactIndex.open(str(tmp_path / "store")) as index:
        assert made.backfill(index).run().moved == len(IDS) - seen[-1]
        assert set(_whole(index)) == {1}


def test_readers_see_every_row_once_and_its_own_vector_first(tmp_path: Path) -> None:
    made.store(tmp_path / "store").close()
    queries = _queries(TEXTS[:40])
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


@pytest.mark.parametrize("kind", [order.random, order.most_queried({name: i % 7 for i, name in enumerate(IDS)})])
def test_an_order_is_resumed(index: ExactIndex, kind: order.Order) -> None:
    seen: list[str] = []

    def watched(texts: Sequence[str]) -> Floats:
        seen.extend(texts)
        return made.encoders()[1].encode(texts)

    names = {text: name for name, text in made.texts().items()}
    planned = order.arrange(index, IDS, kind, seed=3)
    made.backfill(index, encode=watched, order=kind, seed=3, until=0.3).run()
    made.backfill(index, encode=watched, order=kind, seed=3).run()
    assert [names[text] for text in seen] == planned


def test_orders(index: ExactIndex) -> None:
    plain = order.arrange(index, IDS, order.random, 0)
    assert sorted(plain) == sorted(IDS)
    assert plain == order.arrange(index, IDS[::-1], order.random, 0)
    assert plain != order.arrange(index, IDS, order.random, 1)
    part = order.arrange(index, IDS[100:200], order.random, 0)
    assert part == [name for name in plain if name in set(part)]
    counts = {IDS[7]: 3.0, IDS[9]: 10.0}
    assert order.arrange(index, IDS, order.most_queried(counts))[:2] == [IDS[9], IDS[7]]
    with pytest.raises(DataError, match="not negative"):
        order.most_queried({"a": -1.0})
    with pytest.raises(DataError, match="a number"):
        order.arrange(index, IDS, lambda index, ids: np.full(len(ids), np.nan))


def test_the_least_certain_go_first(index: ExactIndex) -> None:
    old = made.encoders()[0].encode(TEXTS)
    residuals = np.exp(4 * old[:, 1] - 3)
    fitted = Uncertainty.fit(made.generation(0).encoder, old, residuals)
    np.testing.assert_allclose(fitted(old), np.log(residuals), atol=0.05)
    again = Uncertainty.of_json(json.loads(json.dumps(fitted.as_json())))
    assert order.arrange(index, IDS, order.least_certain(again)) == order.arrange(index, IDS, order.least_certain(fitted))
    first = order.arrange(index, IDS, order.least_certain(fitted))[:20]
    best = [IDS[i] for i in np.argsort(-residuals)[:40]]
    assert set(first) <= set(best)
    made.backfill(index, until=0.1).run()
    moved = set(index.ids(1))
    mixed = order.arrange(index, IDS, order.least_certain(fitted))
    assert set(mixed[: len(moved)]) == moved  # the map says nothing of them


def test_uncertainty_of_noise_is_flat() -> None:
    draw = np.random.default_rng(0)
    old = draw.standard_normal((300, 24)).astype(np.float32)
    fitted = Uncertainty.fit("e", old, np.exp(draw.standard_normal(300)))
    assert np.std(fitted(old)) < 0.3
    with pytest.raises(DataError, match="8 finite"):
        Uncertainty.fit("e", old[:7], np.ones(7))
    with pytest.raises(ShapeError, match="24"):
        fitted(old[:, :3])


def test_a_rate_is_kept_at_every_moment() -> None:
    now = [100.0]
    starts: list[tuple[float, int]] = []

    def sleep(seconds: float) -> None:
        assert 0 < seconds <= 0.25
        now[0] += seconds

    throttle = Throttle(50.0, clock=lambda: now[0], sleep=sleep)
    assert throttle.batch(256) == 50
    assert Throttle(0.2).batch(256) == 1
    for rows, work in ((10, 0.0), (10, 0.05), (10, 3.0), (10, 0.0), (40, 0.1), (10, 0.0)):
        throttle.wait(rows)
        starts.append((now[0], rows))
        now[0] += work
    for (earlier, rows), (later, _) in itertools.pairwise(starts):
        assert later - earlier >= rows / 50 - 1e-9  # also after the slow batch: nothing is made up for
    assert starts[-1][0] - starts[0][0] < 3.0 + 80 / 50 + 0.1
    throttle.wait(10, stop=lambda: True)
    with pytest.raises(ShapeError, match="positive"):
        Throttle(0.0)


def test_a_backfill_keeps_its_rate(index: ExactIndex) -> None:
    now = [0.0]
    slow = Throttle(20.0, clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    made.backfill(index, rate=slow, until=100, batch=64).run()
    assert now[0] == pytest.approx(4.0)  # the first 20 rows need not wait


def test_rows_without_text_stay_old_and_are_listed(index: ExactIndex) -> None:
    some = {name: text for i, (name, text) in enumerate(made.texts().items()) if i % 50}
    outcome = made.backfill(index, texts=some).run()
    assert sorted(outcome.lacking) == sorted(IDS[::50])
    assert (outcome.left, outcome.clean) == (8, False)
    generations = _whole(index)
    assert [IDS[i] for i, number in enumerate(generations) if number == 0] == IDS[::50]
    assert made.backfill(index).run().clean


def test_an_encoder_that_fails_on_some_texts(index: ExactIndex) -> None:
    bad = set(TEXTS[::90])

    def fragile(texts: Sequence[str]) -> Floats:
        if found := bad & set(texts):
            raise RuntimeError(f"cannot read {len(found)}")
        return made.encoders()[1].encode(texts)

    outcome = made.backfill(index, encode=fragile).run()
    assert sorted(outcome.failed) == sorted(IDS[::90])
    assert all("cannot read 1" in reason for reason in outcome.failed.values())
    assert _whole(index).count(0) == outcome.left == 5
    alone = made.backfill(index, encode=fragile).run()  # only those are left: the encoder lives, the texts are bad
    assert (alone.moved, sorted(alone.failed)) == (0, sorted(IDS[::90]))


def test_an_encoder_that_is_gone_ends_it(index: ExactIndex) -> None:
    calls = [0]

    def dying(texts: Sequence[str]) -> Floats:
        calls[0] += 1
        if calls[0] > 3:
            raise ConnectionError("refused")
        return made.encoders()[1].encode(texts)

    with pytest.raises(ModelError, match=r"plain sentence .*refused"):
        made.backfill(index, encode=dying).run()
    assert _whole(index).count(1) == 48


@pytest.mark.parametrize(
    "wrong", [lambda v: v[:, :5], lambda v: v[:-1] if len(v) > 1 else v[:0], lambda v: v * np.nan, lambda v: v * 0]
)
def test_an_encoder_that_gives_no_vectors(index: ExactIndex, wrong: object) -> None:
    with pytest.raises(ModelError, match="plain sentence"):
        made.backfill(index, encode=lambda texts: wrong(made.encoders()[1].encode(texts))).run()  # type: ignore[operator]
    assert set(_whole(index)) == {0}


def test_another_encoder_is_refused(index: ExactIndex) -> None:
    made.backfill(index, until=0.1).run()
    other = made.backfill(index)
    other.generation = made.Generation(1, "another", 96)
    with pytest.raises(GenerationError, match="another"):
        other.run()
    assert _whole(index).count(1) == 40


class _Spoils(ExactIndex):
    """A store with a defect, which shows after some rows."""

    defect = ""

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        if self.counts().get(1, 0) < 64:
            super().move(ids, vectors, generation)
        elif self.defect == "noise":
            noise = np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
            spoilt = vectors + 0.1 * noise
            super().move(ids, spoilt / np.linalg.norm(spoilt, axis=1, keepdims=True), generation)
        elif self.defect == "swapped":
            super().move(ids, vectors[::-1], generation)
        elif self.defect == "full":
            raise StoreError("No space left on the device.")
        elif self.defect != "forgets":
            super().move(ids, vectors, generation)

    def nearest(self, generation: int, queries: Floats, k: int) -> object:
        blind = self.defect == "unfindable" and self.counts().get(1, 0) > 64
        return super().nearest(generation, -queries if blind else queries, k)


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ("noise", "do not hold the vectors"),
        ("swapped", "do not hold the vectors"),
        ("forgets", "stand in generation 0"),
        ("unfindable", "not among the 100 nearest"),
        ("full", "No space"),
    ],
)
def test_a_store_that_spoils_rows_is_noticed(tmp_path: Path, defect: str, said: str) -> None:
    made.store(tmp_path / "store").close()
    with _Spoils(tmp_path / "store") as index:
        index.defect = defect
        with pytest.raises(StoreError, match=said):
            made.backfill(index).run()
        assert index.counts()[1] <= 80  # in the very batch
    with ExactIndex.open(str(tmp_path / "store")) as sound:
        sound.rollback()
        assert set(_whole(sound)) == {0}
        assert made.backfill(sound).run().clean


def test_verification_can_be_left_out_and_its_settings_are_checked(index: ExactIndex) -> None:
    outcome = made.backfill(index, verify=Verification(0)).run()
    assert (outcome.checked, outcome.left) == (0, 0)
    with pytest.raises(ShapeError, match="sample"):
        Verification(-1)


def test_rows_that_others_remove_or_add_meanwhile(index: ExactIndex) -> None:
    old, new = made.encoders()
    done = [False]

    def busy(texts: Sequence[str]) -> Floats:
        if not done[0]:
            done[0] = True
            index.remove(IDS[:30])
            index.add(["late"], old.encode(["a late paragraph on generators"]), 0)
        return new.encode(texts)

    texts = {**made.texts(), "late": "a late paragraph on generators"}
    outcome = made.backfill(index, encode=busy, texts=texts).run()
    assert index.counts() == {0: 0, 1: len(IDS) - 30 + 1}
    assert outcome.left == 0


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


def _probe(**settings: object) -> Probe:
    """Beginnings of the paragraphs ask for the whole ones."""
    asked = [" ".join(text.split()[:6]) for text in TEXTS[::2]]
    return Probe(_queries(asked), [[name] for name in IDS[::2]], **{"k": 3, "every": 0.1, "margin": None, **settings})  # type: ignore[arg-type]


def test_recall_rises_from_the_old_to_the_new(index: ExactIndex, tmp_path: Path) -> None:
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


def test_a_fall_of_recall_stops_and_is_remembered(index: ExactIndex, tmp_path: Path) -> None:
    shuffled = dict(zip(IDS, TEXTS[1:] + TEXTS[:1], strict=True))  # the wrong text for every row
    log = tmp_path / "log.jsonl"
    for _ in range(2):  # going on from the lower level is no way around it
        with pytest.raises(GenerationError, match="was measured at first"):
            made.backfill(index, texts=shuffled, probe=_probe(margin=0.1), log=log).run()
    assert sum(index.counts().values()) == len(IDS)
    outcome = made.backfill(index, texts=shuffled, probe=_probe(margin=None), log=log).run()
    assert outcome.left == 0


def test_a_prediction_is_held_against(index: ExactIndex) -> None:
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


def test_counts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("id,count\na,2\nb,0\na,3\n7,1\n")
    assert order.counts(path) == {"a": 5.0, "b": 0.0, "7": 1.0}
    path.write_text("id,count\na,often\n")
    with pytest.raises(DataError, match="often"):
        order.counts(path)
    path.write_text("id\na\n")
    with pytest.raises(DataError, match="no column count"):
        order.counts(path)


def test_probes_need_answers() -> None:
    with pytest.raises(DataError, match="at least one"):
        Probe({}, [])
    with pytest.raises(ShapeError, match="2 queries in every"):
        Probe({0: np.zeros((1, 4), np.float32)}, [["a"], ["b"]])
    with pytest.raises(ShapeError, match="every"):
        _probe(every=0.0)


def test_bad_settings(index: ExactIndex) -> None:
    for settings in ({"batch": 0}, {"until": -0.1}, {"until": 1.5}, {"until": float("nan")}, {"rate": -1.0}):
        with pytest.raises(ShapeError):
            made.backfill(index, **settings)
    assert Outcome().clean


def test_ctrl_c_in_the_encoder_loses_nothing(index: ExactIndex) -> None:
    calls = [0]

    def interrupted(texts: Sequence[str]) -> Floats:
        calls[0] += 1
        if calls[0] == 3:
            signal.raise_signal(signal.SIGINT)
        return made.encoders()[1].encode(texts)

    with pytest.raises(KeyboardInterrupt):
        made.backfill(index, encode=interrupted).run()
    assert _whole(index).count(1) == 32
