"""In which order a backfill takes the rows, and at what rate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import made_change as made
import numpy as np
import pytest

from instar.errors import DataError, ShapeError
from instar.interfaces import Floats, Id, Index
from instar.retrieval import order
from instar.retrieval.throttle import Throttle
from instar.retrieval.uncertainty import Uncertainty

IDS, TEXTS = list(made.texts()), list(made.texts().values())


@pytest.mark.parametrize("kind", [order.random, order.most_queried({name: i % 7 for i, name in enumerate(IDS)})])
def test_an_order_is_resumed(index: Index, kind: order.Order) -> None:
    seen: list[str] = []

    def watched(texts: Sequence[str]) -> Floats:
        seen.extend(texts)
        return made.encoders()[1].encode(texts)

    names = {text: name for name, text in made.texts().items()}
    planned = order.arrange(index, IDS, kind, seed=3)
    made.backfill(index, encode=watched, order=kind, seed=3, until=0.3).run()
    made.backfill(index, encode=watched, order=kind, seed=3).run()
    assert [names[text] for text in seen] == planned


def test_orders(index: Index) -> None:
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


def test_the_least_certain_go_first(index: Index) -> None:
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


def test_rows_that_go_while_they_are_put_in_order(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program removes rows between their listing and the look at their vectors."""
    old = made.encoders()[0].encode(TEXTS)
    fitted = Uncertainty.fit(made.generation(0).encoder, old, np.linspace(0.1, 1, len(IDS)))
    planned = order.arrange(index, IDS, order.least_certain(fitted))
    fetch, gone = index.fetch, [IDS[3], IDS[200], IDS[201]]

    def late(ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        monkeypatch.undo()
        index.remove(gone)
        return fetch(ids)

    monkeypatch.setattr(index, "fetch", late)
    left = [name for name in order.arrange(index, IDS, order.least_certain(fitted)) if name not in gone]
    assert left == [name for name in planned if name not in gone]
    outcome = made.backfill(index, order=order.least_certain(fitted)).run()
    assert (outcome.moved, outcome.left, outcome.clean) == (len(left), 0, True)


def test_uncertainty_of_noise_is_flat() -> None:
    draw = np.random.default_rng(0)
    old = draw.standard_normal((300, 24)).astype(np.float32)
    fitted = Uncertainty.fit("e", old, np.exp(draw.standard_normal(300)))
    assert np.std(fitted(old)) < 0.3
    with pytest.raises(DataError, match="8 finite"):
        Uncertainty.fit("e", old[:7], np.ones(7))
    with pytest.raises(ShapeError, match="24"):
        fitted(old[:, :3])


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


def test_a_backfill_keeps_its_rate(index: Index) -> None:
    now = [0.0]
    slow = Throttle(20.0, clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    made.backfill(index, rate=slow, until=100, batch=64).run()
    assert now[0] == pytest.approx(4.0)  # the first 20 rows need not wait


def test_who_asks_to_stop_while_it_waits_gets_no_further_batch(index: Index) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] >= 1:
            work.stop()

    work = made.backfill(index, rate=Throttle(0.1, clock=lambda: now[0], sleep=sleep))
    outcome = work.run()
    assert (outcome.moved, outcome.stopped) == (1, True)
    assert now[0] == pytest.approx(1.0)
