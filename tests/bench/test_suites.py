"""Suites: the files that are there are whole, rules say what they say, answers follow from records, and a likelihood misleads."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instar import catalogue
from instar.bench import plan as planning
from instar.bench import suite as running
from instar.bench import suites
from instar.bench.curves import Curve
from instar.bench.plan import Request
from instar.bench.record import Store
from instar.bench.run import blank
from instar.bench.suite import Findings, Question
from instar.bench.suites import Rule
from instar.bench.summary import summarise
from instar.cli.app import app
from instar.errors import CardError, FormulaError, PlanError, RecordError, UnknownNameError
from instar.items import Floor
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


def failed(problem: str, address: str, seed: int) -> dict[str, Any]:
    return {**record(problem, "accuracy", address, seed, [0.0]), "status": "diverged", "reason": "loss is nan", "metrics": {}}


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
        for address in [*found.bidirectional, *([found.two_sided] if found.two_sided else [])]:
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
    slow = advice.verdicts(findings(Question(length=1024, layers=2), exact, curve("s4d", 2e-5, 8192.0)))
    assert [v.out for v in slow] == [False, True]
    absent = advice.verdicts(findings(Question(length=2048, layers=2), exact, light))
    assert all(v.out and v.said[0].rule == "not_measured" for v in absent)


def test_a_likelihood_alone_misleads_where_it_does() -> None:
    exact, light = curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0)
    found = findings(Question(length=1024, layers=2), exact, light, curve("s4d", 5e-6, 64.0))
    (one,) = advice.misled(found)
    assert (one.address, one.likelihood, one.other) == ("gla", "text", "recall")
    said = report.answer(found)
    assert said.tasks["retrieval"] == (
        "by recalling pairs alone, no worse than softmax: s4d; worse: gla; not measured: finding a key in text."
    )
    assert "gla, s4d" in said.tasks["local"]
    assert said.missing == ["finding a key in text", "nested lists", "images as rows of pixels", "naming spoken digits"]


def by_seed(problem: str, metric: str, base: float, gains: list[float], floors: dict[str, Floor] | None = None) -> Any:
    """A comparison of gla, better than softmax by so much in each seed."""
    found = [
        {**record(problem, metric, name, seed, [base + far + 0.001 * (i % 5) for i in range(40)]), "floors": floors or {}}
        for seed, gain in enumerate(gains)
        for name, far in (("softmax", 0.0), ("gla", gain))
    ]
    return summarise(found)[0]


def test_what_an_interval_shows_to_be_no_worse_is_said_to_be() -> None:
    """An interval from −0.017 to 0.047 is no verdict, but with a margin of 0.02 it is no loss either."""
    curves = [curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0)]

    def said(base: float, gains: list[float]) -> tuple[list[str], str]:
        lists = by_seed("listops", "accuracy", base, gains, {"accuracy": Floor(0.259, "naming something else")})
        found = Findings(LENGTH, Question(length=1024), curves, {"listops": lists})
        return rules(found)["gla"], report.answer(found).tasks["hierarchical"]

    shown, sentence = said(0.325, [0.0255, 0.0005, 0.0195])
    assert "no_worse" in shown
    assert sentence == "no worse than softmax: gla."
    for base, gains in ((0.325, [0.0255, -0.03, 0.0195]), (0.25, [0.0255, 0.0005, 0.0195])):  # a wide one; both at the floor
        shown, sentence = said(base, gains)
        assert "no_worse" not in shown
        assert sentence.endswith("undecided: gla.")


def test_a_likelihood_misleads_whom_it_recommends_without_a_verdict() -> None:
    groups = {"text": by_seed("text", "bits_per_byte@T", 2.42, [-0.22, -0.112, -0.09]),
              "recall": by_seed("recall", "accuracy", 0.97, [-0.65, -0.68, -0.64])}  # fmt: skip
    curves = [curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0)]
    (one,) = advice.misled(Findings(LENGTH, Question(length=1024), curves, groups))
    assert one.text.startswith("gla has the best figure, 2.281 bits, at predicting text (−0.14 bits, 95 % interval −0.31 … 0.03)")
    groups["text"] = by_seed("text", "bits_per_byte@T", 2.42, [0.22, 0.112, -0.09])
    assert not advice.misled(Findings(LENGTH, Question(length=1024), curves, groups))


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
    with pytest.raises(PlanError, match="later tokens: ask with --no-causal"):
        running.run("length", Question(), tmp_path, methods=["linformer"])
    with pytest.raises(PlanError, match="mixers"):
        running.run("length", Question(), tmp_path, methods=["lora"])
    with pytest.raises(PlanError, match="No part of the suite length is two-sided and swapped"):
        running.run("length", Question(causal=False, how="swapped"), tmp_path)
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
    other = next(path for path in kept.glob("*.json") if json.loads(path.read_text())["address"] == "gla")
    other.write_text(json.dumps({**json.loads(other.read_text()), "baseline": True}))  # as another comparison held it
    (out / "recall").rename(tmp_path / "old")
    third = running.run("length", question, out, methods=["gla"], seeds=1, jobs=1)
    assert [row.address for row in third.groups["recall"].rows if row.baseline] == ["softmax"]


def test_what_failed_elsewhere_is_not_taken_over_and_a_budget_has_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"vocab": 16, "pairs": 2, "length": 24, "width": 16, "batch": 4, "test_sequences": 20}
    plan, *_ = planning.prepare(Request("recall", ("gla",), settings=settings, budget="3steps", seeds=2))
    plan.steps, plan.calibration = {e.address: 3 for e in plan.entries}, {e.address: {"step_seconds": 0.1} for e in plan.entries}
    monkeypatch.setattr(running, "results_folder", lambda: tmp_path / "results")
    made = [{**blank(task), "status": "ok", "budget": "3 steps"} for task in plan.tasks(tmp_path)]
    made[0] |= {"status": "timeout", "reason": "stopped after 9 s, its limit"}
    for one in made:
        Store(tmp_path / "results" / "recall-0").put(one)
    running._take_over(plan, Store(tmp_path / "out"))
    taken = list(Store(tmp_path / "out").all())
    assert {one["id"] for one in taken} == {one["id"] for one in made[1:]}
    assert {one["budget"] for one in taken} == {"3steps"}  # else they would be a comparison of their own


def rules(found: Findings) -> dict[str, list[str]]:
    return {one.address: [said.rule for said in one.said] for one in advice.verdicts(found)}


def test_missing_evidence_is_no_evidence() -> None:
    """Level at one part of a class says nothing of it while the other has no difference; runs that failed are named."""
    draw = random.Random(0)
    level = group("passkey", "exact_match", {"softmax": 0.9, "gla": 0.9, "s4d": 0.9})
    lists = [record("recall", "accuracy", name, seed, [draw.gauss(0.9, 0.001) for _ in range(40)])
             for name in ("softmax", "s4d") for seed in range(3)]  # fmt: skip
    diverged = summarise([*lists, *(failed("recall", "gla", seed) for seed in range(3))])[0]
    curves = [curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0), curve("s4d", 5e-6, 64.0), curve("aaren", 5e-6, 64.0)]
    said = report.answer(Findings(LENGTH, Question(length=1024), curves, {"recall": diverged, "passkey": level}))
    assert said.tasks["retrieval"] == (
        "no worse than softmax: s4d; undecided: gla, aaren; failed runs: 3 of gla at recalling pairs."
    )  # aaren has no record at all
    without = [failed("recall", "softmax", seed) for seed in range(3)] + [one for one in lists if one["address"] == "s4d"]
    said = report.answer(Findings(LENGTH, Question(length=1024), curves[:3:2], {"recall": summarise(without)[0]}))
    assert "no worse" not in said.tasks["retrieval"]
    assert said.tasks["retrieval"].endswith(
        "undecided: s4d; not measured: finding a key in text; failed runs: 3 of softmax at recalling pairs."
    )


def test_what_is_read_at_once_needs_no_state() -> None:
    """Two-sided, exact attention has no cache to be charged for, and a causal layer's state excludes nothing."""
    exact, light = curve("softmax", 1e-5, 4096.0), curve("gla", 2e-5, 64.0)
    limited = Question(length=1024, layers=2, memory=2000.0)
    causal = replace(findings(limited, exact, light), suite=replace(LENGTH, two_sided=""))
    encoder = replace(causal, question=replace(limited, causal=False))
    assert "memory" in rules(causal)["softmax"]
    assert "memory" not in rules(encoder)["softmax"]
    assert "exact_fits" in rules(encoder)["softmax"]
    assert "state" not in rules(encoder)["gla"]
    assert "nothing_to_win" in rules(encoder)["gla"]
    said = report.answer(encoder)
    assert [report._costs(encoder, one.address)[1] for one in said.verdicts] == ["none", "none"]
    drawn = {plot.name for plot in report._plots(encoder, report.Styles.of(["softmax", "gla"]))}
    assert "costs-forward_seconds" in drawn
    assert not drawn & {"costs-state_bytes", "costs-decode_seconds"}


