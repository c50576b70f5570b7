"""Output of the lm-evaluation-harness: what it really writes, what older releases wrote, and what is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instar.doors import lm_eval, opening
from instar.errors import DataError, UnknownNameError
from instar.gate import baseline

REAL = Path(__file__).parents[1] / "fixtures" / "lm_eval"
TIME = "2026-01-02T03-04-05.678901"


def sample(doc_id: Any = 0, **more: Any) -> dict[str, Any]:
    """A multiple-choice sample as the harness writes it."""
    texts = more.pop("texts", ["red", "green", "blue"])
    likely = more.pop("likely", [-1.5, -0.5, -2.0])
    made = {
        "doc_id": doc_id,
        "doc": {"question": f"Question {doc_id}", "kind": "x"},
        "target": "1",
        "arguments": {f"gen_args_{i}": {"arg_0": f"Q{doc_id}", "arg_1": f" {text}"} for i, text in enumerate(texts)},
        "resps": [[[str(value), "False"]] for value in likely],
        "filtered_resps": [[str(value), "False"] for value in likely],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": f"d{doc_id}",
        "prompt_hash": f"p{doc_id}",
        "target_hash": "t",
        "acc": 1.0,
        "acc_norm": 0.0,
    }
    return {**made, **more}


def said(doc_id: int, text: Any, **more: Any) -> dict[str, Any]:
    """A generated answer."""
    asked = {"gen_args_0": {"arg_0": f"Q{doc_id}", "arg_1": {"until": ["\n"]}}}
    given = {"arguments": asked, "filtered_resps": [text], "metrics": ["exact_match"], "exact_match": 0.0, "target": "42"}
    return {**sample(doc_id), **given, **more}


def write(folder: Path, *lines: Any, task: str = "t", time: str = TIME, model: str = "org__m") -> Path:
    (folder / model).mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / model / f"samples_{task}_{time}.jsonl").write_text(text)
    return folder


# what 0.4.13 wrote (tests/fixtures/lm_eval/README.md)


@pytest.mark.parametrize("side", ["old", "new"])
def test_real_output_agrees_with_the_harness_own_means(side: str) -> None:
    folder = REAL / side
    assert lm_eval.matches(folder)
    found = lm_eval.read(folder)
    (results,) = folder.glob("*/results_*.json")
    told = json.loads(results.read_text())["results"]
    assert found.scores is not None
    for task, filters in (("tiny_choice", ["none"]), ("tiny_sums", ["strict-match", "flexible-extract"])):
        for name in filters:
            rows = [t == task and f == name for t, f in zip(found.columns["task"], found.columns["filter"], strict=True)]
            metric = f"{found.facts['metric'][task]},{name}"
            assert found.scores[rows].mean() == pytest.approx(told[task][metric])
    right = [output == label for output, label in zip(found.outputs, found.labels or [], strict=True)]
    assert found.scores.tolist() == [float(r) for r in right]
    assert not found.errors
    assert found.facts["lm_eval_version"] == "0.4.13"
    assert found.facts["model_name"] == f"tiny/skilled-{side}"
    assert found.costs["wall_seconds"] > 0
    assert json.dumps(found.facts)


def test_real_old_and_new_join() -> None:
    old, new = lm_eval.read(REAL / "old"), lm_eval.read(REAL / "new")
    assert old.ids == new.ids
    assert old.ids[0] == "tiny_choice/0"
    assert old.ids[8] == "tiny_sums/0/strict-match"
    assert len(old) == 8 + 2 * 6
    assert old.columns["doc_hash"] == new.columns["doc_hash"]
    assert old.labels == new.labels
    assert old.inputs == new.inputs
    assert old.facts["prompts_sha256"] == new.facts["prompts_sha256"]
    assert old.outputs[:3] == ["argon", "Venus", "wren"]
    assert set(old.columns) == {"task", "filter", "doc_hash", "doc.kind", "doc.answer", "doc.carry"}
    assert old.columns["doc.kind"][0] == "element"
    assert old.columns["doc.kind"][-1] is None
    assert (old.name, lm_eval.read(REAL / "old", name="v1").name) == ("old", "v1")


def test_one_filter_can_be_asked_for() -> None:
    found = lm_eval.read(REAL / "new", filter="flexible-extract")
    assert found.ids == [f"tiny_choice/{n}" for n in range(8)] + [f"tiny_sums/{n}" for n in range(6)]
    assert found.outputs[9] == "21"
    with pytest.raises(UnknownNameError, match="Did you mean strict-match"):
        lm_eval.read(REAL / "new", filter="strict")


def test_repeated_and_frozen_runs_are_judged_as_the_first(tmp_path: Path) -> None:
    """By the metric that was asked of the old version, and by the harness's own scores."""
    old = write(tmp_path / "old", *(sample(n, acc=float(n % 2), acc_norm=float(n % 3 > 0)) for n in range(12)))
    found = opening.gather(str(old), None, [str(old)], settings={"old": {"metric": "acc_norm"}})
    assert found.metric == "score"
    np.testing.assert_array_equal(found.again[0].scores, found.old.scores)  # type: ignore[arg-type]
    baseline.freeze(tmp_path / "base", found.old, found.again, task=found.task, metric=found.metric)
    assert opening.gather(str(tmp_path / "base"), str(old)).metric == "score"


