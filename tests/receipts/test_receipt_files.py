"""Receipts on disk: what is untrusted, histories, fingerprints of folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_updates import DOWN, DTYPES, attach, decoder, edit, edit_undeclared, minilm
from torch import nn

from instar import Decoder
from instar.checks.witness import contents, flip, picture, require
from instar.errors import CheckpointError, OutputError, ReceiptError
from instar.receipt import fingerprint, history, load, updating
from instar.receipts import bits
from instar.receipts.store import FACTS


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_bits_survive_the_file(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([d for d in DTYPES if d != torch.bool]))
    raw = data.draw(st.binary(min_size=dtype.itemsize * 4, max_size=dtype.itemsize * 4))
    model = nn.Module()
    model.register_buffer("x", torch.zeros(2, 2, dtype=dtype))
    with updating(model, method="fill", changes=["x"]) as update:
        bits.write(model.x, (bits.bits(torch.frombuffer(bytearray(raw), dtype=dtype).view(2, 2)),))
    after = contents(model)["x"][2]
    assert after == raw
    with tempfile.TemporaryDirectory() as folder:
        read = load(update.receipt.save(Path(folder) / "r"))
        update.receipt.undo()
        assert contents(model)["x"][2] == bytes(len(raw))
        read.apply(model)
        assert contents(model)["x"][2] == raw


def stored(tmp_path: Path) -> tuple[Decoder, Path]:
    model = decoder()
    return model, edit(model).save(tmp_path / "r")


def test_a_folder_of_a_structural_change_fills_a_model_of_the_same_structure(tmp_path: Path) -> None:
    model = decoder()
    receipt = attach(model)
    with torch.no_grad():
        model.blocks[0].feed.up.low.zero_()
    folder = receipt.save(tmp_path / "r")
    after = contents(model)
    same = decoder()
    attach(same)
    with torch.no_grad():
        same.blocks[0].feed.up.low.fill_(3)
    load(folder).apply(same)
    assert {n: c for n, (_, _, c) in contents(same).items()} == {n: c for n, (_, _, c) in after.items()}
    with pytest.raises(ReceiptError, match=r"structure .*feed\.up"):
        load(folder).undo(same)
    with pytest.raises(ReceiptError, match=r"structure .*feed\.up"):
        load(folder).apply(decoder())


def test_a_folder_serves_both_states_of_a_live_model(tmp_path: Path) -> None:
    model, folder = stored(tmp_path)
    after = picture(model)
    fresh = picture(decoder())
    with load(folder).reverted(model):
        assert [c for n, c in picture(model) if n.startswith("bits")] == [c for n, c in fresh if n.startswith("bits")]
    require(model, after, "After `reverted`")
    with pytest.raises(ReceiptError, match="already as after"):
        load(folder).apply(model)
    flip(model, "norm.weight")
    with pytest.raises(ReceiptError, match="does not touch"), load(folder).reverted(model):
        raise AssertionError
    with pytest.raises(ReceiptError, match="not as after"):
        load(folder).undo(nn.Linear(2, 2))
    with pytest.raises(ReceiptError, match="no model in this process"):
        load(folder).undo()


def test_saving_needs_the_bits_after_the_update_and_a_new_folder(tmp_path: Path) -> None:
    model = decoder()
    receipt = edit(model)
    flip(model, DOWN)
    with pytest.raises(ReceiptError, match="changed since"):
        receipt.save(tmp_path / "r")
    flip(model, DOWN)
    receipt.save(tmp_path / "r")
    with pytest.raises(OutputError, match="does not exist yet"):
        receipt.save(tmp_path / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    receipt.undo()
    receipt.save(tmp_path / "again")
    assert load(tmp_path / "again").facts == load(tmp_path / "r").facts


def damages() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flip_last(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)

    def other_tensors(path: Path) -> None:
        safetensors.torch.save_file({"../../x": torch.zeros(2)}, str(path))

    def alter(change: Callable[[dict], object]) -> Callable[[Path], None]:
        def altered(path: Path) -> None:
            found = json.loads((path.parent / FACTS).read_text())
            change(found)
            (path.parent / FACTS).write_text(json.dumps(found))

        return altered

    yield "truncated", truncate
    yield "one bit", flip_last
    yield "missing", Path.unlink
    yield "other tensors", other_tensors
    yield "no json", lambda path: (path.parent / FACTS).write_text("{")
    yield "deep json", lambda path: (path.parent / FACTS).write_text("[" * 100000)
    yield "a list", lambda path: (path.parent / FACTS).write_text("[]")
    yield "not text", lambda path: (path.parent / FACTS).write_bytes(b"\xff\xfe")
    yield "method", alter(lambda found: found.update(method="other"))
    yield "unknown key", alter(lambda found: found.update(extra=1))
    yield "unknown key of a change", alter(lambda found: found["changes"][0].update(extra=1))
    yield "no key", alter(lambda found: found.pop("rest"))
    yield "hash", alter(lambda found: found["changes"][0]["after"].update(sha256="0" * 64))
    yield "no hash", alter(lambda found: found["changes"][0]["after"].update(sha256=None))
    yield "shape", alter(lambda found: found["changes"][0]["after"].update(shape=[-1, 5]))
    yield "dtype", alter(lambda found: found["changes"][0]["after"].update(dtype="load"))
    yield "quantised type", alter(lambda found: found["changes"][0]["after"].update(dtype="quint8"))
    yield "deep settings", alter(lambda found: found.update(settings=json.loads('{"a":' * 450 + "1" + "}" * 450)))
    yield "twice", alter(lambda found: found["changes"].append(found["changes"][0]))
    yield "seconds", alter(lambda found: found.update(seconds="1"))
    yield "modules", alter(lambda found: found.update(modules={"a": 1}))
    yield "moved", alter(lambda found: found.update(moved={"a": 1}))


@pytest.mark.parametrize(("name", "damage"), list(damages()), ids=lambda value: value if isinstance(value, str) else "")
def test_damaged_folders_load_nothing(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    model, folder = stored(tmp_path)
    receipt = load(folder)
    damage(folder / "before.safetensors")
    with pytest.raises((ReceiptError, CheckpointError)):
        load(folder)
    if name in ("truncated", "one bit", "missing", "other tensors"):
        before = picture(model)
        with pytest.raises((ReceiptError, CheckpointError)):
            receipt.undo(model)  # damaged after it was loaded
        require(model, before, "After the refused undo")


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(seconds=math.nan),
        lambda found: found.update(seconds=-1.0),
        lambda found: found["changes"][0]["before"].update(shape=[2**62] * 30),
    ],
    ids=["nan", "negative", "giant"],
)
def test_a_forged_receipt_with_the_right_id_says_nothing_that_breaks_a_reader(change: Callable, tmp_path: Path) -> None:
    model, folder = decoder(), tmp_path / "model"
    path = edit(model).record(folder) / FACTS
    found = json.loads(path.read_text())
    change(found)
    said = {key: value for key, value in found.items() if key not in ("id", "format")}
    found["id"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    path.write_text(json.dumps(found))
    path.parent.rename(path.parent.with_name(f"001-{found['id']}"))
    (line,) = history(folder)
    assert line.facts is None
    assert "damaged" in line.problem
    assert "altered" not in line.problem, "the id itself fits"


def test_a_model_and_its_folder_have_the_same_fingerprint(tmp_path: Path) -> None:
    for name, model in (("tied", decoder()), ("untied", decoder(tied=False)), ("half", decoder().bfloat16()), ("bert", minilm())):
        model.save_pretrained(tmp_path / name)
        assert fingerprint(model) == fingerprint(tmp_path / name) == fingerprint(tmp_path / name / "model.safetensors")
    assert fingerprint(decoder()) == fingerprint(decoder())
    assert fingerprint(decoder()) != fingerprint(decoder().double())
    model = decoder()
    model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]
    assert fingerprint(model) != fingerprint(decoder())


def test_a_tied_head_of_transformers_and_shards_have_the_same_fingerprint(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    assert fingerprint(model) == fingerprint(tmp_path / "one") == fingerprint(tmp_path / "many")


def test_fingerprints_of_hostile_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        fingerprint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text in ('{"weight_map": {"x": "../secret.safetensors"}}', '{"weight_map": {"x": 5}}', "[]", "{", '{"weight_map": [1]}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="index"):
            fingerprint(tmp_path)
    index.write_text('{"weight_map": {"x": "gone.safetensors"}}')
    with pytest.raises(CheckpointError, match="no file"):
        fingerprint(tmp_path)
    os.mkfifo(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="no file"):  # a reader of the pipe would wait for ever
        fingerprint(tmp_path)


def test_history(tmp_path: Path) -> None:
    model, folder = decoder(), tmp_path / "model"
    model.save_pretrained(folder)
    assert history(folder) == []
    first, second = edit(model), edit_undeclared(model)
    second.undo()
    first.record(folder)
    second.apply()
    second.record(folder)
    lines = history(folder)
    assert [(line.number, line.facts, line.problem) for line in lines] == [(1, first.facts, ""), (2, second.facts, "")]
    assert lines[0].path.name == f"001-{first.id}"
    assert load(lines[0].path).facts == first.facts
    flip(model, "norm.weight")
    edit(model).record(folder)
    (folder / "receipts" / "notes").mkdir()
    (folder / "receipts" / "009-aaaaaaaaaaaa").symlink_to(tmp_path)
    assert ["without a receipt" in line.problem for line in history(folder)] == [False, False, True]
    (lines[1].path / FACTS).write_text("{")
    assert "damaged" in history(folder)[1].problem
    shutil.move(lines[0].path, lines[0].path.with_name("001-bbbbbbbbbbbb"))
    assert "holds receipt" in history(folder)[0].problem
    with pytest.raises(ReceiptError, match="no model folder"):
        history(tmp_path / "nowhere")