def test_costs_alone_rule_out_nothing_that_is_better_and_nothing_by_a_hair() -> None:
    exact, question = curve("softmax", 1e-5, 4096.0), Question(length=1024, layers=2)
    slow = findings(question, exact, curve("gla", 2e-5, 8192.0), curve("s4d", 2e-5, 8192.0))
    assert "nothing_to_win" not in rules(slow)["gla"]  # better at text
    assert "nothing_to_win" in rules(slow)["s4d"]
    said = report.answer(slow)
    assert "ruled out: s4d" in said.tasks["local"]
    assert "gla" in said.tasks["local"].partition(";")[0]
    assert said.tasks["retrieval"] == (
        "by recalling pairs alone, of what is not ruled out, nothing is shown to be as good as softmax; worse: gla; "
        "ruled out: s4d; not measured: finding a key in text."
    )
    for scale in (0.99e-5, 1.01e-5):  # the same but for noise
        found = rules(findings(question, exact, curve("s4d", scale, 4096.0)))["s4d"]
        assert "faster" not in found
        assert "nothing_to_win" in found
    assert "faster" in rules(findings(question, exact, curve("s4d", 0.9e-5, 4096.0)))["s4d"]


def test_methods_at_the_floor_are_not_level() -> None:
    """Equal because neither learnt anything: no verdict, and no sentence that calls them level."""
    floors = {"accuracy": Floor(0.259, "naming something else")}
    curves = [curve("softmax", 1e-5, 4096.0), curve("gla", 5e-6, 64.0)]

    def said(accuracy: float) -> tuple[dict[str, list[str]], str, Findings]:
        draw = random.Random(0)
        records = [record("listops", "accuracy", name, seed, [accuracy + draw.gauss(0, 1e-3) for _ in range(40)])
                   for name in ("softmax", "gla") for seed in range(3)]  # fmt: skip
        lists = summarise([{**one, "floors": floors} for one in records])[0]
        found = Findings(LENGTH, Question(length=1024), curves, {"listops": lists})
        return rules(found), report.answer(found).tasks["hierarchical"], found

    learnt, sentence, _ = said(0.5)
    assert "level" in learnt["gla"]
    assert sentence == "no worse than softmax: gla."
    at_floor, sentence, found = said(0.265)
    assert "level" not in at_floor["gla"]
    assert "unlearnt" in at_floor["gla"]
    assert sentence.endswith("undecided: gla.")
    (text,) = [one.text for one in advice.verdicts(found)[1].said if one.rule == "unlearnt"]
    assert text == "Undecided at nested lists (hierarchical): both at the floor of naming something else: 0.259."
    assert any("floor 0.259" in str(column.header) for column in report.table(report.answer(found)).columns)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite's folder with records of several questions: two widths, three methods, parts of both ways."""
    for problem, metric, part in (
        ("text", "bits_per_byte@T", "text"),
        ("listops", "accuracy", "listops"),
        ("swap_attention", "nats@swapped", "swap"),
    ):
        for address, mean in (("softmax", 0.9), ("gla", 0.9), ("s4d", 0.5)):
            for seed in range(3):
                one = record(problem, metric, address, seed, [mean + 0.001 * seed + 0.002 * i for i in range(20)])
                Store(tmp_path / part).put(one)
    for number, (width, seconds) in enumerate(((128, 1.0), (512, 9.0))):
        for address in ("gla", "softmax", "s4d"):
            spec = {"layer": {"width": width, "heads": 4}, "length": 256}
            point = {"schema": 1, "kind": "curve", "status": "ok", "reason": None, "address": address, "spec": spec}
            figures = {"forward_seconds": seconds, "working_bytes": 1.0, "state_bytes": 1.0}
            Store(tmp_path / "costs").put({**point, "id": f"{address}{width}", "figures": figures, "finished": str(number)})
    return tmp_path