# metrics


def test_the_metric_is_chosen_by_preference_or_by_name(tmp_path: Path) -> None:
    write(tmp_path, sample(0), sample(1, acc=0.0, acc_norm=1.0))
    write(tmp_path, said(0, "41", bleu=3.0, metrics=["bleu"]), task="words")
    found = lm_eval.read(tmp_path)
    assert found.facts["metric"] == {"t": "acc", "words": "bleu"}
    assert found.scores is not None
    assert found.scores.tolist() == [1.0, 0.0, 3.0]
    found = lm_eval.read(tmp_path, metric="acc_norm")
    assert found.facts["metric"] == {"t": "acc_norm", "words": "bleu"}
    with pytest.raises(UnknownNameError, match="Did you mean acc_norm"):
        lm_eval.read(tmp_path, metric="acc_nrom")


def test_lower_is_better_is_negated(tmp_path: Path) -> None:
    rows = [said(n, "x", ter=float(n), perplexity=-1.0 - n, metrics=["ter", "perplexity"]) for n in range(2)]
    write(tmp_path, *rows)
    told: Any = {"higher_is_better": {"t": {"ter": False, "perplexity": False}}}
    (tmp_path / "org__m" / f"results_{TIME}.json").write_text(json.dumps(told))
    found = lm_eval.read(tmp_path)
    assert found.scores is not None
    assert found.scores.tolist() == [0.0, -1.0]
    assert found.facts["negated"] == ["t"]
    found = lm_eval.read(tmp_path, metric="perplexity")  # the harness logs the log-likelihood under this name
    assert found.scores is not None
    assert found.scores.tolist() == [-1.0, -2.0]
    assert "negated" not in found.facts
    for told in ([], {"higher_is_better": 3}, {"higher_is_better": {"t": None}, "total_evaluation_time_seconds": "soon"}):
        (tmp_path / "org__m" / f"results_{TIME}.json").write_text(json.dumps(told))
        assert "negated" not in lm_eval.read(tmp_path).facts


def test_normalised_metrics_choose_the_normalised_answer(tmp_path: Path) -> None:
    write(tmp_path, sample(texts=["a", "bbbbbbbb"], likely=[-1.0, -2.0]))
    assert lm_eval.read(tmp_path).outputs == ["a"]
    assert lm_eval.read(tmp_path, metric="acc_norm").outputs == ["bbbbbbbb"]


# kinds of tasks


