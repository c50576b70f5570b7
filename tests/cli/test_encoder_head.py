"""`instar encoder train`, `project`, and what a trained head does in `search` and `backfill`, with two real encoders."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from instar.cli import main
from instar.compat import saved
from instar.data.collecting import open_collection
from instar.encoders import files
from instar.encoders.opening import open_encoder
from instar.retrieval.exact import ExactIndex

ITEMS = 900


def _instar(folder: Path, *arguments: str, code: int = 0) -> str:
    out = io.StringIO()
    ended: object = 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["instar", "encoder", *arguments])
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        try:
            main()
        except SystemExit as error:
            ended = error.code or 0
    assert ended == code, f"{arguments}\n{out.getvalue()}"
    if code:
        assert "Traceback" not in out.getvalue()
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, two fitted encoders, the vectors of the old one in a store, and a head between them."""
    where = tmp_path_factory.mktemp("heads")
    with contextlib.chdir(where):
        some = open_collection("topics", sample=ITEMS, seed=0)
        old = open_encoder("lsa:old", {"dims": 48}, texts=some.texts)
        new = open_encoder("lsa:new", {"dims": 128, "min_count": 3}, texts=some.texts)
        for name, made in (("old", old), ("new", new)):
            files.write(f"{name}.npz", some.ids, made.encode(some.texts))
        files.write("constant.npz", some.ids, np.ones((ITEMS, 3), np.float32))
        Path("store").mkdir()
        np.save("store/vectors.npy", old.encode(some.texts))
        Path("store/ids.json").write_text(json.dumps(some.ids))
        rows = [{"id": name, "text": text} for name, text in zip(some.ids, some.texts, strict=True)]
        Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = [
            {"id": name, "text": text, "relevant": [some.ids[place] for place in places]}
            for name, text, places in zip(some.query_ids, some.queries, some.relevant, strict=True)
        ]
        Path("queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked[:120]))
    _instar(where, "adopt", "exact:store", "--encoder", "lsa:old")
    said = _instar(where, "train", "exact:store", "lsa:new", "--data", "texts.jsonl", "-o", "head")
    assert "Fitted on 810 items; of 90 held out" in said
    assert "rank correlation" in said
    return where


def test_what_is_saved(folder: Path) -> None:
    found = saved.load(folder / "head")
    with contextlib.chdir(folder):
        fingerprints = [open_encoder(f"lsa:{name}").fingerprint for name in ("old", "new")]
    assert [g.encoder for g in found.generations] == fingerprints
    assert [g.dim for g in found.generations] == [48, 128]
    assert found.facts["method"] == "ridge"
    assert found.facts["quality"]["held_out"] == 90
    assert len(found.facts["uncertainty"]["weights"]) == 48
    assert found.calibration is not None


def test_the_same_head_from_encoders_and_from_files(folder: Path) -> None:
    _instar(folder, "train", "lsa:old", "lsa:new", "--data", "texts.jsonl", "-o", "again")
    given = ("--old", "encoder=lsa:old", "--new", "encoder=lsa:new")
    _instar(folder, "train", "old.npz", "new.npz", *given, "-o", "of_files", "--quiet")
    one, two, three = (saved.load(folder / name) for name in ("head", "again", "of_files"))
    for other in (two, three):
        assert [g.encoder for g in other.generations] == [g.encoder for g in one.generations]
        for name, value in one.head.state_dict().items():
            np.testing.assert_allclose(value.numpy(), other.head.state_dict()[name].numpy(), atol=1e-5)


def test_a_second_update_reaches_the_first_generation(folder: Path) -> None:
    with contextlib.chdir(folder):
        texts = open_collection("texts.jsonl").texts
        open_encoder("lsa:third", {"dims": 160}, texts=texts)
    given = ("--previous", "head", "--data", "texts.jsonl", "--knob", "penalty=0.001", "-o", "second")
    _instar(folder, "train", "lsa:new", "lsa:third", *given)
    found = saved.load(folder / "second")
    assert [g.dim for g in found.generations] == [48, 128, 160]
    assert found.head.penalty == 0.001  # type: ignore[union-attr]
    _instar(
        folder, "project", "second", "--texts", "texts.jsonl", "--encoder", "lsa:third", "--generation", "0", "-o", "zero.npz"
    )
    mapped, stored = (files.vectors(folder / name)[1] for name in ("zero.npz", "old.npz"))
    assert (mapped * stored).sum(1).mean() > 0.6
    assert json.loads(
        _instar(folder, "search", "exact:store", "sorting a list", "--encoder", "lsa:third", "--head", "second", "--json")
    )


def test_rows_of_a_trained_head_are_its_own(folder: Path) -> None:
    """BT² stores vectors of its own making: the encoder alone is then a stranger."""
    with contextlib.chdir(folder):
        ids, vectors, _ = files.vectors("old.npz")
        made = saved.load(Path("head")).generations[0]
        ExactIndex.adopt("second_store", "", made, vectors=vectors, ids=ids).close()
    _instar(
        folder, "train", "exact:second_store", "lsa:new", "--data", "texts.jsonl", "--method", "bt2", "--steps", "60", "-o", "bt2"
    )
    backfill = ("backfill", "exact:second_store", "lsa:new", "--data", "texts.jsonl", "--until", "0.3")
    assert f"{int(0.3 * ITEMS)} rows moved" in _instar(folder, *backfill, "--head", "bt2")
    found = saved.load(folder / "bt2")
    status = json.loads(_instar(folder, "status", "exact:second_store", "--json"))["generations"][1]
    assert (status["dim"], status["encoder"]) == (found.head.full_dim, found.generations[1].encoder)
    assert status["dim"] > 128
    assert "under way" in _instar(folder, *backfill, code=3)
    asked = ("search", "exact:second_store", "how are decimal numbers rounded", "--encoder", "lsa:new")
    assert json.loads(_instar(folder, *asked, "--head", "bt2", "--json"))
    assert "stand in generation" in _instar(folder, *asked, code=3)


def test_labels_that_name_items_are_left_out_and_told(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    for name, label in (("ids", lambda i: f"sku {i}"), ("thirds", lambda i: i % 3)):
        named = "".join(json.dumps({**row, "label": label(i)}) + "\n" for i, row in enumerate(rows))
        (folder / f"{name}.jsonl").write_text(named)
    given = ("train", "lsa:old", "lsa:new", "--method", "bct", "--steps", "5", "-o", "labelled", "--data")
    assert "without labels: 810 labels are names of items" in _instar(folder, *given, "ids.jsonl")
    assert "no two items" in saved.load(folder / "labelled").facts["labels_left_out"]
    assert "without labels" not in _instar(folder, *given, "thirds.jsonl")
    ridge = ("train", "lsa:old", "lsa:new", "--data", "ids.jsonl", "-o", "labelled")
    assert "labels" not in _instar(folder, *ridge), "a map never used them"


def test_vectors_without_a_label_are_left_out(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    for name, start in (("some", ""), ("other", "x")):
        lines = "".join(f"{start}{row['id']},{i % 3},a\n" for i, row in enumerate(rows[:400]))
        (folder / f"{name}.csv").write_text("id,label,text\n" + lines)
    given = ("train", "old.npz", "new.npz", "--method", "bct", "--steps", "5", "-o", "partly", "--data")
    assert "Fitted on 360 items; of 40 held out" in _instar(folder, *given, "some.csv")
    assert "Fitted on 270 items" in _instar(folder, *given, "some.csv", "--items", "300")
    assert "has no label for any of the 900 vectors" in _instar(folder, *given, "other.csv", code=3)


def test_projected_queries_search_an_untouched_index(folder: Path) -> None:
    said = _instar(folder, "project", "head", "--texts", "queries.jsonl", "--encoder", "lsa:new", "-o", "queries.npz")
    assert "120 queries for generation 0, dimension 48" in said
    ids, queries, _ = files.vectors(folder / "queries.npz")
    asked = open_collection(str(folder / "texts.jsonl"), queries=folder / "queries.jsonl")
    assert ids == asked.query_ids
    _, stored, _ = files.vectors(folder / "old.npz")
    best = np.argsort(-queries @ stored.T, 1)[:, :10]
    found = np.mean([bool(set(row) & set(right)) for row, right in zip(best.tolist(), asked.relevant, strict=True)])
    assert found > 0.4  # by chance 0.01
    _instar(folder, "project", "head", "--vectors", "new.npz", "--generation", "1", "-o", "same.npz")
    np.testing.assert_allclose(files.vectors(folder / "same.npz")[1], files.vectors(folder / "new.npz")[1], atol=1e-6)


def test_search_and_backfill_with_a_head(folder: Path) -> None:
    asked = ("search", "exact:store", "how are decimal numbers rounded", "--encoder", "lsa:new", "--head", "head", "--json")
    before = json.loads(_instar(folder, *asked))
    assert {row["generation"] for row in before} == {0}
    given = ("backfill", "exact:store", "lsa:new", "--data", "texts.jsonl", "--head", "head")
    probe = ("--probe", "queries.jsonl", "--log", "log.jsonl", "--every", "0.1", "--margin", "0.05")
    _instar(folder, *given, *probe, "--order", "least-certain", "--until", "0.4")
    mixed = json.loads(_instar(folder, *asked, "-k", "40", "--data", "texts.jsonl"))
    assert {row["generation"] for row in mixed} == {0, 1}
    assert all(row["text"] for row in mixed)
    said = _instar(folder, *given, *probe)
    assert f"All {ITEMS} rows are new" in said
    recalls = [json.loads(line)["recall"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert recalls[-1] > recalls[0] + 0.03, recalls
    with ExactIndex.open(str(folder / "store")) as index:
        vectors, numbers = index.fetch(files.vectors(folder / "new.npz")[0])
        assert set(numbers) == {1}
        np.testing.assert_allclose(np.stack(vectors), files.vectors(folder / "new.npz")[1], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "lsa:old", "lsa:new", "-o", "x"), "--data"),
        (("train", "lsa:old", "lsa:new", "--data", "texts.jsonl", "--items", "3", "-o", "x"), "20 items"),
        (("train", "lsa:old", "lsa:new", "--data", "texts.jsonl", "--method", "ridgy", "-o", "x"), "ridge"),
        (("train", "old.npz", "new.npz", "--new", "dims=3", "-o", "x"), "encoder=SOURCE"),
        (("train", "exact:store", "new.npz", "--old", "dims=3", "-o", "x"), "takes no settings"),
        (("train", "old.npz", "new.npz", "--new", "encoder=lsa:old", "-o", "x"), "vectors of 128"),
        (("train", "lsa:old", "lsa:new", "--data", "texts.jsonl", "--previous", "head", "-o", "x"), "cannot be compared"),
        (("train", "old.npz", "new.npz", "--knob", "penal=1", "-o", "x"), "Did you mean penalty"),
        (("train", "old.npz", "new.npz", "--knob", "penalty=high", "-o", "x"), "cannot be made with the knobs"),
        (("train", "constant.npz", "new.npz", "-o", "x"), "All 900 old vectors are the same"),
        (("project", "head", "-o", "x.npy"), "either --vectors"),
        (("project", "nothing", "--vectors", "new.npz", "-o", "x.npy"), "no head"),
        (("project", "head", "--vectors", "old.npz", "-o", "x.npy"), "expects vectors"),
        (("project", "head", "--vectors", "new.npz", "--generation", "2", "-o", "x.npy"), "0 to 1"),
        (("project", "head", "--texts", "queries.jsonl", "--encoder", "lsa:old", "-o", "x.npy"), "was fitted for"),
        (("project", "head", "--texts", "queries.jsonl", "--encoder", "lsa:old", "-o", "x.bin"), "no file of vectors"),
        (("search", "exact:store", "a", "--encoder", "lsa:old", "--head", "head"), "was fitted for"),
    ],
)
def test_errors_say_what_to_do(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in _instar(folder, *arguments, code=3)
    assert not (folder / "x").exists()
    assert not (folder / "x.npy").exists()
