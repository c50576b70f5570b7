"""`instar history`: what was done to a stored model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from instar import Decoder
from instar.cli.app import app
from instar.errors import ReceiptError
from instar.receipt import Receipt, updating


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["history", *words])
    if done.exception is not None:
        raise done.exception
    return done.output


def shift(model: Decoder, by: float, method: str = "shift") -> Receipt:
    with updating(model, method=method, settings={"by": by}, changes=["norm.weight"]) as update, torch.no_grad():
        model.norm.weight.add_(by)
    return update.receipt


def test_history_of_a_model(tmp_path: Path) -> None:
    model = Decoder(40, 16, 1, heads=2, hidden=24)
    model.save_pretrained(tmp_path)
    assert "No update" in run(str(tmp_path))
    for by in (1.0, 2.0):
        shift(model, by).record(tmp_path)
    assert "the weights are not those" in run(str(tmp_path))
    model.save_pretrained(tmp_path)
    text = run(str(tmp_path))
    assert "2 updates; the chain holds; the weights are as the last update left them." in text
    answer = json.loads(run(str(tmp_path), "--json"))
    assert answer["valid"]
    assert answer["current"]
    assert [row["settings"]["by"] for row in answer["receipts"]] == [1.0, 2.0]
    assert [row["tensors"] for row in answer["receipts"]] == [["norm.weight"]] * 2
    shift(model, 1.0)
    shift(model, 1.0, "\x1b[31mred").record(tmp_path)
    text = run(str(tmp_path))
    assert "the chain is broken" in text
    assert "\x1b" not in text
    assert not json.loads(run(str(tmp_path), "--json"))["valid"]


def test_history_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ReceiptError, match="no model folder"):
        run(str(tmp_path / "nowhere"))
    assert json.loads(run(str(tmp_path), "--json"))["receipts"] == []


def test_help_has_examples() -> None:
    assert "Example" in run("--help")
