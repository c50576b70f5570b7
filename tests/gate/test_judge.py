"""Joining, grouping, slices, cautions, and the whole judgement as a record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_predictions import flipped, version

from instar.errors import DataError, RecordError
from instar.gate import intervals
from instar.gate import result as record
from instar.gate.judge import judge
from instar.gate.policy import Policy
from instar.gate.predictions import Cases, Predictions

RIGHT = np.arange(300) % 10 > 0


def test_order_does_not_matter() -> None:
    old = version("old", RIGHT, columns={"part": [f"p{i % 3}" for i in range(300)]})
    new = version("new", flipped(RIGHT, [4, 5, 6]), scores=np.linspace(0, 1, 300), columns={"extra": list(range(300))})
    order = np.random.default_rng(0).permutation(300)
    shuffled = replace(
        new,
        ids=[new.ids[i] for i in order],
        outputs=[new.outputs[i] for i in order],
        labels=[(new.labels or [])[i] for i in order],
        scores=(new.scores if new.scores is not None else np.empty(0))[order],
        columns={"extra": [new.columns["extra"][i] for i in order]},
    )
    first, second = judge(old, new), judge(old, shuffled)
    assert first.measures == second.measures
    assert first.slices == second.slices
    assert first.broken == second.broken


@pytest.mark.parametrize(
    ("ids", "match"), [(range(1, 301), r"1 only in old: 'item-0'; 1 only in new: 'item-300'"), (range(299), "only in old")]
)
def test_ids_that_do_not_join_are_listed(ids: range, match: str) -> None:
    new = version("new", RIGHT[: len(ids)], ids=[f"item-{i}" for i in ids])
    with pytest.raises(DataError, match=match):
        judge(version("old", RIGHT), new)
    with pytest.raises(DataError, match="300 only in old"):
        judge(version("old", RIGHT), version("new", RIGHT, ids=[f"x{i}" for i in range(300)]))


def test_duplicates_and_lengths() -> None:
    with pytest.raises(DataError, match="1 ids occur more than once: 'a'"):
        Predictions("v", ["a", "a"], [1, 2])
    with pytest.raises(DataError, match="column 'label' has 1 values for 2 ids"):
        Predictions("v", ["a", "b"], [1, 2], [1])
    with pytest.raises(DataError, match="holds no item"):
        Predictions("v", [], [])


def test_labels_must_agree() -> None:
    old, new = version("old", RIGHT), version("new", RIGHT)
    other = replace(new, labels=["maybe" if i == 7 else x for i, x in enumerate(new.labels or [])])
    with pytest.raises(DataError, match="disagree about what is right for 1 items: 'item-7'"):
        judge(old, other)
    # Labels may come with one version only, or with the items.
    assert judge(old, replace(new, labels=None)).measures == judge(old, new).measures
    cases = Cases("items", old.ids[::-1], [f"text {i}" for i in range(300)][::-1], (old.labels or [])[::-1])
    bare = judge(replace(old, labels=None), replace(new, labels=None), cases=cases)
    assert bare.measures == judge(old, new).measures


def test_without_labels_every_change_counts() -> None:
    old, new = (replace(version(name, marks), labels=None) for name, marks in (("old", RIGHT), ("new", flipped(RIGHT, [1, 2]))))
    found = judge(old, new)
    assert found.metric == "unchanged"
    assert {m.id: m.figure.value for m in found.measures}["nfr"] == pytest.approx(2 / 300)
    assert any("no labels" in caution for caution in found.cautions)


def test_documents_that_are_not_the_same() -> None:
    old, new = (version(n, RIGHT, columns={"doc_hash": ["h"] * 300}) for n in ("old", "new"))
    judge(old, new)
    with pytest.raises(DataError, match="not asked the same documents: 'item-0'"):
        judge(old, replace(new, columns={"doc_hash": ["x", *["h"] * 299]}))


def test_cautions() -> None:
    old = version("old", RIGHT)
    same = Predictions("new", old.ids, ["yes"] * 300, old.labels)
    assert any("same answer to every item ('yes')" in c for c in judge(old, same).cautions)
    strange = Predictions("new", old.ids, ["yes"] * 299 + ["<b>oops</b>"], old.labels)
    assert any("1 answer that is no label" in c and "oops" in c for c in judge(old, strange).cautions)
    twin = replace(old, facts={"sha256": "s"})
    assert any("same bytes" in c for c in judge(twin, twin).cautions)
    scored = Predictions("old", old.ids, old.outputs, scores=np.random.default_rng(0).random(300))
    assert any("tolerance" in c for c in judge(scored, scored).cautions)
    assert not any("tolerance" in c for c in judge(scored, scored, policy=Policy(tolerance=0.1)).cautions)


def test_blocks_widen_the_intervals() -> None:
    """Ten questions on each of 60 documents that break or hold together."""
    right = np.ones(600, dtype=bool)
    broken = flipped(right, [i for i in range(600) if (i // 10) % 12 == 0])
    columns = {"document": [f"d{i // 10}" for i in range(600)]}
    old, new = version("old", right, columns=columns), version("new", broken)
    single, blocked = judge(old, new), judge(old, new, block="document")
    assert blocked.blocks == 60

    def width(found: record.Result) -> float:
        figure = found.tests[0].figure
        assert figure.low is not None
        assert figure.high is not None
        return figure.high - figure.low

    assert width(blocked) > 2.5 * width(single)
    with pytest.raises(DataError, match=r"no column 'documnt'.*document"):
        judge(old, new, block="documnt")


def test_slices() -> None:
    columns = {
        "domain": ["bank" if i < 100 else "travel" for i in range(300)],
        "length": [i * 7 % 301 for i in range(300)],
        "who": [f"user {i}" for i in range(300)],
        "tags": [["a"]] * 300,
        "nothing": [None] * 300,
        "maybe": [None if i % 2 else "x" for i in range(300)],
    }
    places = [i for i in range(100) if RIGHT[i]][:40]
    found = judge(version("old", RIGHT, columns=columns), version("new", flipped(RIGHT, places)))
    assert (found.slices[0].column, found.slices[0].value) == ("domain", "bank")
    assert found.slices[0].negative == 40
    assert found.slices[0].p < 1e-6
    assert set(found.slices_left_out) == {"who", "tags", "nothing"}
    assert {s.value for s in found.slices if s.column == "maybe"} == {"x", "(empty)"}
    quarters = [s for s in found.slices if s.column == "length"]
    assert sum(s.items for s in quarters) == 300
    assert len(quarters) == 4
    assert min(s.items for s in quarters) >= 60
    assert {s.column for s in found.slices} >= {"label", "domain"}
    alone = [float(intervals.mcnemar(s.negative, s.positive)) for s in found.slices]
    assert [s.p for s in found.slices] == pytest.approx(intervals.holm(alone))  # many slices, one error rate
    for column in ("label", "domain", "length", "maybe"):
        rows = [s for s in found.slices if s.column == column]
        assert sum(s.negative for s in rows) == 40  # every item lies in one value of a column


def test_what_broke_is_grouped_by_likeness() -> None:
    texts = [f"how do I freeze my card number {i}" if i % 2 else f"what is the weather in town {i} tomorrow" for i in range(300)]
    places = [i for i in range(300) if RIGHT[i]][:30]
    old, new = version("old", RIGHT, inputs=texts), version("new", flipped(RIGHT, places))
    found = judge(old, new)
    assert found.broken_ids == [f"item-{i}" for i in places]
    big = found.broken[:2]
    assert sum(g.size for g in found.broken) == 30
    for group in big:
        kinds = {"card" in (item.input or "") for item in group.items}
        assert len(kinds) == 1
    assert {"card", "freeze"} & set(" ".join(g.title for g in big).split())
    # With vectors the groups are those of the vectors.
    vectors = np.zeros((300, 3), dtype=np.float32)
    vectors[np.arange(300), np.arange(300) % 3] = 1.0
    by_vector = judge(replace(old, embeddings=vectors), new)
    assert len(by_vector.broken) == 3
    assert all(len({int(item.id[5:]) % 3 for item in group.items}) == 1 for group in by_vector.broken)


def test_worst_first() -> None:
    scores = np.full(50, 0.9)
    after = scores.copy()
    after[[3, 4, 5]] = [0.5, 0.1, 0.8]
    old, new = (
        Predictions(n, [f"i{k}" for k in range(50)], ["text"] * 50, scores=s) for n, s in (("old", scores), ("new", after))
    )
    found = judge(old, new)
    assert found.broken_ids == ["i4", "i3", "i5"]
    assert not found.binary
    # What broke in a repeated run as well comes after what only the change breaks.
    marks = np.ones(60, dtype=bool)
    noisy = judge(version("old", marks), version("new", flipped(marks, [1, 2])), again=[version("again", flipped(marks, [1]))])
    assert noisy.broken_ids == ["item-2", "item-1"]
    assert [item.always for group in noisy.broken for item in group.items] == [True, False]


def test_scores_have_their_own_measures() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(400)
    after = np.clip(before + generator.normal(0.02, 0.1, 400), 0, 1)
    ids = [str(i) for i in range(400)]
    old, new = Predictions("old", ids, ["t"] * 400, scores=before), Predictions("new", ids, ["u"] * 400, scores=after)
    found = {m.id: m.figure for m in judge(old, new, policy=Policy(tolerance=0.05)).measures}
    change = after - before
    assert found["mean_change"].value == pytest.approx(change.mean())
    assert found["mean_fall"].value == pytest.approx(-change[change < 0].mean())
    assert found["mean_rise"].value == pytest.approx(change[change > 0].mean())
    assert found["nfr"].value == (before - after > 0.05).mean()
    beside = judge(version("o", RIGHT, scores=np.zeros(300)), version("n", RIGHT, scores=np.full(300, 0.25)))
    assert {m.id: m.figure.value for m in beside.measures}["score_mean_change"] == 0.25


def test_latency_and_costs() -> None:
    old = version("old", RIGHT, seconds=np.linspace(0.1, 1.1, 300), costs={"size_bytes": 100.0})
    found = judge(old, version("new", RIGHT))
    assert found.old.latency == pytest.approx({"p50": 0.6, "p95": 1.05})
    assert found.old.costs == {"size_bytes": 100.0}
    assert found.new.latency == {}


def test_nothing_was_answered() -> None:
    with pytest.raises(DataError, match="No item was answered by both"):
        judge(version("old", RIGHT), version("new", RIGHT, silent=range(300)))
    with pytest.raises(DataError, match="no answer at all"):
        judge(version("old", RIGHT, silent=range(300)), version("new", RIGHT))


def test_the_record_comes_back(tmp_path: Path) -> None:
    found = judge(
        version("old", RIGHT, columns={"part": ["a", "b", "c"] * 100}),
        version("new", flipped(RIGHT, [3, 4]), silent=[9]),
        again=[version("again", flipped(RIGHT, [3]))],
    )
    path = tmp_path / "gate.json"
    path.write_text(record.as_json(found), "utf-8")
    assert record.load(path) == replace(found, policy=record.load(path).policy)
    path.write_text(record.as_json(found)[:-200], "utf-8")
    with pytest.raises(RecordError, match="no complete record"):
        record.load(path)
    path.write_text('{"kind": "run"}', "utf-8")
    with pytest.raises(RecordError, match="no record of `instar gate`"):
        record.load(path)


def test_the_same_predictions_give_the_same_record() -> None:
    made = [judge(version("old", RIGHT), version("new", flipped(RIGHT, [5]))) for _ in (0, 1)]
    assert replace(made[0], started="", seconds=0.0) == replace(made[1], started="", seconds=0.0)


def test_answers_and_labels_of_multiple_choice() -> None:
    """An index, a letter and the text are the same answer, where the choices are known."""
    ids = [str(i) for i in range(40)]
    cases = Cases("items", ids, ["?"] * 40, ["Paris"] * 40, [["Rome", "Paris"]] * 40)
    said = (("Paris", 1), (1, "B"), ("B", 1))
    text, index, letter = (Predictions(f"v{output}", ids, [output] * 40, [label] * 40) for output, label in said)
    for new in (text, index, letter):
        found = judge(text, new, cases=cases)
        assert found.new.mean.value == 1
        assert {m.id: m.figure.value for m in found.measures}["changed"] == 0


def test_labels_that_only_one_version_has() -> None:
    old, new = version("old", RIGHT), version("new", RIGHT)
    first = replace(old, labels=[None if i < 100 else x for i, x in enumerate(old.labels or [])])
    second = replace(new, labels=[x if i < 100 else None for i, x in enumerate(new.labels or [])])
    assert judge(first, second).measures == judge(old, new).measures


def test_ids_that_nearly_join() -> None:
    with pytest.raises(DataError, match="differ only in case, spaces, accents or the way a number is written"):
        judge(version("old", RIGHT, ids=[str(i) for i in range(300)]), version("new", RIGHT, ids=[f"{i}.0" for i in range(300)]))


def test_more_cautions() -> None:
    wrong = version("old", np.zeros(300, dtype=bool))
    assert any("right nowhere" in c for c in judge(wrong, wrong).cautions)
    fine = version("old", RIGHT, facts={"sha256": "s"})
    assert any("measures no noise" in c for c in judge(fine, version("new", RIGHT), again=[fine]).cautions)
    nested = Predictions("new", fine.ids, [{"a": i % 3} for i in range(300)], [{"a": 1}] * 300)
    assert not any("right nowhere" in c for c in judge(nested, nested).cautions)
    spelled = Predictions("new", fine.ids, [str(i % 3) for i in range(300)], [i % 3 for i in range(300)])
    numbers = replace(spelled, outputs=[(i + 1) % 3 for i in range(300)])
    assert not any("no label" in c for c in judge(numbers, spelled).cautions)


def test_a_fall_of_the_tolerance_is_no_flip() -> None:
    ids = ["a", "b"]
    old, new = (Predictions(n, ids, ["t"] * 2, scores=np.array(s)) for n, s in (("old", [0.8, 0.8]), ("new", [0.7, 0.69])))
    assert judge(old, new, policy=Policy(tolerance=0.1)).broken_ids == ["b"]
