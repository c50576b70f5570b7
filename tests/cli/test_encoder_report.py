"""`instar encoder report` as a person calls it: from vectors, a store or texts, every output, and errors that help."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from typer.testing import CliRunner, Result

from instar.cli.app import app
from instar.data.collecting import open_collection, sampled
from instar.encoders import files
from instar.encoders.opening import open_encoder
from instar.errors import (
    DataError,
    GenerationError,
    InstarError,
    OutputError,
    PlanError,
    RecordError,
    ShapeError,
    UnknownNameError,
)
from instar.interfaces import Generation
from instar.retrieval.opening import open_index
from instar.upgrade.result import Report, load

FEW = ["--arms", "no_map"]
ASKED = ["--old-queries", "old_queries.npz", "--new-queries", "new_queries.npz"]
ITEMS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of digits under two encoders, as files, as a store, and as a table of ids with labels."""
    where = tmp_path_factory.mktemp("sides")
    pictures, labels = load_digits(return_X_y=True)
    pictures, labels = pictures[:ITEMS], labels[:ITEMS]
    old, new = PCA(6, random_state=0).fit_transform(pictures), PCA(24, random_state=0).fit_transform(pictures)
    turned = new @ np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0]
    ids = [f"d{i}" for i in range(ITEMS)]
    files.write(where / "old.npz", ids, _unit(old))
    files.write(where / "new.npz", ids[::-1], _unit(turned)[::-1])
    files.write(where / "half.npz", ids[: ITEMS // 2], _unit(turned)[: ITEMS // 2])
    files.write(where / "strange.npz", [f"x{i}" for i in range(ITEMS)], _unit(turned))
    files.write(where / "new.npy", None, _unit(turned))
    files.write(where / "short.npy", None, _unit(turned)[:-1])
    rows = [{"id": name, "label": int(label), "text": f"a picture of {label}"} for name, label in zip(ids, labels, strict=True)]
    (where / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"id": f"q{i}", "text": "which", "relevant": [ids[i]]} for i in range(0, ITEMS, 2)]
    (where / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (where / "39.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked[:39]))
    files.write(where / "constant.npz", ids, np.ones((ITEMS, 6), np.float32))
    for name, count in (("one", 1), ("few", 39)):
        files.write(where / f"{name}.npz", ids[:count], _unit(turned)[:count])
    noise = np.random.default_rng(1).normal(size=(2, ITEMS, 24)) * 0.05
    names = [row["id"] for row in asked]
    files.write(where / "old_queries.npz", names, _unit(_unit(old) + noise[0][:, :6])[::2])
    files.write(where / "new_queries.npz", names, _unit(_unit(turned) + noise[1])[::2])
    return where


@pytest.fixture(scope="module")
def store(folder: Path) -> str:
    """The old vectors in a store."""
    ids, vectors, _ = files.vectors(folder / "old.npz")
    address = f"exact:{folder / 'store'}"
    with open_index(address, create=Generation(0, "an old encoder", 6, "old")) as index:
        index.add(list(ids or ()), vectors, 0)
    return address


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _run(folder: Path, *arguments: object) -> Result:
    given = [str(folder / a) if isinstance(a, str) and (folder / a).exists() else str(a) for a in arguments]
    return CliRunner().invoke(app, ["encoder", "report", *given])


def _report(folder: Path, *arguments: object) -> Report:
    out = folder / "record.json"
    done = _run(folder, *arguments, "--quiet", "--json", out)
    assert done.exit_code == 0, done.exception
    assert done.stdout == ""
    return load(out)


def _refused(folder: Path, kind: type[InstarError], *arguments: object) -> str:
    done = _run(folder, *arguments)
    assert isinstance(done.exception, kind), (done.exception, done.output)
    return str(done.exception)


def test_every_output_says_the_same(folder: Path) -> None:
    outputs = ["--html", folder / "out/p.html", "--md", folder / "out/p.md", "--json", folder / "out/p.json"]
    done = _run(folder, "old.npz", "new.npz", "--arms", "no_map,ridge", "--rows", 50_000, "--rate", 20, *outputs)
    assert done.exit_code == 0, done.exception
    made = load(folder / "out/p.json")
    assert (made.documents, made.rows, made.truth) == (ITEMS, 50_000, "neighbours")
    assert {a.id for a in made.arms} == {"keep", "two_encoders", "no_map", "ridge"}
    assert made.hours_full == pytest.approx(50_000 / 20 / 3600)
    for name in ("out/p.html", "out/p.md"):
        text = html.unescape((folder / name).read_text("utf-8")).replace("\\", "").replace("\u00a0", " ")
        assert made.headline in text
    assert made.headline in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert len(done.stdout.splitlines()) <= 40
    drawn = CliRunner().invoke(app, ["report", str(folder / "out/p.json"), "-o", str(folder / "again.html")])
    assert drawn.exit_code == 0, drawn.exception
    assert (folder / "again.html").read_text("utf-8") == (folder / "out/p.html").read_text("utf-8")


def _figures(made: Report) -> list[Any]:
    return [[p.recall for p in a.curve] for a in made.arms]


def test_rows_are_found_by_their_ids_or_by_their_order(folder: Path, store: str) -> None:
    """The files hold the same rows in another order, without ids, and in a store: all give the same figures."""
    by_ids = _report(folder, "old.npz", "new.npz", *FEW, "--data", "digits.jsonl")
    by_order = _report(folder, "old.npz", "new.npy", *FEW, "--data", "digits.jsonl")
    stored = _report(folder, store, "new.npz", *FEW, "--data", "digits.jsonl")
    assert by_ids.truth == "labels"
    assert _figures(by_ids) == _figures(by_order) == _figures(stored)
    assert (stored.old.name, stored.old.fingerprint, stored.old.dim) == ("old", "an old encoder", 6)
    assert by_ids.new.fingerprint != by_ids.old.fingerprint


def test_queries_with_known_answers_ask_by_their_own_vectors(folder: Path) -> None:
    known = ["--data", "digits.jsonl", "--queries", "queries.jsonl"]
    vectors = ["--old-queries", "old_queries.npz", "--new-queries", "new_queries.npz"]
    made = _report(folder, "old.npz", "new.npz", *FEW, *known, *vectors, "--k", 1)
    assert made.truth == "queries"
    assert made.new.own_recall.value > made.old.own_recall.value  # a picture under little noise is found better by 24 numbers
    message = _refused(folder, PlanError, "old.npz", "new.npz", *known, *vectors[2:])
    assert "--old-queries" in message
    assert "encoder=SOURCE" in message
    assert "lacks" in _refused(folder, DataError, "old.npz", "new.npz", *known, "--old-queries", "half.npz", *vectors[2:])


def test_a_sample_is_drawn_and_what_has_no_vector_is_left_out_and_told(folder: Path) -> None:
    made = _report(folder, "old.npz", "new.npz", *FEW, "--sample", 250, "--data", "digits.jsonl")
    assert (made.documents, made.rows) == (250, ITEMS)
    piped = _run(folder, "old.npz", "half.npz", *FEW, "--data", "digits.jsonl", "--json", "-")
    half = json.loads(piped.stdout)
    assert half["documents"] == ITEMS // 2
    assert half["facts"]["documents without a vector"] == ITEMS // 2


def test_texts_are_encoded_by_both_encoders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded default, which needs no download: words counted in few dimensions, and in more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    made = _report(folder, "lsa", "lsa", "--old", "dims=8", "--new", "dims=64", *FEW, "--sample", 400)
    assert made.truth == "queries"
    assert made.new.own_recall.low > made.old.own_recall.high  # type: ignore[operator]
    assert (made.old.dim, made.new.dim) == (8, 64)
    assert made.hours_full is not None
    assert made.hours_full > 0
    assert made.seconds > made.seconds_encoding > 0
    assert made.rows > made.documents == 400
    assert all(isinstance(example["query"], str) for example in made.examples)


def test_stored_vectors_are_asked_by_the_encoder_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors in a store, whose encoder is named, give what the encoder itself gives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = sampled(open_collection("topics"), 300, seed=1)
    assert texts.texts is not None
    assert texts.queries is not None
    assert texts.relevant is not None
    rows = [{"id": name, "text": text} for name, text in zip(texts.ids, texts.texts, strict=True)]
    asked = [
        {"id": name, "text": text, "relevant": [texts.ids[i] for i in right]}
        for name, text, right in zip(texts.query_ids, texts.queries, texts.relevant, strict=True)
    ]
    for name, lines in (("documents", rows), ("queries", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    encoder = f"lsa:{tmp_path / 'fitted'}"
    made = open_encoder(encoder, {"dims": 8}, texts=texts.texts)
    store = f"exact:{tmp_path / 'store'}"
    with open_index(store, create=Generation(0, made.fingerprint, 8, "old")) as index:
        index.add(texts.ids, made.encode(texts.texts), 0)
    given = ["--data", "documents.jsonl", "--queries", "queries.jsonl", *FEW]
    told = ["--old", f"encoder={encoder}"]
    run = _report(tmp_path, encoder, "lsa", *given)
    stored = _report(tmp_path, store, "lsa", *told, *given)
    assert stored.truth == "queries"
    assert (stored.old.name, stored.old.fingerprint) == (run.old.name, run.old.fingerprint)
    for one, other in zip(run.arms, stored.arms, strict=True):
        for at, also in zip(one.curve, other.curve, strict=True):
            assert (also.recall.value, also.recall.realised) == (
                pytest.approx(at.recall.value),
                pytest.approx(at.recall.realised),
            )
    other = ["--old", "encoder=lsa", "--old", "dims=8", "--old", "seed=1"]
    assert "another fingerprint" in _refused(tmp_path, GenerationError, store, "lsa", *given, *other)
    assert "makes vectors of" in _refused(tmp_path, DataError, store, "lsa", *given, "--old", "encoder=lsa")


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (PlanError, ["old.npz", "lsa"], "--data FILE"),
        (PlanError, ["old.npz", "gone"], "gone is no file of vectors that exists"),
        (DataError, ["digits.jsonl", "lsa"], "digits.jsonl is a file, and no encoder"),
        (DataError, ["old.npz", "strange.npz"], "strange.npz (ids such as 'x0')"),
        (PlanError, ["old.npz", "exact:store"], "NEW is an encoder"),
        (PlanError, ["old.npz", "new.npz", "--queries", "queries.jsonl"], "--data FILE"),
        (PlanError, ["lsa", "lsa", "--old-queries", "old_queries.npz"], "encodes queries itself"),
        (PlanError, ["old.npz", "new.npz", "--old", "dims"], "name=value"),
        (PlanError, ["old.npz", "new.npz", "--old", "dims=3"], "encoder=SOURCE"),
        (DataError, ["old.npz", "new.npz", "--data", "digits.jsonl", "--queries", "none.jsonl"], "none.jsonl"),
        (DataError, ["short.npy", "new.npy"], "same order"),
        (DataError, ["old.npz", "short.npy", "--data", "digits.jsonl"], f"{ITEMS - 1} vectors without ids for {ITEMS} documents"),
        (DataError, ["gone.npz", "new.npz"], "no file"),
        (UnknownNameError, ["old.npz", "new.npz", "--arms", "rigde"], "Did you mean ridge"),
        (ShapeError, ["old.npz", "new.npz", "--hours", "nan"], "all finite"),
        (ShapeError, ["old.npz", "new.npz", "--rate", "inf"], "all finite"),
        (DataError, ["old.npz", "new.npz", "--k", "1000"], "recall at 1000 needs more than 1000"),
        (DataError, ["constant.npz", "new.npz"], "All 400 constant.npz document vectors are the same"),
        (DataError, ["old.npz", "one.npz"], "leave too few"),
        (DataError, ["old.npz", "few.npz"], "documents can ask for others among the 29 documents"),
        (DataError, ["old.npz", "new.npz", "--data", "digits.jsonl", "--queries", "39.jsonl", *ASKED], "take a larger sample"),
        (
            DataError,
            ["old.npz", "new.npz", "--data", "digits.jsonl", "--queries", "queries.jsonl", *ASKED, "--sample", "60"],
            "queries have all that they should find",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(
    folder: Path, kind: type[InstarError], arguments: list[str], words: str
) -> None:
    assert words in _refused(folder, kind, *arguments)


def test_where_nothing_can_be_written_nothing_is_measured(folder: Path) -> None:
    assert "Cannot write" in _refused(folder, OutputError, "gone.npz", "new.npz", "--html", folder / "old.npz" / "page.html")
    assert "is a folder" in _refused(folder, OutputError, "gone.npz", "new.npz", "--json", folder)
    assert "is a folder" in _refused(folder, OutputError, "gone.npz", "new.npz", "--html", folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_what_was_measured_is_said_where_the_disk_is_full(folder: Path) -> None:
    done = _run(folder, "old.npz", "new.npz", *FEW, "--html", "/dev/full")
    assert isinstance(done.exception, OutputError)
    assert "recall" in done.stdout


def _said(made: Report, words: str) -> bool:
    return any(words in caution for caution in made.cautions)


def test_cautions_name_what_makes_figures_mean_little(folder: Path) -> None:
    whole = _report(folder, "old.npz", "new.npz", *FEW)
    assert not any(_said(whole, words) for words in ("the same", "by chance. Take", "no vector"))
    assert _said(_report(folder, "new.npz", "new.npy", *FEW, "--data", "digits.jsonl"), "Old and new vectors are the same")
    assert _said(_report(folder, "old.npz", "new.npz", *FEW, "--k", 30), "30 results are 10 % of the 300 documents searched")
    half = _report(folder, "old.npz", "half.npz", *FEW, "--data", "digits.jsonl")
    assert _said(half, "200 documents have no vector on one side")


def test_hours_are_kept_to_whatever_the_verdict_is(folder: Path) -> None:
    """Also where nobody knows what is right; and none at all do not even pay for the pairs of a map."""
    given = ["old.npz", "new.npz", "--arms", "no_map,ridge", "--rows", 7200, "--rate", 1]
    assert "Within 1 hours 50 %" in " ".join(_report(folder, *given, "--hours", 1).advice)
    none = " ".join(_report(folder, *given, "--hours", 0).advice)
    assert "Within 0 hours 0 %" in none or "0 hours do not even do" in none
    assert "no speed is known" in " ".join(_report(folder, *given[:4], "--hours", 0).advice)


def test_texts_and_names_stay_text_on_the_page(folder: Path) -> None:
    """Titles, texts and labels with quotes and markup, from the files of a user to the page."""
    evil = '<img src=x onerror=alert(1)> "it\'s" & </details>'
    rows = [{"id": f"d{i}", "title": f"<b>{i}</b>", "text": f"{evil} {i}", "label": f'<i>{i % 9}"</i>'} for i in range(ITEMS)]
    where = folder / "a 'b' <u>\"c\""
    where.mkdir()
    (where / "d&<s>.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"id": f"q{i}", "text": evil, "relevant": [f"d{i}"]} for i in range(0, ITEMS, 2)]
    (where / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    given = ["--data", where / "d&<s>.jsonl", "--queries", where / "q.jsonl", *ASKED]
    done = _run(folder, "old.npz", "new.npz", *FEW, *given, "--html", where / "p.html", "--quiet")
    assert done.exit_code == 0, done.exception
    page = (where / "p.html").read_text("utf-8")
    assert html.escape(evil, quote=False)[:20] in page
    assert not any(one in page for one in ("<img src=x", "<b>1", "<s>.jsonl", "<u>"))
    assert page.count("<details") == page.count("</details>")


def test_an_error_ends_with_3_and_one_line(folder: Path) -> None:
    command = [sys.executable, "-m", "instar", "encoder", "report", "old.npz", "gone.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == "instar: There is no file gone.npz.\n"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "encoder"}', '{"kind": "encoder", "schema": 1}', '{"kind": "x"}'])
def test_no_record_is_no_page(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "bad.json"), "-o", str(tmp_path / "page.html")])
    assert isinstance(done.exception, RecordError)
    assert not (tmp_path / "page.html").exists()
