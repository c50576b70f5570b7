"""A comparison on a small real problem: resumable, all or nothing, failures recorded."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instar import catalogue
from instar.bench import plan as planning
from instar.bench import run as running
from instar.bench.compare import Silence, compare
from instar.bench.executor import Job, LocalExecutor, Outcome
from instar.bench.plan import Plan, Request
from instar.bench.record import Store
from instar.bench.summary import summarise
from instar.errors import BudgetError, CardError, DataError, OutputError, PlanError, RecordError, ShapeError, UnknownNameError
from instar.report import table, words

SMALL = {"length": 24, "pairs": 2, "vocab": 16, "width": 16, "batch": 4, "test_sequences": 20}
WORDS = [w for key, value in SMALL.items() for w in ("--set", f"{key}={value}")]


class Heard(Silence):
    missing = -1

    def plan(self, plan: Plan, missing: int, total: int) -> None:
        self.missing = missing


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {"problem": "recall", "methods": ("gru",), "settings": SMALL, "seeds": 2, "budget": "4steps"}
    return Request(**{**values, **changes})


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-m", "instar", *words], cwd=cwd, capture_output=True, text=True, env=env)


def stamps(root: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (root / "runs").glob("*.json")}


def test_the_second_time_nothing_runs(tmp_path: Path) -> None:
    first = compare(request(), tmp_path, timed=False)
    before, plan = stamps(tmp_path), (tmp_path / "plan.json").read_bytes()
    second = compare(request(), tmp_path, timed=False)
    assert (first.ran, first.failed, second.ran) == (4, 0, 0)
    assert stamps(tmp_path) == before
    assert (tmp_path / "plan.json").read_bytes() == plan


def test_a_plan_grows_by_methods_and_seeds_and_refuses_to_become_another(tmp_path: Path) -> None:
    compare(request(), tmp_path, timed=False)
    before = stamps(tmp_path)
    grown = compare(request(seeds=3), tmp_path, timed=False)
    assert grown.ran == 2
    assert before.items() <= stamps(tmp_path).items()
    for other in (request(budget="5steps"), request(settings={**SMALL, "pairs": 3}), request(problem="text", settings={})):
        with pytest.raises(PlanError, match="another comparison"):
            compare(other, tmp_path, timed=False)


def test_a_folder_holds_one_setting_of_a_method(tmp_path: Path) -> None:
    compare(request(), tmp_path, timed=False)
    before = stamps(tmp_path)
    with pytest.raises(PlanError, match=r"holds runs of softmax with rope=True; asked was rope=False"):
        compare(request(overrides={"softmax": {"rope": False}}), tmp_path, timed=False)
    assert stamps(tmp_path) == before


def test_seeds_of_two_settings_are_not_mixed(tmp_path: Path) -> None:
    """Three seeds at the default, then two of a tuned rate: the method's figures are those of the two."""
    compare(request(seeds=3), tmp_path, timed=False)
    store, plan = Store(tmp_path), Plan.load(tmp_path / "plan.json")
    default = {r["spec"]["seed"]: r for r in store.all() if r["address"] == "gru"}
    tuned = [t for t in plan.tasks(tmp_path, {"gru": (1, {"problem": {"lr": 0.5}})}) if t.address == "gru"][:2]
    for task in tuned:
        like = default[task.spec["seed"]]
        accuracy = like["metrics"]["accuracy"]
        right = {**accuracy, "totals": accuracy["weights"]}
        changes = {"id": task.id, "spec": task.spec, "finished": "2999-01-01T00:00:00+00:00", "setting": "tuned"}
        store.put({**like, **changes, "metrics": {**like["metrics"], "accuracy": right}})
    (group,) = summarise(list(store.all()), ["accuracy"])
    rows = {row.address: row for row in group.rows}
    assert {address: len(row.runs) for address, row in rows.items()} == {"softmax": 3, "gru": 2}
    assert (rows["gru"].setting, rows["gru"].cells["accuracy"].value.value) == ("tuned", 1.0)


