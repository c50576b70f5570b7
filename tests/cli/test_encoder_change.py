"""`instar encoder …` as a person calls it: from a store without a stamp to a finished change, with what goes wrong on the way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from instar.cli import main
from instar.retrieval.exact import ExactIndex

ENCODERS = '''
"""Two encoders without weights: characters by threes, hashed. They differ in their buckets, so their spaces are strangers."""
import hashlib
import time

import numpy as np


def _hashed(texts, dim):
    found = np.zeros((len(texts), dim), np.float32)
    for row, text in enumerate(texts):
        text = f"  {text.lower()}  "
        for place in range(len(text) - 2):
            digest = hashlib.md5(text[place : place + 3].encode()).digest()
            found[row, int.from_bytes(digest[:4], "little") % dim] += 1
    return np.sqrt(found)


def old(texts):
    return _hashed(texts, 48)


def new(texts):
    if any("UNREADABLE" in text for text in texts):
        raise ValueError("a text that nobody can read")
    return _hashed(texts, 160)


def slow(texts):
    time.sleep(0.1)
    return _hashed(texts, 160)


def other(texts):
    return _hashed(texts, 64)
'''


@dataclass
class Done:
    stdout: str
    stderr: str


def _instar(folder: Path, *arguments: str, code: int = 0) -> Done:
    """The entry point in this process, which saves the seconds of a start."""
    out, said = io.StringIO(), io.StringIO()
    ended: object = 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(sys, "argv", ["instar", "encoder", *arguments])
        try:
            main()
        except SystemExit as error:
            ended = error.code or 0
    done = Done(out.getvalue(), said.getvalue())
    assert ended == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def _counts(folder: Path) -> list[int]:
    found = json.loads(_instar(folder, "status", "exact:store", "--json").stdout)
    return [one["rows"] for one in found["generations"]]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """300 paragraphs of Python's documentation."""
    found: dict[str, str] = {}
    for topic, text in topics.items():
        for number, part in enumerate(re.split(r"\n\s*\n", text)):
            if len(part.split()) >= 25 and len(found) < 300:
                found[f"{topic}/{number}"] = " ".join(part.split())
    return found


@pytest.fixture
def folder(tmp_path: Path, texts: dict[str, str]) -> Path:
    """Vectors of the old encoder, in a folder as a user has it, and their texts."""
    (tmp_path / "models.py").write_text(ENCODERS)
    scope: dict[str, object] = {}
    exec(ENCODERS, scope)
    vectors = scope["old"](list(texts.values()))  # type: ignore[operator]
    (tmp_path / "store").mkdir()
    np.save(tmp_path / "store" / "vectors.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    (tmp_path / "store" / "ids.json").write_text(json.dumps(list(texts)))
    rows = [{"id": name, "text": text, "label": name.partition("/")[0]} for name, text in texts.items()]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"id": f"q{row['id']}", "text": " ".join(row["text"].split()[:12]), "relevant": row["id"]} for row in rows[::6]]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "counts.csv").write_text("id,count\n" + "".join(f"{name},{i}\n" for i, name in enumerate(texts)))
    return tmp_path


@pytest.fixture
def adopted(folder: Path) -> Path:
    _instar(folder, "adopt", "exact:store", "--encoder", "models.py:old")
    return folder