def test_other_kinds_of_tasks(tmp_path: Path) -> None:
    one = {"gen_args_0": {"arg_0": "The cat sat on the", "arg_1": " mat"}}
    write(tmp_path, sample(arguments=one, filtered_resps=[["-0.1", "True"]], target=" mat"), task="last_word")
    rolling = {"gen_args_0": {"arg_0": "A whole page"}}
    page = sample(arguments=rolling, filtered_resps=["-30.0"], metrics=["word_perplexity"], word_perplexity=[-30.0, 3])
    write(tmp_path, page, task="pages")
    varied = {f"gen_args_{i}": {"arg_0": f"{who} was late, so", "arg_1": " she ran"} for i, who in enumerate(("Ann", "Bob"))}
    write(tmp_path, sample(arguments=varied, filtered_resps=[["-3", "False"], ["-1", "False"]], target="1"), task="wino")
    write(tmp_path, said(0, ["a", "b"]), said(1, ["a"]), said(2, "[invalid]"), task="words")
    found = dict(zip(lm_eval.read(tmp_path).ids, zip(*_columns(tmp_path), strict=True), strict=True))
    assert found["last_word/0"] == (True, True, 1.0)
    assert found["pages/0"] == (-30.0, "1", -10.0)
    assert found["wino/0"] == (1, 1, 1.0)
    assert [found[f"words/{n}"][0] for n in range(3)] == [["a", "b"], "a", "[invalid]"]


def _columns(folder: Path) -> tuple[list[Any], list[Any], list[float]]:
    found = lm_eval.read(folder)
    assert found.labels is not None
    assert found.scores is not None
    return found.outputs, found.labels, found.scores.tolist()


def test_lines_of_the_first_releases(tmp_path: Path) -> None:
    old = sample(arguments=[["Q", " red"], ["Q", " green"]], filtered_resps=[[-2.0, False], [-1.0, True]], target=1)
    for key in ("metrics", "filter", "doc_hash", "prompt_hash", "target_hash"):
        del old[key]
    found = lm_eval.read(write(tmp_path, old))
    assert (found.outputs, found.labels, found.ids) == (["green"], ["green"], ["t/0"])
    assert found.facts["metric"] == {"t": "acc"}


def test_long_prompts_keep_their_end(tmp_path: Path) -> None:
    asked = {"gen_args_0": {"arg_0": "x" * 5000 + "the question", "arg_1": {}}}
    found = lm_eval.read(write(tmp_path, said(0, "a", arguments=asked)))
    assert found.inputs is not None
    assert len(found.inputs[0]) == 2000
    assert found.inputs[0].endswith("the question")


def test_fields_that_part_the_items_become_columns(tmp_path: Path) -> None:
    docs = [
        {"kind": "ab"[n % 2], "hard": n > 4, "level": n % 3, "text": f"text {n}", "same": 1, "p": n / 2, "long": "ab"[n % 2] * 61}
        for n in range(12)
    ]
    found = lm_eval.read(
        write(tmp_path, *(sample(n, doc={**doc, "list": [1], "k" * 61: "ab"[n % 2]}) for n, doc in enumerate(docs)))
    )
    assert set(found.columns) == {"task", "filter", "doc_hash", "doc.kind", "doc.hard", "doc.level"}
    assert found.columns["doc.hard"] == [n > 4 for n in range(12)]


# which files


def test_the_newest_run_of_each_task_is_read(tmp_path: Path) -> None:
    write(tmp_path, sample(0, acc=0.0), time="2025-12-31T23-59-59")
    write(tmp_path, sample(0, acc=1.0), sample(1), time="2026-01-01T00-00-00.000001")
    write(tmp_path, sample(0), task="other_task", time="2025-12-30T00-00-00")
    found = lm_eval.read(tmp_path)
    assert found.ids == ["other_task/0", "t/0", "t/1"]
    assert found.scores is not None
    assert found.scores.tolist() == [1.0, 1.0, 1.0]
    assert found.facts["files"]["t"] == "samples_t_2026-01-01T00-00-00.000001.jsonl"
    assert found.facts["older_files_not_read"] == 1
    assert not found.costs  # two runs, and no results beside them


