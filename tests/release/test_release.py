"""Folders of new versions: plain to transformers, with their history, and back to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from instar import release
from instar.data import pretrained
from instar.errors import CheckpointError, MissingExtraError, OutputError, ReceiptError
from instar.receipt import Receipt, fingerprint, history, updating
from instar.release import exchange, writing


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small Llama with tied weights, as a folder."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50, tie_word_embeddings=True
    )
    folder = tmp_path / "source"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("of the version before")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"a": 1}')
    return folder


def opened(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def changed(model: Any, layer: int, factor: float = 1.5) -> Receipt:
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    with updating(model, method="scaled", settings={"factor": factor}, changes=[name]) as update, torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return update.receipt


def narrowed(model: Any) -> Receipt:
    """Another shape, another config, and tensors that go."""
    with updating(model, method="narrowed", changes=[]) as update:
        for block in model.model.layers:
            for name in ("gate_proj", "up_proj"):
                old = getattr(block.mlp, name)
                part = nn.Linear(32, 48, bias=False)
                part.weight = nn.Parameter(old.weight.detach()[:48].clone())
                setattr(block.mlp, name, part)
            down = nn.Linear(48, 32, bias=False)
            down.weight = nn.Parameter(block.mlp.down_proj.weight.detach()[:, :48].clone())
            block.mlp.down_proj = down
        model.config.intermediate_size = 48
    return update.receipt


def test_a_version_is_a_plain_folder_with_its_history(source: Path, tmp_path: Path) -> None:
    model = opened(source)
    receipt = changed(model, 0)
    out = release.write(model, tmp_path / "next", source=source, receipts=[receipt])
    again = opened(out)
    x = torch.arange(8).view(1, -1)
    torch.testing.assert_close(again(x).logits, model(x).logits, rtol=0, atol=0)
    assert (out / "tokenizer_config.json").is_file()
    assert (out / "1_Pooling" / "config.json").is_file()
    assert not (out / "pytorch_model.bin").exists()
    (line,) = history(out)
    assert line.facts is not None
    assert line.facts.after == fingerprint(out)


def test_undo_goes_back_one_by_one_to_the_bit(source: Path, tmp_path: Path) -> None:
    model = opened(source)
    first = release.write(model, tmp_path / "first", source=source, receipts=[changed(model, 0)])
    middle = opened(first)
    second = release.write(middle, tmp_path / "second", source=first, receipts=[changed(middle, 1), changed(middle, 0)])
    assert len(history(second)) == 3
    release.undo(second)
    release.undo(second)
    assert fingerprint(second) == fingerprint(first)
    release.undo(second)
    assert fingerprint(second) == fingerprint(source)
    assert not history(second)
    opened(second)
    with pytest.raises(ReceiptError, match="nothing to take back"):
        release.undo(second)


@pytest.mark.parametrize("way", ["from within", "by a link"])
def test_undo_reaches_the_real_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    model, link, out = opened(source), tmp_path / "current", tmp_path / "models" / "first"
    base = fingerprint(model)
    release.write(model, out, source=source, receipts=[changed(model, 0)])
    link.symlink_to(out)
    monkeypatch.chdir(out)
    release.undo("." if way == "from within" else link)
    assert link.is_symlink()
    assert fingerprint(opened(out)) == fingerprint(opened(link)) == base
    assert not [path for folder in (tmp_path, tmp_path / "models") for path in folder.iterdir() if path.name.startswith(".")]


def test_undo_of_another_structure_brings_back_the_config(source: Path, tmp_path: Path) -> None:
    model = opened(source)
    out = release.write(model, tmp_path / "narrow", source=source, receipts=[narrowed(model)])
    assert opened(out).config.intermediate_size == 48
    before = tmp_path / "before"
    release.undo(out, out=before)
    assert opened(out).config.intermediate_size == 48
    x = torch.arange(8).view(1, -1)
    torch.testing.assert_close(opened(before)(x).logits, opened(source)(x).logits, rtol=0, atol=0)


def test_a_change_without_a_receipt_is_refused(source: Path, tmp_path: Path) -> None:
    model = opened(source)
    receipt = changed(model, 0)
    out = release.write(model, tmp_path / "next", source=source, receipts=[receipt])
    other = opened(out)
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    other.save_pretrained(out)
    with pytest.raises(ReceiptError, match="changed since without a receipt"):
        release.undo(out)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    with pytest.raises(CheckpointError, match="not those that the update left"):
        release.write(model, tmp_path / "wrong", source=source, receipts=[receipt])
    assert not (tmp_path / "wrong").exists()


def test_nothing_is_written_over(source: Path, tmp_path: Path) -> None:
    model = opened(source)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        release.write(model, tmp_path / "taken", source=source, receipts=[changed(model, 0)])
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["file"]
    assert {p.name for p in tmp_path.iterdir()} == {"source", "taken"}


def test_a_damaged_receipt_brings_nothing_back(source: Path, tmp_path: Path) -> None:
    model = opened(source)
    out = release.write(model, tmp_path / "next", source=source, receipts=[changed(model, 0)])
    (line,) = history(out)
    file = line.path / "before.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    held = fingerprint(out)
    with pytest.raises(ReceiptError, match="was altered"):
        release.undo(out)
    assert fingerprint(out) == held
    assert {p.name for p in tmp_path.iterdir()} == {"source", "next"}


@pytest.mark.parametrize("at_once", [True, False])
def test_folders_change_places(tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    if not at_once:
        monkeypatch.setattr(exchange, "_at_once", lambda new, old: False)
    exchange.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").is_file()
    assert (tmp_path / "b" / "a").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.skipif(sys.platform != "linux", reason="folders change places at once on Linux only")
def test_a_kill_during_undo_leaves_a_whole_version(source: Path, tmp_path: Path) -> None:
    model = opened(source)
    out = release.write(model, tmp_path / "next", source=source, receipts=[changed(model, 0)])
    known = {fingerprint(source), fingerprint(out)}
    code = f"from instar import release; print('go', flush=True); release.undo({str(out)!r})"
    for wait in (0.0, 0.002, 0.01, 0.03):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert fingerprint(out) in known
        opened(out)
        if fingerprint(out) == fingerprint(source):
            break


def test_a_real_encoder(tmp_path: Path) -> None:
    try:
        folder = pretrained.folder("all-MiniLM-L6-v2")
    except MissingExtraError as error:
        pytest.skip(str(error))
    model, _ = pretrained.load(folder)
    name = "encoder.layer.3.output.dense.weight"
    with updating(model, method="scaled", changes=[name]) as update, torch.no_grad():
        model.get_parameter(name).mul_(1.1)
    out = release.write(model, tmp_path / "next", source=folder, receipts=[update.receipt])
    again, tokenizer = pretrained.load(out)
    assert fingerprint(again) == update.receipt.facts.after
    assert tokenizer("hello")["input_ids"]
    facts = release.undo(out)
    assert fingerprint(out) == facts.base
    assert json.loads((out / "config.json").read_text())["model_type"] == "bert"


def test_modules_behind_the_transformer_keep_their_weights(tmp_path: Path) -> None:
    """Of a sentence-transformers folder: 2_Dense holds weights of its own, which no update changes."""
    source, made = tmp_path / "source", tmp_path / "made"
    (source / "2_Dense").mkdir(parents=True)
    made.mkdir()
    for name in ("model.safetensors", "config.json", "2_Dense/model.safetensors", "2_Dense/config.json"):
        (source / name).write_text(name)
    writing.accompany(source, made)
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()) == [
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "config.json",
    ]
