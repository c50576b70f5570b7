"""What reaches old rows: a head by fingerprints, the old encoder, and the refusal of everything else."""

from __future__ import annotations

from pathlib import Path

import made_change as made
import numpy as np
import pytest
import torch

from instar.compat import learning, pairs, saved
from instar.compat.saved import Saved
from instar.encoders import files
from instar.errors import DataError, GenerationError, ShapeError, UnknownNameError
from instar.interfaces import Generation
from instar.retrieval.bridge import Bridge, stamp
from instar.retrieval.calibrating import FromRows
from instar.retrieval.exact import ExactIndex
from instar.upgrade import sides

IDS, TEXTS = list(made.texts()), list(made.texts().values())


def _saved(method: str = "ridge") -> Saved:
    old, new = made.encoders()
    rows = [side.encode(TEXTS) for side in (old, new)]
    fitted = learning.fit(method, pairs.of(*rows), old=old.fingerprint, seed=0, steps=50)
    before, after = (sides.of_encoder(side, IDS, TEXTS) for side in (old, new))
    known = sides.generations(before, after, fitted.head.full_dim, stamp(new.fingerprint, fitted.head))
    return Saved(fitted.head, known, fitted.calibration)


@pytest.fixture
def index(tmp_path: Path) -> ExactIndex:
    with made.store(tmp_path / "store") as found:
        yield found


def test_a_map_serves_an_untouched_index_and_a_mixed_one(index: ExactIndex) -> None:
    old, new = made.encoders()
    across = Bridge(new, _saved())
    assert across.generation(index) == Generation(1, new.fingerprint, new.dim, new.name)
    asked = [" ".join(text.split()[:6]) for text in TEXTS[:60]]
    queries = across.queries(asked, index)
    assert list(queries) == [0]
    np.testing.assert_allclose(np.linalg.norm(queries[0], axis=1), 1, atol=1e-5)
    found = index.search(queries, 3)
    share = np.mean([name in row for name, row in zip(IDS[:60], found.ids, strict=True)])
    chance = np.mean([name in row for name, row in zip(IDS[:60], found.ids[::-1], strict=True)])
    assert share > 0.4 > chance + 0.3
    made.backfill(index, encode=across.documents, until=0.5).run()
    mixed = across.queries(asked, index)
    np.testing.assert_allclose(mixed[1], new.encode(asked, "query"), atol=1e-6)
    assert callable(across.fusion("calibrated", index))
    assert not isinstance(across.fusion("calibrated", index), FromRows)
    better = index.search(mixed, 3, across.fusion("calibrated", index))
    assert np.mean([name in row for name, row in zip(IDS[:60], better.ids, strict=True)]) > share
    assert isinstance(Bridge(new, old=old).fusion("calibrated", index), FromRows)


@pytest.mark.parametrize("method", ["ridge", "bt2"])
def test_a_head_of_double_precision_serves_too(method: str, index: ExactIndex, tmp_path: Path) -> None:
    found, (_, new) = _saved(method), made.encoders()
    plain = Bridge(new, found)
    asked, stored = plain.queries(TEXTS[:5], index), plain.documents(TEXTS[:5])
    head = found.head.double()
    fingerprint = stamp(new.fingerprint, head)
    newest = Generation(1, fingerprint, head.full_dim, new.name)
    saved.save(head, tmp_path / "head", generations=[found.generations[0], newest])
    across = Bridge(new, saved.load(tmp_path / "head"))
    np.testing.assert_allclose(across.queries(TEXTS[:5], index)[0], asked[0], atol=1e-5)
    np.testing.assert_allclose(across.documents(TEXTS[:5]), stored, atol=1e-5)
    assert across.documents(TEXTS[:5]).dtype == np.float32


def test_generations_are_told_by_fingerprints_not_by_numbers(tmp_path: Path) -> None:
    old, new = made.encoders()
    vectors = old.encode(TEXTS)
    later = Generation(4, old.fingerprint, old.dim, "after four changes")
    with ExactIndex.adopt(str(tmp_path / "store"), "", later, vectors=vectors, ids=IDS) as index:
        across = Bridge(new, _saved())
        assert across.generation(index).number == 5
        assert list(across.queries(["a list of names"], index)) == [4]


def test_both_encoders(index: ExactIndex) -> None:
    old, new = made.encoders()
    queries = Bridge(new, old=old).queries(TEXTS[:5], index)
    np.testing.assert_array_equal(queries[0], old.encode(TEXTS[:5], "query"))


def test_strangers_are_refused(index: ExactIndex) -> None:
    old, new = made.encoders()
    with pytest.raises(GenerationError, match="400 rows stand in generation 0"):
        Bridge(new).queries(["a"], index)
    with pytest.raises(GenerationError, match="was fitted for"):
        Bridge(old, _saved())
    one = _saved()
    foreign = Saved(one.head, [Generation(0, "x", 24), *one.generations[1:]])
    with pytest.raises(GenerationError, match="400 rows stand in generation 0"):
        Bridge(new, foreign).queries(["a"], index)
    with pytest.raises(ShapeError, match="cosine, rank or calibrated"):
        Bridge(new, _saved()).fusion("loud", index)


def test_a_stamp_is_the_encoders_own_exactly_where_its_vectors_are() -> None:
    new = made.encoders()[1]
    assert _saved("ridge").generations[1].encoder == new.fingerprint
    assert _saved("procrustes").generations[1].encoder == new.fingerprint

    class Turned(type(_saved("ridge").head)):  # type: ignore[misc]
        def full(self, x: torch.Tensor) -> torch.Tensor:
            return x.flip(1)

    one, other = Turned(96, 24), Turned(96, 24)
    assert stamp("e", one) not in ("e", stamp("f", one))
    assert stamp("e", one) == stamp("e", other)
    with torch.no_grad():
        next(iter(other.state_dict().values())).view(-1)[0] += 1
    assert stamp("e", one) != stamp("e", other)