def test_a_file_that_is_put_back_counts_again_and_each_text_has_its_own_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = (Path(__file__).parents[1] / "fixtures/toy_package/src/toy_mixers/moving_average.py").read_text()
    slow = toy.replace("return self.out(mixed", "import time\n        time.sleep(0.2)\n        return self.out(2 * mixed")
    asked, mine, out = (
        request(methods=(), add=(f"{tmp_path}/mine.py:MovingAverage",), seeds=1),
        tmp_path / "mine.py",
        tmp_path / "o",
    )
    paces, ran = [], []
    for year, text in enumerate((toy, slow, toy)):
        mine.write_text(text)
        monkeypatch.setattr(catalogue, "_ADDED", {})
        done = compare(asked, out, timed=False)
        paces.append(done.plan.calibration["mine"]["step_seconds"])
        ran.append(done.ran)
        for path in Store(out).runs.glob("*.json") if year < 2 else ():  # a record knows only seconds
            record = json.loads(path.read_text())
            if record["finished"] > "2010":
                path.write_text(json.dumps({**record, "finished": f"{2000 + year}-01-01T00:00:00+00:00"}))
    assert ran == [2, 1, 1]
    assert paces[1] > 0.2 > max(paces[0], paces[2])
    (group,) = summarise(done.records())
    (run,) = next(row for row in group.rows if row.address == "mine").runs
    assert run["spec"]["method"]["source"] == done.plan.entries[-1].source


class Beside(LocalExecutor):
    """Another process compares in the same folder while this one does a piece of work, which fails where it has done that too."""

    def __init__(self, work: Any, other: Request, out: Path) -> None:
        super().__init__(1)
        self.work, self.other, self.out = work, other, out

    def run(self, jobs: Iterable[Job], done: Callable[[Outcome], None], progress: Callable[[str, int, float], None]) -> None:
        jobs = list(jobs)
        if any(job.work is self.work for job in jobs):
            self.work = None
            compare(self.other, self.out, timed=False)
            if jobs[0].work is running.execute:
                for job in jobs:
                    done(Outcome(job.name, "error", reason="its checkpoint is gone"))
                return
        super().run(jobs, done, progress)


@pytest.mark.parametrize("work", [running.calibrate, running.execute])
def test_two_processes_in_one_folder_lose_neither_plan_nor_runs(tmp_path: Path, work: Any) -> None:
    mine, other = request(seeds=1), request(seeds=1, methods=("lstm",) if work is running.calibrate else ("gru",))
    done = compare(mine, tmp_path, timed=False, executor=Beside(work, other, tmp_path))
    assert {e.address for e in Plan.load(tmp_path / "plan.json").entries} == {"softmax", *mine.methods, *other.methods}
    assert {r["address"]: r["status"] for r in done.records()} == dict.fromkeys(["softmax", *mine.methods, *other.methods], "ok")


def test_an_argument_that_was_added_since_leaves_plans_and_runs_as_they_were(tmp_path: Path) -> None:
    plan, *_ = planning.prepare(request())
    gained = next(key for key in plan.settings if key not in SMALL)
    fewer = [replace(e, arguments=dict(list(e.arguments.items())[1:])) for e in plan.entries]
    older = replace(plan, settings={k: v for k, v in plan.settings.items() if k != gained}, entries=fewer)
    older.steps, older.calibration = {e.address: 4 for e in fewer}, {e.address: {"step_seconds": 0.1} for e in fewer}
    again, *_ = planning.prepare(request(), older)
    assert [task.id for task in again.tasks(tmp_path)] == [task.id for task in older.tasks(tmp_path)]
    assert again == older
    with pytest.raises(PlanError, match="another comparison"):
        planning.prepare(request(settings={**SMALL, gained: 2 * plan.settings[gained]}), older)


def test_floors_of_the_data_stand_beside_the_plan_and_in_the_report(tmp_path: Path) -> None:
    compare(request(), tmp_path, timed=False)
    problem = planning.build_problem("recall", SMALL)
    floors = problem.floors(problem.load(0))
    records = list(Store(tmp_path).all())
    assert all(record["floors"] == floors for record in records)
    (group,) = summarise(records)
    assert group.floors == floors
    assert f"floor {floors['accuracy'].value:.3g}"[:9] in table.markdown(group)
    assert floors["accuracy"].what in table.markdown(group)
    assert any(floors["accuracy"].what in text for text in words.cautions(group))
    (tmp_path / "floors.json").unlink()  # records of before are as they were
    (group,) = summarise(list(Store(tmp_path).all()))
    assert not group.floors


