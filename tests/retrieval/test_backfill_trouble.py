"""Backfill in trouble: texts that lack, encoders that fail, stores that spoil rows, others who change them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import made_change as made
import numpy as np
import pytest

from instar.errors import DataError, ModelError, ShapeError, StoreError
from instar.interfaces import Floats, Id, Index
from instar.retrieval.exact import ExactIndex
from instar.retrieval.verify import Verification

IDS, TEXTS = list(made.texts()), list(made.texts().values())


def test_rows_without_text_stay_old_and_are_listed(index: Index) -> None:
    some = {name: text for i, (name, text) in enumerate(made.texts().items()) if i % 50}
    outcome = made.backfill(index, texts=some).run()
    assert sorted(outcome.lacking) == sorted(IDS[::50])
    assert (outcome.left, outcome.clean) == (8, False)
    generations = made.whole(index)
    assert [IDS[i] for i, number in enumerate(generations) if number == 0] == IDS[::50]
    assert made.backfill(index).run().clean


def test_an_encoder_that_fails_on_some_texts(index: Index) -> None:
    bad = set(TEXTS[::90])

    def fragile(texts: Sequence[str]) -> Floats:
        if found := bad & set(texts):
            raise RuntimeError(f"cannot read {len(found)}")
        return made.encoders()[1].encode(texts)

    outcome = made.backfill(index, encode=fragile).run()
    assert sorted(outcome.failed) == sorted(IDS[::90])
    assert all("cannot read 1" in reason for reason in outcome.failed.values())
    assert made.whole(index).count(0) == outcome.left == 5
    alone = made.backfill(index, encode=fragile).run()  # only those are left: the encoder lives, the texts are bad
    assert (alone.moved, sorted(alone.failed)) == (0, sorted(IDS[::90]))


def test_an_encoder_that_is_gone_ends_it(index: Index) -> None:
    calls = [0]

    def dying(texts: Sequence[str]) -> Floats:
        calls[0] += 1
        if calls[0] > 3:
            raise ConnectionError("refused")
        return made.encoders()[1].encode(texts)

    with pytest.raises(ModelError, match=r"plain sentence .*refused"):
        made.backfill(index, encode=dying).run()
    assert made.whole(index).count(1) == 48


@pytest.mark.parametrize(
    "wrong", [lambda v: v[:, :5], lambda v: v[:-1] if len(v) > 1 else v[:0], lambda v: v * np.nan, lambda v: v * 0]
)
def test_an_encoder_that_gives_no_vectors(index: Index, wrong: object) -> None:
    with pytest.raises(ModelError, match="plain sentence"):
        made.backfill(index, encode=lambda texts: wrong(made.encoders()[1].encode(texts))).run()  # type: ignore[operator]
    assert set(made.whole(index)) == {0}


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
        assert set(made.whole(sound)) == {0}
        assert made.backfill(sound).run().clean


def test_verification_can_be_left_out_and_its_settings_are_checked(index: Index) -> None:
    outcome = made.backfill(index, verify=Verification(0)).run()
    assert (outcome.checked, outcome.left) == (0, 0)
    with pytest.raises(ShapeError, match="sample"):
        Verification(-1)


def test_rows_that_others_remove_or_add_meanwhile(index: Index) -> None:
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


def test_rows_that_go_while_they_are_read_back(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    real, gone = Verification.batch, list[Id]()

    def late(self: Verification, index: Index, ids: Sequence[Id], *rest: Any) -> None:
        if not gone:
            gone.extend(ids[:3])
            index.remove(gone)
        real(self, index, ids, *rest)

    monkeypatch.setattr(Verification, "batch", late)
    outcome = made.backfill(index).run()
    assert (outcome.moved, outcome.left, outcome.lost, outcome.clean) == (len(IDS) - 3, 0, 0, True)
    assert index.counts() == {0: 0, 1: len(IDS) - 3}


def test_ids_that_are_alike_or_no_text_at_all(tmp_path: Path) -> None:
    vectors = made.encoders()[0].encode(TEXTS[:2])
    with ExactIndex.adopt(str(tmp_path / "a"), "", made.generation(0), vectors=vectors, ids=[7, "7"]) as index:
        with pytest.raises(DataError, match="a row 7 and another one '7'"):
            made.backfill(index, texts={"7": TEXTS[0]}).run()
        assert index.counts() == {0: 2, 1: 0}
    with ExactIndex.adopt(str(tmp_path / "b"), "", made.generation(0), vectors=vectors, ids=["\ud800", "../x"]) as index:
        outcome = made.backfill(index, texts={"\ud800": TEXTS[0], "../x": TEXTS[1]}).run()
        assert (outcome.moved, outcome.clean) == (2, True)
