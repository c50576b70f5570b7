"""A stored decoder grows into a new version, and comes back to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from instar import release
from instar.cli.app import app
from instar.doors import decoder
from instar.doors.local import Settings
from instar.errors import CheckpointError, ModelError, OutputError, TransformError
from instar.growth import TokenFormer
from instar.growth.growing import Grown
from instar.growth.saved import load_any
from instar.growth.zero_ffn import ZeroFFN
from instar.interfaces import Plan
from instar.models.decoder import Decoder
from instar.receipt import fingerprint
from instar.receipts.store import history
from instar.release import growing


def stored(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    model = TokenFormer(40, 16, 2, heads=2) if kind == "tokenformer" else Decoder(40, 16, 2, "softmax", heads=2, hidden=24)
    model.save_pretrained(folder / kind)
    (folder / kind / "tokenizer.json").write_text("{}")
    return folder / kind


@pytest.mark.parametrize(
    ("kind", "plan"), [("tokenformer", {"n": "2x", "blocks.1.feed": 100}), ("decoder", {"width": 24, "hidden": "2x", "depth": 3})]
)
def test_growth_growth_and_back(kind: str, plan: dict[str, int | str], tmp_path: Path) -> None:
    source = stored(tmp_path, kind)
    before, config = fingerprint(source), (source / "config.json").read_text()
    found = growing.grow(source, plan, tmp_path / "larger")
    assert found.apart <= (0.0 if kind == "tokenformer" else 1e-5)
    assert found.parameters_after > found.parameters_before
    assert (fingerprint(source), (source / "config.json").read_text()) == (before, config)
    growing.grow(tmp_path / "larger", {next(iter(plan)): "2x"}, tmp_path / "largest", seed=1)
    assert len(history(tmp_path / "largest")) == 2
    assert not any(line.problem for line in history(tmp_path / "largest"))
    assert (tmp_path / "largest" / "tokenizer.json").is_file()
    release.undo(tmp_path / "largest")
    assert fingerprint(tmp_path / "largest") == fingerprint(tmp_path / "larger")
    release.undo(tmp_path / "largest")
    assert fingerprint(tmp_path / "largest") == before
    assert (tmp_path / "largest" / "config.json").read_text() == config
    assert fingerprint(load_any(tmp_path / "largest")) == before


def test_what_goes_wrong_leaves_nothing(tmp_path: Path) -> None:
    source = stored(tmp_path, "tokenformer")
    with pytest.raises(TransformError, match="shrink"):
        growing.grow(source, {"n": 8}, tmp_path / "out")
    with pytest.raises(OutputError):
        growing.grow(source, {"n": "2x"}, source)
    with pytest.raises(ModelError, match="cannot be grown"):
        growing.grow(tmp_path / "nowhere", {"n": "2x"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tokenformer"}
    larger = growing.grow(source, {"n": "2x"}, tmp_path / "out").folder
    model = load_any(larger)
    with torch.no_grad():
        model.norm.weight.add_(1.0)
    model.save_pretrained(larger)
    with pytest.raises(Exception, match="changed since"):
        release.undo(larger)
    (larger / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        load_any(larger)


class Misstates(ZeroFFN):
    """A growth whose config says another size."""

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: Any = None, seed: int = 0) -> Grown:
        grown = super().grow(model, plan, optimizer=optimizer, seed=seed)
        model.config = {**model.config, "hidden": 24}  # type: ignore[dict-item,assignment]
        return grown


def test_a_folder_that_cannot_be_read_again_is_not_kept(tmp_path: Path) -> None:
    source = stored(tmp_path, "decoder")
    with pytest.raises(CheckpointError, match="does not fit"):
        growing.grow(source, {"hidden": "2x"}, tmp_path / "out", method=Misstates())
    assert {path.name for path in tmp_path.iterdir()} == {"decoder"}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, "tokenformer")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text('feed = "2x"\n')
    runner = CliRunner()
    said = runner.invoke(app, ["grow", "tokenformer", "-o", "larger", "--plan", "plan.toml"])
    assert said.exit_code == 0, said.output
    assert "Largest change of a logit: 0." in said.output
    plain = runner.invoke(
        app, ["grow", "larger", "-o", "largest", "--to", "n=2x", "--method", "tokenformer:tau=anneal", "--json"]
    )
    found = json.loads(plain.stdout)
    assert found["parameters_after"] > found["parameters_before"]
    assert found["receipt"]["settings"]["tau"] == "anneal"
    assert runner.invoke(app, ["undo", "largest"]).exit_code == 0
    for wrong in (["--to", "n=4"], ["--to", "n=2x", "--plan", "plan.toml"], [], ["--to", "n=2x", "--method", "lemon"]):
        failed = runner.invoke(app, ["grow", "tokenformer", "-o", "more", *wrong])
        assert failed.exit_code != 0
        assert not (tmp_path / "more").exists()


def test_the_gate_takes_what_grew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    TokenFormer(257, 16, 1, heads=2).save_pretrained(tmp_path / "base")
    growing.grow(tmp_path / "base", {"n": "2x"}, tmp_path / "larger")
    ids, keep = torch.tensor([[256, 84, 111]]), torch.tensor([0, 2])
    found = []
    for name in ("base", "larger"):
        assert decoder.recognised(tmp_path / name)
        subject, _ = decoder.DecoderModel.open(str(tmp_path / name), Settings())
        with torch.no_grad():
            found.append(subject.logits(ids, keep))
    assert torch.equal(*found)
