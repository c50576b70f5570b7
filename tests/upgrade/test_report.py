"""The report on real vectors whose truth is known: who wins, what must be equal, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from digits_upgrades import upgrade

from instar.compat import labelled
from instar.data.collection import Vectors
from instar.errors import DataError, InstarError, ShapeError, UnknownNameError
from instar.upgrade import result
from instar.upgrade.report import report
from instar.upgrade.result import Figure, Report

FAST = ("no_map", "ridge", "procrustes")


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return {kind: report(*upgrade(kind), chosen=FAST, seed=1) for kind in ("cleaner", "turned", "other")}


def curve(found: Report, name: str) -> list[float]:
    return [p.recall.value for p in next(a for a in found.arms if a.id == name).curve]


def test_ends_are_the_two_encoders_alone(reports: dict[str, Report]) -> None:
    for found in reports.values():
        both, keep, no_map = (next(a for a in found.arms if a.id == name).curve for name in ("two_encoders", "keep", "no_map"))
        assert len(keep) == 1
        assert both[0].recall == keep[0].recall == found.old.own_recall
        assert both[-1].recall == no_map[-1].recall == found.new.own_recall
        for same in (keep[0], both[0]):
            assert same.against_old == Figure(0.0, 0.0, 0.0, 0.0), "a search against itself"


def test_where_the_coordinates_stay_no_map_wins(reports: dict[str, Report]) -> None:
    found = reports["cleaner"]
    assert found.kind_of_upgrade.startswith("fine-tune")
    assert found.choices[0].arm == "no_map"
    assert curve(found, "no_map")[0] > curve(found, "keep")[0] + 0.05
    assert "switching only the query encoder (no map)" in found.headline


def test_where_they_turned_a_map_wins_and_no_map_is_chance(reports: dict[str, Report]) -> None:
    found = reports["turned"]
    assert found.kind_of_upgrade.startswith("same family")
    assert found.choices[0].arm in ("ridge", "procrustes")
    assert curve(found, "no_map")[0] < 0.2 < curve(found, "keep")[0] < curve(found, found.choices[0].arm)[0]


def test_unequal_widths_run_all_the_same(reports: dict[str, Report]) -> None:
    found = reports["other"]
    assert (found.old.dim, found.new.dim) == (24, 64)
    assert all(a.curve for a in found.arms)
    assert found.bytes_new == found.rows * 64 * 4


def test_predictions_hold_on_held_out_queries(reports: dict[str, Report]) -> None:
    for found in reports.values():
        assert found.check.worst < max(found.check.margin, 2 * found.check.chance)
        for a in found.arms:
            for point in a.curve:
                assert point.recall.low is not None
                assert point.recall.low <= point.recall.value <= (point.recall.high or 0)


def test_hours_and_bytes_follow_the_share(reports: dict[str, Report]) -> None:
    points = next(a for a in reports["other"].arms if a.id == "two_encoders").curve
    rows = reports["other"].rows
    assert points[5].hours == pytest.approx(0.5 * rows * 0.02 / 3600)
    assert points[5].bytes == pytest.approx(rows * 4 * (24 + 64) / 2)
    mapped = next(a for a in reports["other"].arms if a.id == "ridge").curve
    assert mapped[0].hours is not None
    assert mapped[0].hours > 0, "what a map is fitted on has to be encoded"
    assert reports["cleaner"].choices[0].arm == "no_map"
    assert reports["cleaner"].choices[0].hours == 0, "a switch has nothing to fit"


def test_queries_that_teach_a_map_are_no_rows_to_encode() -> None:
    found = report(*upgrade("cleaner", queries=True), chosen=["ridge"])
    ridge = next(a for a in found.arms if a.id == "ridge")
    taught = found.documents - found.facts["documents searched"]
    assert found.facts["pairs to fit on"] > taught
    assert ridge.curve[0].hours == pytest.approx((taught * 0.01 + ridge.fit_seconds) / 3600, rel=0.01)


def test_the_record_comes_back_as_it_was(reports: dict[str, Report], tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    path.write_text(result.as_json(reports["cleaner"]), "utf-8")
    assert result.as_json(result.load(path)) == result.as_json(reports["cleaner"])


def test_the_way_for_the_whole_backfill_is_in_the_record(reports: dict[str, Report], tmp_path: Path) -> None:
    for kind, found in reports.items():
        assert found.during is not None
        arm = next(a for a in found.arms if a.id == found.during.arm)
        assert (arm.fusion, len(arm.curve)) == (found.during.fusion, 11), "it goes from one end to the other"
        words = next((s for s in found.advice if s.startswith("While rows are re-encoded: ")), "")
        assert words.startswith(f"While rows are re-encoded: {found.during.words}"), kind
    table = json.loads(result.as_json(reports["cleaner"]))
    assert table["during"]["arm"] == "no_map"
    del table["during"]  # as it was written before
    (tmp_path / "old.json").write_text(json.dumps(table), "utf-8")
    assert result.load(tmp_path / "old.json").during is None


def test_queries_with_relevant_documents() -> None:
    found = report(*upgrade("cleaner", queries=True), chosen=FAST, rows=1_000_000, hours=2.0)
    assert (found.truth, found.rows) == ("queries", 1_000_000)
    assert found.new.own_recall.value > found.old.own_recall.value
    assert found.hours_full == pytest.approx(0.01 * 1_000_000 / 3600)
    assert any(s.startswith("Within 2 hours 70") for s in found.advice)
    assert any("1,000,000" in c or "1\u202f000\u202f000" in c for c in found.cautions)
    assert {e["becomes"] for e in found.examples} <= {"right", "wrong"}
    assert found.examples


def test_without_any_truth_the_new_encoder_is_the_measure() -> None:
    found = report(*upgrade("cleaner", labels=False), chosen=FAST)
    assert found.truth == "neighbours"
    assert found.new.own_recall.value == 1.0
    assert any("Nobody said what is relevant" in s for s in found.advice)


def test_labels_that_are_no_classes_are_left_out_and_told() -> None:
    """A column of ids, one label for all: heads and figures are those without labels, and the report says why."""
    plain = report(*upgrade("cleaner", labels=False), chosen=["bct"], steps=5)
    collection, *sides = upgrade("cleaner")
    for labels, why in ((list(range(1797)), "no two items share a label"), (["a"] * 1797, "the same label")):
        found = report(replace(collection, labels=labels), *sides, chosen=["bct"], steps=5)
        assert found.truth == "neighbours"
        assert curve(found, "bct") == curve(plain, "bct")
        assert any(c.startswith("The labels were left out") and why in c for c in found.cautions)
    assert not any("left out" in c for c in plain.cautions)


def test_classes_that_are_too_many_for_the_heads_still_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "MOST", 9)
    found = report(*upgrade("cleaner"), chosen=["bct", "bt2"], steps=5)
    assert found.truth == "labels"
    assert all(a.curve for a in found.arms)
    assert any("10 classes are more than the 9" in c and "fitted without them" in c for c in found.cautions)


def test_order_of_the_files_does_not_matter() -> None:
    """Predictions are of the data, not of how they lie: another order of the documents gives figures within chance."""
    collection, old, new = upgrade("turned")
    turned = np.random.default_rng(5).permutation(len(collection))
    again = [replace(side, documents=side.documents[turned]) for side in (old, new)]
    one, other = (report(c, *sides, chosen=["ridge"]) for c, sides in ((collection, (old, new)), (collection.of(turned), again)))
    assert curve(one, "ridge")[0] == pytest.approx(curve(other, "ridge")[0], abs=3 * one.check.chance)


def test_bad_input() -> None:
    collection, old, new = upgrade("cleaner")
    broken = old.documents.copy()
    broken[7, 3] = np.nan
    zero = old.documents.copy()
    zero[2] = 0
    for side, words in (
        (replace(old, documents=broken), "1 of 1797 old document vectors hold NaN"),
        (replace(old, documents=zero), "1 of 1797 old document vectors are zero"),
        (replace(old, documents=old.documents[:10]), "old gives 10 vectors of documents"),
    ):
        with pytest.raises(DataError, match=words):
            report(collection, side, new, chosen=FAST)
    with pytest.raises(UnknownNameError, match=r"Unknown arm 'rigde'\. Did you mean ridge"):
        report(collection, old, new, chosen=["rigde"])
    for wrong in ({"k": 0}, {"rows": 0}, {"hours": -1.0}, {"rate": 0.0}):
        with pytest.raises(ShapeError):
            report(collection, old, new, chosen=FAST, **wrong)
    with pytest.raises(InstarError, match="recall at 5000 needs more"):
        report(collection, old, new, chosen=FAST, k=5000)


def test_a_query_side_that_is_missing_is_told() -> None:
    collection, old, new = upgrade("cleaner", queries=True)
    with pytest.raises(DataError, match="old gives 1198 vectors of documents and 0 of queries"):
        report(collection, Vectors("old", "o", old.documents), new, chosen=FAST)