def asked(folder: Path, methods: list[str], **question: Any) -> Findings:
    given = {"memory": None, "latency": None, "length": 256, **question}
    (folder / running.FILE).write_text(json.dumps({"suite": "length", "question": given, "methods": methods}), "utf-8")
    return running.load(folder)


def test_a_folder_answers_the_question_that_was_asked_and_no_earlier_one(folder: Path) -> None:
    narrow, wide = (asked(folder, ["gla"], width=width) for width in (128, 512))
    assert [c.points[256]["forward_seconds"] for c in narrow.curves] == [1.0, 1.0]
    assert [c.points[256]["forward_seconds"] for c in wide.curves] == [9.0, 9.0]
    assert [c.address for c in narrow.curves] == ["softmax", "gla"]
    assert {row.address for group in narrow.groups.values() for row in group.rows} == {"softmax", "gla"}
    assert "s4d" not in " ".join(report.sentences(report.answer(narrow)))
    assert list(narrow.groups) == ["text", "listops"]
    swapped = asked(folder, ["gla", "s4d"], how="swapped")
    assert [part.id for part in swapped.parts] == list(swapped.groups) == ["swap"]
    text = " ".join(report.sentences(report.answer(swapped)))
    assert "standing in for trained attention" in text
    assert "nested lists" not in text
    both = asked(folder, ["gla", "s4d"])
    assert {one.likelihood for one in advice.misled(both)} <= {"text"}
    (folder / running.FILE).write_text(json.dumps({"suite": "length", "question": {"memory": None}}), "utf-8")
    with pytest.raises(RecordError, match="methods"):
        running.load(folder)


