"""Suites: the files that are there are whole, rules say what they say, answers follow from records, and a likelihood misleads."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instar import catalogue
from instar.bench import suite as running
from instar.bench import suites
from instar.bench.curves import Curve
from instar.bench.suite import Findings, Question
from instar.bench.suites import Rule
from instar.bench.summary import summarise
from instar.cli.app import app
from instar.errors import CardError, FormulaError, PlanError, RecordError, UnknownNameError
from instar.report import advice
from instar.report import suite as report

LENGTH = suites.suite("length")


def record(problem: str, metric: str, address: str, seed: int, values: list[float]) -> dict[str, Any]:
    return {
        "schema": 1, "id": f"{problem}{address}{seed}", "kind": "run", "status": "ok", "reason": None, "address": address,
        "baseline": address == "softmax", "setting": "default", "budget": "1steps", "costs": {},
        "spec": {"problem": {"slug": problem, "settings": {}}, "data": "d", "seed": seed},
        "metrics": {metric: {"value": 0.0, "totals": values, "weights": [1.0] * len(values)}},
    }  # fmt: skip


def group(problem: str, metric: str, means: dict[str, float]) -> Any:
    draw = random.Random(0)
    noise = [[draw.gauss(0, 0.002) for _ in range(40)] for _ in range(3)]
    records = [
        record(problem, metric, address, seed, [mean + n + draw.gauss(0, 1e-4) for n in noise[seed]])
        for address, mean in means.items()
        for seed in range(3)
    ]
    return summarise(records)[0]


def curve(address: str, scale: float, state: float) -> Curve:
    points = {
        n: {"forward_seconds": scale * n, "train_seconds": 3 * scale * n, "state_bytes": state, "saved_bytes": 9.0 * n,
            "working_bytes": 1.0 * n, "decode_seconds": scale}
        for n in (256, 512, 1024)
    }  # fmt: skip
    return Curve(address, points)


def findings(question: Question, *curves: Curve) -> Findings:
    groups = {
        "text": group("text", "bits_per_byte@T", {"softmax": 2.40, "gla": 2.30, "s4d": 2.401}),
        "recall": group("recall", "accuracy", {"softmax": 0.99, "gla": 0.60, "s4d": 0.989}),
    }
    return Findings(LENGTH, question, list(curves), groups)


def test_every_suite_names_what_exists() -> None:
    for found in suites.suites().values():
        assert catalogue.problem(found.parts[0].problem)
        for part in found.parts:
            assert part.metric.kind == "quality"
            known = catalogue.load(catalogue.problem(part.problem)).__init__.__kwdefaults__  # type: ignore[misc]
            assert part.settings.keys() <= known.keys()
        assert {part.task for part in found.parts} >= {"local", "retrieval", "hierarchical", "continuous"}
        for address in found.causal:
            assert not catalogue.parse(address).card.capability("bidirectional")
        for address in found.bidirectional:
            assert catalogue.parse(address).card.capability("bidirectional")


def test_a_rule_holds_when_all_its_comparisons_do_and_is_silent_on_what_is_unknown() -> None:
    rule = Rule("r", ["state + working > memory", "seconds <= 2 * latency"], "")
    facts = {"state": 3.0, "working": 2.0, "memory": 4.0, "seconds": 1.0, "latency": 0.5}
    assert rule.holds(facts)
    assert not rule.holds({**facts, "memory": 5.0})
    assert not rule.holds({**facts, "latency": 0.4})
    assert not rule.holds({k: v for k, v in facts.items() if k != "working"})
    assert not rule.holds({**facts, "memory": math.inf})
    for wrong in ("state", "state == 1", "a < b < c", "__import__('os') < 1"):
        with pytest.raises(FormulaError):
            suites.comparison(wrong)


def test_limits_exclude_and_the_text_gives_the_figures() -> None:
    exact, light = curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0)
    free = advice.verdicts(findings(Question(length=1024, layers=2), exact, light))
    assert [v.out for v in free] == [False, False]
    assert any(s.rule == "exact_fits" for s in free[0].said)
    tight = advice.verdicts(findings(Question(length=1024, layers=2, latency=0.015), exact, light))
    assert [v.out for v in tight] == [True, False]
    assert "20.5 ms" in next(s.text for s in tight[0].said if s.rule == "latency")
    small = advice.verdicts(findings(Question(length=1024, layers=2, memory=2000.0), exact, light))
    assert [v.out for v in small] == [True, False]
    slow = advice.verdicts(findings(Question(length=1024, layers=2), exact, curve("gla", 2e-5, 8192.0)))
    assert [v.out for v in slow] == [False, True]
    absent = advice.verdicts(findings(Question(length=2048, layers=2), exact, light))
    assert all(v.out and v.said[0].rule == "not_measured" for v in absent)


def test_a_likelihood_alone_misleads_where_it_does() -> None:
    exact, light = curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0)
    found = findings(Question(length=1024, layers=2), exact, light, curve("s4d", 5e-6, 64.0))
    (one,) = advice.misled(found)
    assert (one.address, one.likelihood, one.other) == ("gla", "text", "recall")
    said = report.answer(found)
    assert said.tasks["retrieval"] == "no worse than softmax: s4d; worse: gla."
    assert "gla, s4d" in said.tasks["local"]
    assert said.missing == ["finding a key in text", "nested lists", "images as rows of pixels", "naming spoken digits"]


def test_page_and_terminal_say_the_same(tmp_path: Path) -> None:
    said = report.answer(findings(Question(length=1024, layers=2), curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0)))
    report.write(said, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    for text in said.tasks.values():
        assert text in page
    assert "Where perplexity alone misleads" in page
    assert "costs-forward_seconds" in page
    assert report.table(said).row_count == 2


def test_questions_and_files_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        running.run("lenght", Question(), tmp_path)
    for wrong in (Question(length=0), Question(memory=0.0), Question(layers=0)):
        with pytest.raises(PlanError):
            running.run("length", wrong, tmp_path)
    with pytest.raises(PlanError, match="later tokens"):
        running.run("length", Question(), tmp_path, methods=["linformer"])
    with pytest.raises(PlanError, match="mixers"):
        running.run("length", Question(), tmp_path, methods=["lora"])
    with pytest.raises(PlanError, match="No part swap"):
        running.run("length", Question(), tmp_path, only=["swap"])
    with pytest.raises(RecordError, match="no complete record"):
        running.load(tmp_path / "nowhere")
    path = tmp_path / "length.toml"
    path.write_text(LENGTH.path.read_text("utf-8").replace('"seconds > latency"', '"seconds of latency"'), "utf-8")
    with pytest.raises(CardError, match="latency"):
        suites.read(path)
    wrong_unit = CliRunner().invoke(app, ["suite", "length", "--memory", "5 parsecs"])
    assert isinstance(wrong_unit.exception, PlanError)


def test_a_suite_takes_over_what_is_recorded_and_runs_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path on a small suite of its own: costs, one real part, a page; a second call changes nothing."""
    text = LENGTH.path.read_text("utf-8")
    head, rules = text[: text.index("[[parts]]")], text[text.index("[[rules]]") :]
    small = (
        '[[parts]]\nid = "recall"\ntask = "retrieval"\ntitle = "recalling pairs"\nproblem = "recall"\nmeasure = "accuracy"\n'
        'budget = "3steps"\nsettings = { vocab = 16, pairs = 2, length = 24, width = 16, batch = 4, test_sequences = 20 }\n\n'
    )
    path = tmp_path / "length.toml"
    path.write_text(head + small + rules, "utf-8")
    found = suites.read(path)
    monkeypatch.setattr(running, "suite", lambda slug: found)
    out, results = tmp_path / "out", tmp_path / "results"
    monkeypatch.setattr(running, "results_folder", lambda: results)
    question = Question(length=256, width=16, heads=2)
    first = running.run("length", question, out, methods=["gla"], seeds=1, jobs=1)
    assert [row.address for row in first.groups["recall"].rows] == ["softmax", "gla"]
    assert json.loads((out / "suite.json").read_text())["question"]["memory"] is None
    results.mkdir()
    (out / "recall").rename(results / "recall-000000")
    again = running.run("length", question, out, methods=["gla"], seeds=1, jobs=1)
    kept, copied = results / "recall-000000" / "runs", out / "recall" / "runs"
    assert {p.name: p.read_bytes() for p in kept.glob("*.json")} == {p.name: p.read_bytes() for p in copied.glob("*.json")}
    assert again == first
