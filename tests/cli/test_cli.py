"""The command line: answers, exit codes, and errors that can be acted on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import instar

from instar import catalogue

SMALL = ["--set", "length=24", "--set", "pairs=2", "--set", "vocab=16", "--set", "width=16", "--set", "batch=4"]


def test_list_has_what_programs_need() -> None:
    rows = json.loads(instar("list", "--json").stdout)
    assert {"softmax", "linear_attention", "gla", "aaren", "gru"} <= {row["slug"] for row in rows}
    for row in rows:
        assert {"slug", "family", "kind", "title", "arxiv", "claims"} <= row.keys()
    systems = json.loads(instar("list", "--kind", "system", "--tag", "streaming", "--family", "mixers", "--json").stdout)
    mixers = {row["slug"] for row in rows if row["kind"] == "system" and row["family"] == "mixers"}
    assert {row["slug"] for row in systems} == {slug for slug in mixers if catalogue.method(slug).capability("streaming")}
    assert instar("list", "--domain", "nothing").returncode == 1


def test_names_of_claims_are_whole_in_a_narrow_terminal(tmp_path: Path) -> None:
    shown = instar("claims", "gla", "linformer", "--results", str(tmp_path), columns=80).stdout
    assert "not run" in shown
    assert "…" not in shown


def test_claims_have_what_programs_need() -> None:
    rows = json.loads(instar("claims", "--json").stdout)
    assert rows
    for row in rows:
        assert {"method", "claim", "kind", "measure", "against", "verdict", "seeds", "interval"} <= row.keys()
        assert isinstance(row["seeds"], int)
        assert row["interval"] is None or len(row["interval"]) == 2
        if row["kind"] == "untestable":
            assert row["verdict"] == "not testable at this scale"
            assert row["reason"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "glaa"], 3, "Did you mean gla"),
        (["show", "gla:no_gates"], 3, "no_gate"),
        (["compare", "txt"], 3, "text"),
        (["compare", "text", "--methods", "gla", "--data", "/nowhere.txt"], 3, "/nowhere.txt"),
        (["compare", "text", "--methods", "gla", "--set", "width"], 3, "name=value"),
        (["compare", "text"], 3, "nothing to compare"),
        (["compare", "text", "--methods", "gla", "--set", "lr=NaN"], 3, "finite number"),
        (["compare", "text", "--methods", "gla", "--set", "gla.expand_k=[1e999]"], 3, "finite number"),
        (["reproduce", "gla", "--claim", "gate_beats_non"], 3, "gate_beats_none"),
        (["report", "/nowhere", "-o", "page.html"], 3, "no records"),
        (["claims", "--into", "/nowhere.md"], 3, "/nowhere.md"),
        (["check"], 2, "Name a method"),
        (["check", "--family", "mixer"], 3, "Did you mean mixers"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_errors_say_what_to_do(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = instar(*words, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_checked_is_said_before_a_later_name_is_found_wrong() -> None:
    done = instar("check", "repeat_last", "nothere")
    assert done.returncode == 3
    assert "repeat_last: " in done.stdout


def test_every_command_has_examples() -> None:
    for command in ("list", "show", "cite", "problems", "check", "compare", "reproduce", "claims", "report"):
        assert "Example" in instar(command, "--help").stdout


def test_show_and_cite() -> None:
    shown = instar("show", "gla").stdout
    for part in ("Equation", "Presets", "gla:no_gate", "Claims", "2312.06635"):
        assert part in shown
    assert instar("cite", "gla").stdout.startswith("@")


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    words = [
        "compare",
        "recall",
        "--methods",
        "gru",
        "--seeds",
        "2",
        "--budget",
        "3000steps",
        "--no-timing",
        *SMALL,
        "--out",
        "out",
    ]
    process = subprocess.Popen([sys.executable, "-m", "instar", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (tmp_path / "out" / "plan.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on from there" in errors
    for path in (tmp_path / "out" / "runs").glob("*.json"):
        json.loads(path.read_text())