def test_a_two_sided_question_may_have_a_baseline_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(LENGTH, two_sided="bidirectional_performer")
    monkeypatch.setattr(running, "suite", lambda slug: own)
    assert (LENGTH.against(causal=True), own.against(causal=True)) == ("softmax", "softmax")
    assert replace(LENGTH, two_sided="").against(causal=False) == "softmax"
    assert "bidirectional_performer" not in running._named(own, Question(causal=False), [])
    for address, mean in (("bidirectional_performer", 0.9), ("gla", 0.8)):
        for seed in range(3):
            one = record("listops", "accuracy", address, seed, [mean + 0.001 * i for i in range(20)])
            Store(tmp_path / "listops-two-sided").put({**one, "baseline": address == "bidirectional_performer"})
            Store(tmp_path / "listops").put(record("listops", "accuracy", "softmax", seed, [0.1] * 20))
    found = asked(tmp_path, ["gla"], causal=False)
    assert found.baseline == "bidirectional_performer"
    curves = [curve("bidirectional_performer", 1e-5, 0.0), curve("gla", 5e-6, 64.0)]
    said = report.answer(replace(found, question=Question(length=1024, causal=False), curves=curves))
    assert said.tasks["hierarchical"].endswith("nothing is shown to be as good as bidirectional_performer; worse: gla.")
    assert "exact_fits" in rules(said.found)["bidirectional_performer"]
