"""Sinks: each record once, and a tracker that fails costs nothing. The trackers are the real ones where they are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instar import sinks
from instar.cli.app import app
from instar.errors import OutputError, UnknownNameError
from instar.sinks.sending import Sending
from instar.sinks.sink import Run, Sink, runs

sys.path.append(str(Path(__file__).parent.parent / "report"))  # records made by formulas
from made_records import HOSTILE, failed, run, store, timing

RECORDS = [run("softmax", 0), run("gla:no_gate", 1), failed("gla", 2, "NaN"), timing(["softmax", "gla"])]
COUNT = 5  # a timing pass is a run for each of its methods


def send(name: str, records: list[dict[str, Any]]) -> Sending:
    said: list[str] = []
    sending = Sending([name], said.append)
    for record in records:
        sending(record)
    assert said == []
    return sending


def test_a_record_is_read_as_it_is() -> None:
    record = run("gla:no_gate", 3)
    (found,) = runs(record)
    assert found.name == "gla:no_gate seed 3"
    assert found.curve == tuple((step, loss) for step, loss, _ in record["curve"])
    assert found.figures["metric/accuracy"] == record["metrics"]["accuracy"]["value"]
    assert found.figures["cost/parameters"] == record["costs"]["parameters"]
    assert found.settings["method.heads"] == "4"
    assert found.ended - found.started == 12
    lost, *rest = runs(failed("gla", 2, "NaN"))
    assert rest == []
    assert not lost.ok
    assert lost.reason == "diverged: NaN"
    assert [one.name for one in runs(timing(["softmax", "gla"]))] == ["softmax timing", "gla timing"]


@pytest.mark.parametrize(
    ("text", "error"),
    [("wandb:x", UnknownNameError), ("tensorbord:x", UnknownNameError), ("tensorboard", OutputError), ("mlflow:", OutputError)],
)
def test_sinks_that_are_none_are_named(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        sinks.open_sink(text)


def test_a_tracker_that_fails_is_left_out_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Sink):
        def put(self, run: Run) -> None:
            raise RuntimeError("disk full")

    monkeypatch.setattr("instar.sinks.sending.open_sink", lambda name: Broken())
    said: list[str] = []
    sending = Sending(["tensorboard:x"], said.append)
    for record in RECORDS:
        sending(record)
    assert len(said) == 1
    assert "disk full" in said[0]
    assert sending.failed == ["tensorboard:x"]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "logs"
    send(f"tensorboard:{folder}", RECORDS)
    before = sorted(folder.rglob("events*"))
    assert len(before) == COUNT
    send(f"tensorboard:{folder}", RECORDS)
    assert sorted(folder.rglob("events*")) == before
    (place,) = folder.glob("prose/softmax-seed-0-*")
    events = loader.EventAccumulator(str(place), size_guidance={"scalars": 0})
    events.Reload()
    curve = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("train/loss")]
    assert curve == [(step, loss) for step, loss, _ in RECORDS[0]["curve"]]
    (accuracy,) = events.Scalars("metric/accuracy")
    assert accuracy.value == pytest.approx(RECORDS[0]["metrics"]["accuracy"]["value"], rel=1e-6)
    assert b"instar compare prose" in events.Tensors("settings")[0].tensor_proto.string_val[0]


def test_names_of_folders_stay_inside(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    bad = run("gla", 0)
    bad["spec"] = {**bad["spec"], "problem": {"slug": "../../../etc", "settings": {HOSTILE: HOSTILE}}}
    send(f"tensorboard:{tmp_path / 'logs'}", [{**bad, "address": "../up\x00", "id": "0" * 16}])
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}
    assert len(list((tmp_path / "logs").rglob("events*"))) == 1


def test_mlflow_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    where = f"sqlite:///{tmp_path / 'ml.db'}"
    for _ in range(2):
        send(f"mlflow:{where}", RECORDS)
    client = mlflow.MlflowClient(tracking_uri=where)
    experiment = client.get_experiment_by_name("instar-prose")
    found = {one.data.tags["mlflow.runName"]: one for one in client.search_runs([experiment.experiment_id])}
    assert len(found) == COUNT
    one = found["softmax seed 0"]
    assert one.info.status == "FINISHED"
    assert found["gla seed 2"].info.status == "FAILED"
    assert one.data.metrics["metric/accuracy"] == RECORDS[0]["metrics"]["accuracy"]["value"]
    assert one.data.params["method.heads"] == "4"
    history = client.get_metric_history(one.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(step, loss) for step, loss, _ in RECORDS[0]["curve"]]


def test_an_mlflow_store_that_does_not_answer_is_said(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(OutputError, match="cannot be opened"):
        sinks.open_sink("mlflow:nosuchscheme://nowhere")


@pytest.mark.timeout(120)
def test_trackio_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    folder = store(tmp_path / "runs", RECORDS)
    code = (
        "import sys, json; sys.argv[1:] = ['export', 'records', sys.argv[1], '--sink', 'trackio:mine'];"
        "from instar.cli import main\n"
        "for _ in range(2):\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "import trackio; from trackio.sqlite_storage import SQLiteStorage as kept\n"
        "runs = list(trackio.Api().runs('mine'))\n"
        "print(json.dumps([[r.name, r.config, kept.get_logs('mine', r.name)] for r in runs]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Trackio project" not in done.stdout
    found = {name: (config, logs) for name, config, logs in json.loads(done.stdout.splitlines()[-1])}
    assert len(found) == COUNT
    config, logs = next(value for name, value in found.items() if name.startswith("softmax seed 0"))
    assert config["method.heads"] == "4"
    losses = [(entry["step"], entry["train/loss"]) for entry in logs if "train/loss" in entry]
    assert losses == [(step, loss) for step, loss, _ in RECORDS[0]["curve"]]


@pytest.mark.timeout(300)
def test_compare_sends_each_record_once_it_is_made(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    small = [word for pair in ("length=24", "pairs=2", "vocab=16", "width=16", "batch=4") for word in ("--set", pair)]
    command = ["compare", "recall", "--methods", "gru", *small, "--seeds", "1", "--budget", "4steps", "--jobs", "1"]
    logs = tmp_path / "logs"
    done = CliRunner().invoke(
        app, [*command, "--no-timing", "--out", str(tmp_path / "runs"), "--sink", f"tensorboard:{logs}", "--quiet"]
    )
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "runs" / "runs").glob("*.json"))) == len(list(logs.rglob("events*"))) == 2