def test_the_records_say_everything(tmp_path: Path) -> None:
    compare(request(seeds=3), tmp_path, timed=False)
    for record in Store(tmp_path).all():
        assert record["status"] == "ok"
        assert record["curve"][-1][0] == record["spec"]["steps"] == 4
        metric = record["metrics"]["accuracy"]
        assert len(metric["totals"]) == len(metric["weights"]) == record["data"]["test_items"] == 20
        assert record["costs"]["parameters"] > 0
        assert record["costs"]["peak_train_bytes"] > record["costs"]["parameters"] * 4
        assert record["resources"]["cpu_seconds"] > 0
        assert record["environment"]["torch"]
        assert record["command"].startswith("instar compare recall")
    (group,) = summarise(list(Store(tmp_path).all()))
    assert [row.address for row in group.rows] == ["softmax", "gru"]
    cell = group.rows[1].cells["accuracy"]
    assert cell.difference is not None
    assert cell.difference.interval is not None
    assert len(cell.by_seed) == 3


def test_seeds_are_paired_and_runs_are_deterministic(tmp_path: Path) -> None:
    """The same run in another folder gives the same figures to the last bit."""
    compare(request(seeds=1), tmp_path / "a", timed=False)
    compare(request(seeds=1), tmp_path / "b", timed=False)
    a, b = ({r["id"]: r["metrics"] for r in Store(tmp_path / x).all()} for x in "ab")
    assert a == b


def test_data_that_cannot_show_a_difference_are_told_before_spending(tmp_path: Path) -> None:
    few = compare(request(seeds=3), tmp_path / "few", dry_run=True)
    assert "can probably not show" in few.warnings[0]
    assert "20 test items" in few.warnings[0]
    none = compare(request(seeds=2), tmp_path / "none", dry_run=True)
    assert "no interval" in none.warnings[0]
    settings = {**SMALL, "test_sequences": 100000}
    plan = replace(few.plan, seeds=2000, data={**few.plan.data, "test_items": settings["test_sequences"]})
    assert planning.warnings(plan) == []


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = compare(request(), tmp_path / "new", dry_run=True)
    assert not (tmp_path / "new").exists()
    assert result.plan.steps == {"softmax": 4, "gru": 4}


def test_a_failing_method_is_a_record_with_a_reason(tmp_path: Path) -> None:
    toy = Path(__file__).parents[1] / "fixtures/toy_package/src/toy_mixers/moving_average.py"
    # Thirteen steps of calibration pass; then the output is not finite.
    broken = (
        "self.calls = getattr(self, 'calls', 0) + 1\n        mixed = mixed * float('nan') if self.calls > 13 else mixed\n        "
    )
    late = toy.read_text().replace("return self.out(mixed", broken + "return self.out(mixed")
    (tmp_path / "late.py").write_text(late)
    result = compare(
        request(methods=(), add=(f"{tmp_path}/late.py:MovingAverage",), seeds=1, budget="40steps"), tmp_path / "out", timed=False
    )
    assert (result.ran, result.failed) == (2, 1)
    (bad,) = [r for r in Store(tmp_path / "out").all() if r["status"] != "ok"]
    assert bad["status"] == "diverged"
    assert "nan" in bad["reason"].lower()
    (group,) = summarise(list(Store(tmp_path / "out").all()))
    assert "diverged" in group.rows[1].failures[0]
    assert "accuracy" not in group.rows[1].cells
    again = compare(
        request(methods=(), add=(f"{tmp_path}/late.py:MovingAverage",), seeds=1, budget="40steps"), tmp_path / "out", timed=False
    )
    assert again.ran == 0  # a failure is a finished run


