"""`instar gate` on two endpoints: a real server over loopback, called by the command line in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "doors"))
from api_server import Api, Handler, serving

from instar.gate import result

ITEMS = [
    {"id": f"q{i}", "input": f"What is {i} plus {i}?", "label": str(2 * i), "size": "big" if i > 50 else "small"}
    for i in range(200)
]


def _answer(handler: Handler, body: dict[str, Any]) -> None:
    """`good` adds; `worse` cannot count beyond 150; `broken` says nothing that could be read for some."""
    number = int(body["messages"][-1]["content"].split()[2])
    if body["model"] == "broken" and number % 40 == 0:
        handler.raw(b"<html>busy</html>")
    else:
        handler.say(str(2 * number) if body["model"] != "worse" or number <= 150 else "many")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return tmp_path


def _gate(folder: Path, api: Api, new: str, *more: str) -> subprocess.CompletedProcess[str]:
    sides = [f"{api.url}#good", f"{api.url}#{new}"]
    command = [
        sys.executable,
        "-m",
        "instar",
        "gate",
        *sides,
        "--data",
        "items.jsonl",
        "--task",
        "generation",
        "--json",
        "r.json",
        *more,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("new", "code"), [("good", 0), ("worse", 1), ("broken", 2)])
def test_two_endpoints(folder: Path, new: str, code: int) -> None:
    with serving(_answer, ("good", "worse", "broken")) as api:
        done = _gate(folder, api, new, "--max-nfr", "0.03", "--old", "retries=0", "--new", "retries=0")
    assert done.returncode == code, done.stdout + done.stderr
    found = result.load(folder / "r.json")
    assert found.items == 200
    assert found.old.latency["p95"] > 0
    assert found.missing == (5 if new == "broken" else 0)
    assert len(found.broken_ids) == (49 if new == "worse" else 0)
    if new == "broken":
        assert "q40" in found.missing_ids
        assert "nothing passes while answers are missing" in " ".join(found.reasons)


def test_an_endpoint_that_is_not_there(folder: Path) -> None:
    with serving(_answer, ("good",)) as api:
        url = api.url
    command = [sys.executable, "-m", "instar", "gate", f"{url}#a", f"{url}#b", "--data", "items.jsonl"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "refused" in done.stderr
