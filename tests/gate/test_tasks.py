"""Marks: hand-made cases, closed forms, and the rules that choose task and metric."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.errors import DataError, UnknownNameError
from instar.gate import marks, tasks
from instar.gate.predictions import Cases, Predictions


def _mark(outputs: list, labels: list, metric: str) -> list[float]:
    version = Predictions("v", [str(i) for i in range(len(outputs))], outputs, labels)
    return marks.mark(version, labels, metric).values.tolist()


def test_agreement_reads_json_and_csv_alike() -> None:
    outputs = ["1", 1, 1.0, "1.0", "yes ", True, None, "b", ["a", "b"]]
    labels = [1, "1", "1", 1, "yes", "true", "x", ["a", "b"], ["a", "b"]]
    marks = _mark(outputs, labels, "agreement")
    assert marks[:6] == [1] * 6
    assert np.isnan(marks[6])
    assert marks[7:] == [1, 1]  # one of several right answers; the same list
    assert _mark(["01", "1e3", "nan", "-"], ["01", "1000", "nan", "+"], "agreement") == [1, 1, 1, 0]


def test_text_metrics() -> None:
    assert _mark([" The  answer\n is 4 "], ["The answer is 4"], "exact_match") == [1]
    assert _mark(["the answer"], ["The answer"], "exact_match") == [0]
    assert _mark(["It is PARIS, of course"], ["Paris"], "contains") == [1]
    assert _mark(["so we get 1,250. #### 1250"], ["… #### 1,250"], "last_number") == [1]
    assert _mark(["no number"], ["no number"], "last_number") == [0]
    assert _mark(["1,2,3", "it is \u22127", "12,345,678"], ["3", "-7", "12345678"], "last_number") == [1, 1, 1]
    for said, meant in ((".5", "0.5"), ("6.02e23", "602000000000000000000000.0"), ("3-5", "5"), ("x = -5", "-5"), ("5kg", "5")):
        assert _mark([f"so {said}"], [meant], "last_number") == [1], said
    assert _mark(["the answer is .5", "1e5"], ["5", "5"], "last_number") == [0, 0]
    assert _mark(["x"], [["x", "y"]], "exact_match") == [1]


def test_rouge_by_hand() -> None:
    assert marks.rouge_n("the cat sat", "the cat ran home", 1) == pytest.approx(2 * 2 / 7)
    assert marks.rouge_n("the cat sat", "the cat ran home", 2) == pytest.approx(2 * 1 / 5)
    assert marks.rouge_n("a a a", "a", 1) == pytest.approx(2 * 1 / 4)
    assert marks.rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)  # Lin 2004, § 3.1
    assert marks.rouge_l("the gunman kill police", "police kill the gunman") == pytest.approx(0.5)
    assert marks.rouge_n("", "x", 1) == 0
    assert marks.rouge_l("same words", "Same, words!") == 1


def test_retrieval_by_hand() -> None:
    ranked = ["d3", "d1", "d9", "d2"]
    assert _mark([ranked], [["d1", "d2"]], "recall@2") == [0.5]
    assert _mark([ranked], [["d1", "d2"]], "recall@10") == [1.0]
    assert _mark([ranked], [["d1", "d2"]], "map") == pytest.approx([(1 / 2 + 2 / 4) / 2])
    assert _mark([ranked], [["d1", "d2"]], "mrr") == [0.5]
    assert _mark([ranked], [{"d1": 2, "d9": 0}], "mrr") == [0.5]
    assert _mark([["d1", "d1", "d2"]], [["d1", "d2"]], "map") == [1.0]  # a document is found once
    assert _mark([[1, 2]], ["2"], "mrr") == [0.5]


def test_errors_of_numbers() -> None:
    assert _mark([1.5, [1.0, 3.0]], [1.0, [2.0, 1.0]], "absolute_error") == pytest.approx([-0.5, -1.5])
    assert _mark(["1.5"], [1.0], "squared_error") == pytest.approx([-0.25])


def test_a_user_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def close(output, label):\n    return abs(float(output) - float(label)) < 0.1\n\ndef broken(o, l):\n    return 1 / 0\n"
    )
    assert _mark(["1.05", "2"], ["1", "1"], f"{file}:close") == [1, 0]
    with pytest.raises(DataError, match=r"item '0'.*cannot mark.*ZeroDivisionError"):
        _mark(["1"], ["1"], f"{file}:broken")
    with pytest.raises(UnknownNameError, match="close"):
        _mark(["1"], ["1"], f"{file}:clse")


def test_what_cannot_be_marked() -> None:
    with pytest.raises(DataError, match=r"1 items have no label: '1'"):
        _mark(["a", "b"], ["a", None], "agreement")
    with pytest.raises(DataError, match=r"item '0'.*list of document ids"):
        _mark(["d1"], [["d1"]], "recall@5")
    with pytest.raises(DataError, match=r"no relevant document"):
        _mark([["d1"]], [{"d1": 0}], "map")
    with pytest.raises(DataError, match=r"item '0'.*shape"):
        _mark([[1.0, 2.0]], [[1.0]], "absolute_error")
    with pytest.raises(DataError, match="not finite for '0'"):
        _mark([float("inf")], [1.0], "absolute_error")
    with pytest.raises(UnknownNameError, match="recall@10"):
        _mark([["a"]], [["a"]], "recall@x")
    version = Predictions("v", ["a", "b"], ["x", "y"], scores=np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="1 scores are no finite numbers: 'b'"):
        marks.mark(version, None, "score")


def _choose(
    outputs: list, labels: list | None, scores: list | None = None, task: str = "auto", metric: str = ""
) -> tuple[str, str]:
    version = Predictions(
        "v", [str(i) for i in range(len(outputs))], outputs, labels, None if scores is None else np.array(scores, dtype=float)
    )
    return tasks.choose(task, metric, [version, version])[:2]


def test_task_and_metric_from_the_data() -> None:
    texts = [f"a longer answer number {i}" for i in range(30)]
    assert _choose(["a", "b"] * 20, ["a", "a"] * 20) == ("classification", "agreement")
    assert _choose(texts, texts) == ("generation", "exact_match")
    assert _choose(texts, texts, [0.5] * 30) == ("generation", "score")
    assert _choose([["d1", "d2"]] * 3, [["d1"]] * 3) == ("retrieval", "recall@10")
    assert _choose([[1, 2]] * 3, [[1]] * 3) == ("retrieval", "recall@10")
    assert _choose([0.5, 0.25], [1, 0]) == ("regression", "absolute_error")
    assert _choose([[0.1, 0.2]] * 3, [[0.1, 0.3]] * 3) == ("regression", "absolute_error")
    assert _choose([1, 0] * 10, [1, 1] * 10) == ("classification", "agreement")
    assert _choose(["a", "b"] * 20, None) == ("classification", "unchanged")
    assert _choose(["a", "b"] * 20, None, [1.0, 0.0] * 20) == ("classification", "score")
    with pytest.raises(UnknownNameError, match="classification"):
        _choose(["a"], ["a"], task="clasification")
    with pytest.raises(UnknownNameError, match="rouge1"):
        _choose(["a"], ["a"], metric="rogue1")
    with pytest.raises(DataError, match="needs a column 'label'"):
        _choose(["a"], None, metric="exact_match")
    with pytest.raises(DataError, match="needs a column 'score'"):
        _choose(["a"], ["a"], metric="score")


def test_task_of_cases() -> None:
    ids, inputs = ["1", "2", "3", "4"], ["a", "b", "c", "d"]
    assert tasks.of_cases(Cases("c", ids, inputs, ["x"] * 4, [["x", "y"]] * 4)) == "multiple_choice"
    assert tasks.of_cases(Cases("c", ids, inputs, ["x"] * 4, documents=[("x", "text")])) == "retrieval"
    assert tasks.of_cases(Cases("c", ids, inputs, [0.5, 1, 2, 3])) == "regression"
    assert tasks.of_cases(Cases("c", ids, inputs, ["x", "x", "y", "y"])) == "classification"
    assert tasks.of_cases(Cases("c", ids, inputs, ["u", "v", "w", "x"])) == "generation"
    assert tasks.of_cases(Cases("c", ids, inputs, ["u", "v", "w", "x"], examples=[("t", "u")])) == "classification"
    assert tasks.of_cases(Cases("c", ids, inputs)) == "generation"


def test_numbers_of_a_csv() -> None:
    assert _choose(["0.5", "2"], ["1", "0"]) == ("regression", "absolute_error")
    assert _choose(["0.5", "a"] * 9, ["a", "a"] * 9) == ("classification", "agreement")
    assert tasks.of_cases(Cases("c", ["1", "2"], ["a", "b"], ["0.5", "1"])) == "regression"


def test_scores_of_one_version_alone_are_no_metric() -> None:
    texts = [f"a longer answer number {i}" for i in range(30)]
    bare = Predictions("v", texts, texts, texts)
    scored = Predictions("w", texts, texts, texts, np.zeros(30))
    for versions in ([bare, scored], [scored, bare]):
        assert tasks.choose("auto", "", versions)[:2] == ("generation", "exact_match")


def test_errors_are_never_right_or_wrong() -> None:
    version = Predictions("v", ["a", "b"], [1.5, 2.5], [1.5, 2.5])
    assert not marks.mark(version, [1.5, 2.5], "absolute_error").binary
    assert marks.mark(version, [1.5, 2.5], "agreement").binary


def test_scores_that_are_too_large() -> None:
    with pytest.raises(DataError, match="no finite numbers: 'b'"):
        marks.mark(Predictions("v", ["a", "b"], ["x", "y"], scores=np.array([1.0, 1e308])), None, "score")


def test_exact_texts() -> None:
    assert _mark(["cafe\u0301"], ["caf\u00e9"], "exact_match") == [1]
    digits = "12345678901234567890"
    assert _mark([digits], [digits[:-1] + "1"], "agreement") == [0]
    assert _mark([f"= {digits}"], [f"= {digits[:-1]}1"], "last_number") == [0]
    assert _mark(["so 007"], ["7.0"], "last_number") == [1]
    assert _mark([["a", "b"], "a"], [["a", "b"], ["a", "b"]], "unchanged") == [1, 0]  # no list of alternatives here


@given(st.lists(st.sampled_from("abcd"), max_size=70), st.lists(st.sampled_from("abcd"), max_size=70))
def test_rouge_l_is_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    expected = 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0
    assert marks.rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)