def test_a_whole_change(folder: Path, texts: dict[str, str]) -> None:
    unstamped = _instar(folder, "status", "exact:store", code=3)
    assert "instar encoder adopt" in unstamped.stderr
    done = _instar(folder, "adopt", "exact:store", "--encoder", "models.py:old")
    assert "300 rows" in done.stdout
    assert "already" in _instar(folder, "adopt", "exact:store", "--encoder", "models.py:other", code=3).stderr
    assert "already" in _instar(folder, "adopt", "exact:store", "--fingerprint", "x", "--dim", "48", code=3).stderr

    name, text = next(iter(texts.items()))
    asked = ("search", "exact:store", text, "--encoder", "models.py:new", "--old", "models.py:old", "-k", "3", "--json")
    before = json.loads(_instar(folder, *asked).stdout)
    assert (before[0]["id"], before[0]["generation"]) == (name, 0)

    probed = ("--probe", "queries.jsonl", "--old", "models.py:old", "--log", "log.jsonl", "--margin", "1")
    half = _instar(folder, "backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--until", "0.5", *probed)
    assert "150 rows moved" in half.stdout
    assert "150 of 300 rows are old" in half.stdout
    assert _counts(folder) == [150, 150]
    assert json.loads(_instar(folder, *asked).stdout)[0]["id"] == name
    assert "still stand" in _instar(folder, "finish", "exact:store", "--yes", code=3).stderr

    _instar(folder, "backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", *probed)
    assert _counts(folder) == [0, 300]
    shares = [json.loads(line)["fraction"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    refused = _instar(folder, "finish", "exact:store", code=3)
    assert "--yes" in refused.stderr
    assert _counts(folder) == [0, 300]
    _instar(folder, "finish", "exact:store", "--yes")
    assert "nothing to finish" in _instar(folder, "finish", "exact:store", "--yes").stdout
    last = json.loads(_instar(folder, "search", "exact:store", text, "--encoder", "models.py:new", "--json").stdout)
    assert (last[0]["id"], last[0]["generation"]) == (name, 1)


def test_there_and_back(adopted: Path) -> None:
    store = adopted / "store" / "vectors.npy"
    before = store.read_bytes()
    _instar(adopted, "backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--quiet")
    assert "--yes" in _instar(adopted, "rollback", "exact:store", code=3).stderr
    _instar(adopted, "rollback", "exact:store", "--yes")
    assert _counts(adopted) == [300]
    assert store.read_bytes() == before
    assert "no older one" in _instar(adopted, "rollback", "exact:store", "--yes", code=3).stderr


def test_another_encoder_does_not_begin_a_third_generation_unnoticed(adopted: Path) -> None:
    given = ("backfill", "exact:store", "--data", "texts.jsonl", "--until", "0.2")
    _instar(adopted, *given, "models.py:new")
    refused = _instar(adopted, *given, "models.py:other", code=3)
    assert "60 of 300 rows are new" in refused.stderr
    assert _counts(adopted) == [240, 60]
    _instar(adopted, *given, "models.py:other", "--on-top")
    assert _counts(adopted)[2] == 60
    _instar(adopted, "rollback", "exact:store", "--yes")
    assert _counts(adopted) == [240, 60]


def test_what_cannot_move_is_listed(adopted: Path, texts: dict[str, str]) -> None:
    names = list(texts)
    rows = [{"id": name, "text": text} for name, text in texts.items() if name not in names[:3]]
    rows[0]["text"] += " UNREADABLE"
    (adopted / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("backfill", "exact:store", "models.py:new", "--data", "some.jsonl", "--unmoved", "unmoved.jsonl")
    done = _instar(adopted, *given, code=1)
    assert "3 rows have no text" in done.stdout
    assert "nobody can read" in done.stdout
    listed = {row["id"]: row["reason"] for row in map(json.loads, (adopted / "unmoved.jsonl").read_text().splitlines())}
    assert set(listed) == set(names[:4])
    assert _counts(adopted) == [4, 296]
    found = json.loads(
        _instar(
            adopted, "search", "exact:store", texts[names[0]], "--encoder", "models.py:new", "--old", "models.py:old", "--json"
        ).stdout
    )
    assert found[0]["id"] == names[0]


def test_interrupted_it_finishes_the_batch_and_goes_on(adopted: Path) -> None:
    command = [sys.executable, "-m", "instar", "encoder", "backfill", "exact:store", "models.py:slow", "--data", "texts.jsonl"]
    with subprocess.Popen(
        [*command, "--batch", "8"], cwd=adopted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 120
        while len(list((adopted / "store").rglob("*.segment"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGINT)
        out, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "goes on from here" in out
    assert "Finishing this batch" in said
    old, new = _counts(adopted)
    assert (old + new, new % 8) == (300, 0)
    assert 0 < new < 300
    rest = _instar(adopted, *command[4:], "--batch", "300")
    assert f"{old} rows moved" in rest.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("backfill", "exact:store", "models.py:new", "--data", "no.jsonl"), "no.jsonl"),
        (("backfill", "exact:store", "models.py:new", "--data", "counts.csv"), "no texts"),
        (("backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--order", "wild"), "most-queried"),
        (("backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--order", "most-queried"), "--counts"),
        (("backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--order", "least-certain"), "--head"),
        (("backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--until", "1.5"), "until"),
        (("backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--rate", "0"), "rate"),
        (
            ("backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--probe", "queries.jsonl"),
            "stand in generation 0",
        ),
        (("backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", "--set-old", "a=1"), "--old"),
        (("backfill", "nowhere", "models.py:new", "--data", "texts.jsonl"), "no address"),
        (("backfill", "exact:store", "models.py:nothing", "--data", "texts.jsonl"), "nothing"),
        (("search", "exact:store", "a", "--encoder", "models.py:new"), "stand in generation 0"),
        (("search", "exact:store", " ", "--encoder", "models.py:old"), "empty"),
        (("search", "exact:store", "a", "--encoder", "models.py:old", "--fusion", "loud"), "rank or calibrated"),
        (("adopt", "exact:store", "--fingerprint", "x"), "--dim"),
        (("adopt", "exact:store", "--fingerprint", "x", "--dim", "48", "--option", "id_column=a"), "id_column"),
        (("adopt", "exact:store", "--fingerprint", "x", "--dim", "48", "--encoder", "models.py:old"), "alone"),
    ],
)
def test_errors_say_what_to_do(ready: Path, arguments: tuple[str, ...], said: str) -> None:
    done = _instar(ready, *arguments, code=3)
    assert said in done.stderr
    assert len(done.stderr) < 600


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> Path:
    """A store that none of the wrong commands may change."""
    where = tmp_path_factory.mktemp("ready")
    made = folder.__wrapped__(where, texts)  # type: ignore[attr-defined]
    _instar(made, "adopt", "exact:store", "--encoder", "models.py:old")
    yield made
    found = json.loads(_instar(made, "status", "exact:store", "--json").stdout)
    assert found["rows"] == found["generations"][0]["rows"] == 300


def test_the_most_queried_go_first(adopted: Path, texts: dict[str, str]) -> None:
    order = ("--order", "most-queried", "--counts", "counts.csv", "--until", "3")
    _instar(adopted, "backfill", "exact:store", "models.py:new", "--data", "texts.jsonl", *order)
    with ExactIndex.open(str(adopted / "store")) as index:
        assert sorted(index.ids(1)) == sorted(list(texts)[-3:])