def test_folders(tmp_path: Path) -> None:
    write(tmp_path / "both", sample(), model="a")
    assert lm_eval.matches(tmp_path / "both")
    assert lm_eval.matches(tmp_path / "both" / "a")
    assert lm_eval.read(tmp_path / "both" / "a").ids == ["t/0"]
    write(tmp_path / "both", sample(), model="b")
    with pytest.raises(DataError, match="several models"):
        lm_eval.read(tmp_path / "both")
    for other in (tmp_path / "none", tmp_path, REAL / "tasks", REAL / "README.md"):
        assert not lm_eval.matches(other)
        with pytest.raises(DataError, match="log_samples"):
            lm_eval.read(other)


# damage


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"doc_id": 1', "no JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "no JSON"),
        ('{"doc": {}}', "no doc_id"),
        ('{"doc_id": true}', "no doc_id"),
        ('{"doc_id": ' + "9" * 5000 + "}", "line 2"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        lm_eval.read(write(tmp_path, sample(0), line))
    assert f"samples_t_{TIME}.jsonl, line 2: " in str(caught.value)


def test_other_damage(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no sample"):
        lm_eval.read(write(tmp_path / "a", "", ""))
    with pytest.raises(DataError, match="occur more than once: 't/0'"):
        lm_eval.read(write(tmp_path / "b", sample(0), sample(0)))
    path = write(tmp_path / "c", sample(0)) / "org__m"
    (path / f"samples_t_{TIME}.jsonl").write_bytes(b'{"doc_id": 0, "target": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="line 1: no JSON"):
        lm_eval.read(path)
    write(tmp_path / "d", sample(0))
    (tmp_path / "d" / "org__m" / f"results_{TIME}.json").write_text("{")
    with pytest.raises(DataError, match="results_"):
        lm_eval.read(tmp_path / "d")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"acc": float("nan")}, "no finite acc"),
        ({"acc": 1e999}, "no finite acc"),
        ({"acc": 10**400}, "no finite acc"),
        ({"acc": "1"}, "no finite acc"),
        ({"acc": None}, "no finite acc"),
        ({"filtered_resps": None}, "no filtered_resps"),
        ({"filtered_resps": []}, "no filtered_resps"),
        ({"filtered_resps": [["-1", "False"]]}, "damaged"),
        ({"likely": ["nan", -1.0, -2.0]}, "damaged"),
        ({"filtered_resps": [None, {}, []]}, "damaged"),
    ],
)
def test_a_damaged_value_costs_its_item(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    found = lm_eval.read(write(tmp_path, sample(0), sample(1, **more), sample(2)))
    assert found.outputs == ["green", None, "green"]
    assert reason in found.errors["t/1"]
    assert found.scores is not None
    assert np.isnan(found.scores).tolist() == [False, True, False]


def test_odd_values_do_no_harm(tmp_path: Path) -> None:
    odd = [
        {"target": [0, 1], "doc": None},
        {"target": "99999999999999999999"},
        {"target": "²"},
        {"target": None, "doc": {"a": float("nan"), "b": "\ud800"}},
        {"arguments": None, "filtered_resps": ["\ud800"]},
        {"arguments": {"gen_args_0": {}, "x": 3}, "filtered_resps": [float("inf")]},
        {"arguments": [[], "text", [[{"role": "user"}], {}]]},
        {"filter": None},
        {"likely": ["-inf", "-inf", -9.0]},
    ]
    found = lm_eval.read(write(tmp_path, *(sample(n, **more) for n, more in enumerate(odd))))
    assert len(found) == len(odd)
    assert found.outputs[-1] == "blue"
    written = json.dumps([found.outputs, found.labels, found.inputs, found.ids, dict(found.columns)], allow_nan=False)
    assert json.loads(written.encode())


def test_names_of_tasks_and_files(tmp_path: Path) -> None:
    write(tmp_path, sample(0), task="mmlu_high_school_2024")
    (tmp_path / "org__m" / "samples_without_time.jsonl").write_text("{")
    assert lm_eval.read(tmp_path).ids == ["mmlu_high_school_2024/0"]
    shutil.rmtree(tmp_path / "org__m")
    assert not lm_eval.matches(tmp_path)