def test_saved_and_loaded_it_reaches_the_same_rows(index: ExactIndex, tmp_path: Path) -> None:
    new, one = made.encoders()[1], _saved()
    saved.save(one.head, tmp_path / "head", generations=one.generations, calibration=one.calibration)
    first, second = (Bridge(new, head).queries(TEXTS[:9], index)[0] for head in (one, saved.load(tmp_path / "head")))
    np.testing.assert_array_equal(first, second)


def test_a_fit_tells_what_it_is_worth() -> None:
    old, new = made.encoders()
    rows = [side.encode(TEXTS) for side in (old, new)]
    fitted = learning.fit("ridge", pairs.of(*rows), old=old.fingerprint)
    quality = fitted.quality
    assert (quality.fitted, quality.held_out) == (360, 40)
    assert 0.6 < quality.cosine < 1
    assert 0.2 < quality.itself <= 1
    assert 0.3 < quality.neighbours <= 1
    assert (fitted.uncertainty, quality.uncertainty) == (None, None)  # 40 items say nothing of that
    assert fitted.calibration is not None
    assert sorted(fitted.calibration.quantiles) == [0, 1]
    same = learning.fit("procrustes", pairs.of(rows[0], rows[0]), old=old.fingerprint).quality
    assert (round(same.cosine, 5), same.itself, same.neighbours) == (1, 1, 1)
    draw = np.random.default_rng(0)
    noise = learning.fit("ridge", pairs.of(rows[0], draw.standard_normal((400, 96))), old="e").quality
    assert noise.itself < 0.1
    with pytest.raises(DataError, match="20 items"):
        learning.fit("ridge", pairs.of(rows[0][:19], rows[1][:19]), old="e")
    with pytest.raises(DataError, match="ridge"):
        learning.fit("gru", pairs.of(*rows), old="e")
    with pytest.raises(UnknownNameError, match="ridge"):
        learning.fit("ridgy", pairs.of(*rows), old="e")


def test_rows_that_are_few_equal_or_gone_calibrate_nothing(tmp_path: Path) -> None:
    old = made.encoders()[0]
    names = [str(i) for i in range(40)]
    vectors = np.repeat(old.encode(TEXTS[:1]), 40, 0)
    scores = np.linspace(-1, 1, 9, dtype=np.float32)[None]
    with ExactIndex.adopt(str(tmp_path / "equal"), "", made.generation(0), vectors=vectors, ids=names) as index:
        fusion = FromRows(index)
        np.testing.assert_array_equal(fusion(0, scores), scores)
        made.backfill(index, texts=dict.fromkeys(names, TEXTS[0]), until=0.5).run()
        np.testing.assert_array_equal(fusion(1, scores), scores)
        index.remove(names[:30])
        np.testing.assert_array_equal(fusion(1, scores), scores)


def test_sides_are_paired_by_ids() -> None:
    vectors = np.eye(3, dtype=np.float32)
    one = sides.Side("old", "o", ["a", "b", "c"], vectors)
    two = sides.Side("new", "n", ["c", "x", "a"], vectors)
    ids, left, right = sides.paired(one, two)
    assert ids == ["c", "a"]
    np.testing.assert_array_equal(left, vectors[[2, 0]])
    np.testing.assert_array_equal(right, vectors[[0, 2]])
    with pytest.raises(DataError, match="no id in common"):
        sides.paired(one, sides.Side("new", "n", ["y", "z", "w"], vectors))
    with pytest.raises(DataError, match="ids are missing"):
        sides.paired(one, sides.Side("new", "n", None, vectors[:2]))
    assert sides.paired(sides.Side("old", "o", None, vectors), two)[0] == two.ids
    ids, left, right = sides.drawn(["a", "b", "c"], vectors, 2 * vectors, 2, 0)
    assert (len(ids), sides.drawn(["a", "b", "c"], vectors, vectors, 3, 0)[0]) == (2, ["a", "b", "c"])
    np.testing.assert_array_equal(2 * left, right)


def test_a_store_as_a_side(index: ExactIndex) -> None:
    found = sides.of_store(index, [*IDS[:5], "nobody"])
    assert (found.ids, found.fingerprint) == (IDS[:5], made.generation(0).encoder)
    made.backfill(index, until=0.9).run()
    mostly = sides.of_store(index)
    assert mostly.ids is not None
    assert (len(mostly.ids), mostly.fingerprint) == (360, made.generation(1).encoder)
    some = sides.of_store(index, list(IDS), most=50, seed=1).ids
    assert some is not None
    assert some != sides.of_store(index, list(IDS), most=50, seed=2).ids
    assert some == [name for name in IDS if name in some]  # drawn from all of them, in their order
    assert any(name in some for name in IDS[200:])
    with pytest.raises(DataError, match="None of these ids"):
        sides.of_store(index, ["nobody"])


def test_knobs_are_read_as_they_are_meant() -> None:
    assert sides.knobs({"a": "3", "b": "0.5", "c": "true", "d": "exp"}) == {"a": 3, "b": 0.5, "c": True, "d": "exp"}


def test_the_end_of_a_files_name_may_be_written_large(tmp_path: Path) -> None:
    path = tmp_path / "VECTORS.NPZ"
    files.write(path, ["a", "b"], np.eye(2, dtype=np.float32))
    assert sides.is_file(str(path))
    assert sides.of_file(path).ids == ["a", "b"]