def test_a_dry_run_deletes_no_failure(tmp_path: Path) -> None:
    compare(request(seeds=1), tmp_path, timed=False)
    victim = next((tmp_path / "runs").glob("*.json"))
    victim.write_text(json.dumps({**json.loads(victim.read_text()), "status": "error"}))
    heard = Heard()
    compare(request(seeds=1), tmp_path, timed=False, dry_run=True, retry_failed=True, listener=heard)
    assert (heard.missing, victim.exists()) == (1, True)
    assert compare(request(seeds=1), tmp_path, timed=False, retry_failed=True).ran == 1


def test_a_folder_keeps_the_methods_that_were_added_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Path(__file__).parents[1] / "fixtures/toy_package/src/toy_mixers/moving_average.py"
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(toy.read_text())
    monkeypatch.setattr(catalogue, "_ADDED", {})
    added = (f"{tmp_path}/one/mine.py:MovingAverage",)
    compare(request(methods=(), add=added, seeds=1), tmp_path / "out", timed=False)
    monkeypatch.setattr(catalogue, "_ADDED", {})  # as in another process
    later = compare(request(seeds=1), tmp_path / "out", timed=False)
    assert [entry.address for entry in later.plan.entries] == ["softmax", "mine", "gru"]
    assert later.ran == 1
    with pytest.raises(CardError, match=r"taken by MovingAverage of .*one/mine.py"):
        compare(request(add=(*added, f"{tmp_path}/two/mine.py:MovingAverage")), tmp_path / "new", timed=False)


def test_one_method_under_two_names_is_one(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nothing to compare"):
        planning.prepare(request(methods=("softmax:default", "softmax")))


def test_tuning_gives_every_method_the_same_trials(tmp_path: Path) -> None:
    result = compare(request(seeds=1, trials=3), tmp_path, timed=False)
    records = list(Store(tmp_path).all())
    trials = [r for r in records if r["kind"] == "trial"]
    assert len(trials) == 6
    assert {r["split"] for r in trials} == {"valid"}
    rates = {r["setting"]: r["spec"]["problem"]["settings"]["lr"] for r in trials if r["address"] == "gru"}
    assert rates["trial 0"] == 3e-3
    assert len(set(rates.values())) == 3
    assert {r["split"] for r in records if r["kind"] == "run"} == {"test"}
    assert result.ran == 8
    heard = Heard()
    assert compare(request(seeds=1, trials=3), tmp_path, timed=False, listener=heard).ran == heard.missing == 0


def test_trials_that_chose_the_default_are_the_default(tmp_path: Path) -> None:
    assert not catalogue.method("gru").knobs
    done = compare(request(seeds=1, trials=3, settings={**SMALL, "lr": 3e-3}), tmp_path, timed=False)
    assert {r["setting"] for r in done.records() if r["address"] == "gru"} == {"trial 0", "default"}


def test_a_search_that_learns_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    asked = {"seeds": 1, "trials": 3, "search": "tpe"}
    assert compare(request(**asked), tmp_path / "straight", timed=False).ran == 8
    compare(request(**{**asked, "trials": 2}), tmp_path / "stopped", timed=False)
    assert (
        compare(request(**asked), tmp_path / "stopped", timed=False).ran <= 4
    )  # one trial each, and final runs of other settings
    ids = [sorted(r["id"] for r in Store(tmp_path / name).all() if r["kind"] == "trial") for name in ("straight", "stopped")]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 6
    assert compare(request(**asked), tmp_path / "straight", timed=False).ran == 0
    with pytest.raises(PlanError, match="tuned by tpe"):
        compare(request(**{**asked, "search": "random"}), tmp_path / "straight", timed=False)
    with pytest.raises(UnknownNameError, match="search"):
        compare(request(**{**asked, "search": "grid"}), tmp_path / "other", timed=False)


def test_the_timing_pass_is_interleaved_and_complete(tmp_path: Path) -> None:
    result = compare(
        request(problem="text", settings={"width": 16, "depth": 1}), tmp_path, train=False, metrics=["layer_seconds@256"]
    )
    (record,) = Store(tmp_path).all()
    assert (result.ran, result.failed) == (0, 0)  # the plan counts runs, and so does the end
    assert set(record["times"]) == {"softmax", "gru"}
    for times in record["times"].values():
        entry = times["layer_seconds@256"]
        assert len(entry["rounds"]) >= 3
        assert 0 < entry["minimum"] <= entry["median"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"methods": ("grus",)}, UnknownNameError, "gru"),
        ({"methods": ()}, PlanError, "only the baseline|Only the baseline"),
        ({"methods": ("linformer",)}, PlanError, "bidirectional"),
        ({"budget": "1e-9s"}, BudgetError, "Cannot read"),
        ({"budget": "0.00001s"}, BudgetError, "one step"),
        ({"budget": "1tok"}, BudgetError, "one step"),
        ({"budget": "0steps"}, BudgetError, "one step"),
        ({"seeds": 0}, PlanError, "1 seed"),
        ({"settings": {"lenght": 24}}, UnknownNameError, "length"),
        ({"settings": {**SMALL, "length": 24.0}}, ShapeError, "length of recall expects a whole number"),
        ({"settings": {**SMALL, "lr": "fast"}}, ShapeError, "lr of recall expects a number"),
        ({"overrides": {"gru": {"widht": 3}}}, UnknownNameError, "argument"),
        ({"overrides": {"gla": {"heads": 3}}}, UnknownNameError, "gru"),
        ({"problem": "text", "settings": {"data": "/nonexistent/file.txt"}}, DataError, "nonexistent"),
        ({"add": ("/nonexistent/file.py:X",)}, DataError, "no file"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_spent(
    tmp_path: Path, change: dict[str, Any], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        compare(request(**change), tmp_path / "out", timed=False)
    assert not list(tmp_path.rglob("*.json"))


def test_an_unwritable_folder_and_damaged_files_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another folder"):
        compare(request(), tmp_path / "file" / "out", timed=False)
    out = tmp_path / "out"
    compare(request(seeds=1), out, timed=False)
    victim = next((out / "runs").glob("*.json"))
    victim.write_bytes(victim.read_bytes()[:100])
    done = run("report", str(out), "-o", "page.html", cwd=tmp_path)
    assert done.returncode == 3
    assert victim.name in done.stderr
    assert "Delete it" in done.stderr
    whole = json.loads(next(p for p in (out / "runs").glob("*.json") if p != victim).read_text())
    for damage in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}", json.dumps({**whole, "spec": {}})):
        victim.write_text(damage)
        with pytest.raises(RecordError, match=victim.name):
            list(Store(out).all())
    plan = json.loads((out / "plan.json").read_text())
    for text in ('{"schema": 1', json.dumps({**plan, "data": {}}), json.dumps({**plan, "entries": plan["entries"][1:]})):
        (out / "plan.json").write_text(text)
        with pytest.raises(RecordError, match="plan"):
            Plan.load(out / "plan.json")


def test_kill_at_random_moments_then_only_what_is_missing_runs(tmp_path: Path) -> None:
    words = [
        "compare",
        "recall",
        "--methods",
        "gru",
        "--seeds",
        "3",
        "--budget",
        "30steps",
        "--no-timing",
        *WORDS,
        "--out",
        "out",
        "--json",
    ]
    generator, out, kills = random.Random(0), tmp_path / "out", 0
    for wanted in (-1, 0, 1, 2, 4):  # before the plan stands, then behind so many records
        process = subprocess.Popen(
            [sys.executable, "-m", "instar", *words], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and wanted >= 0 and not ((out / "plan.json").exists() and len(stamps(out)) >= wanted):
            time.sleep(0.02)
        time.sleep(generator.uniform(0.0, 1.0))
        kills += process.poll() is None
        process.kill()
        process.wait()
        finished = stamps(out)
        for path in (out / "runs").glob("*.json"):
            json.loads(path.read_text())  # whole, or not there
        time.sleep(0.2)
        assert finished.items() <= stamps(out).items()
    assert kills >= 3
    before = stamps(out)
    last = json.loads(run(*words, cwd=tmp_path).stdout)
    assert last["ran"] == 6 - len(before)
    assert last["failed"] == 0
    assert before.items() <= stamps(out).items()
    assert len(stamps(out)) == 6
