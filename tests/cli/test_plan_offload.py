"""`instar plan-offload`: what it says of a folder, of a configuration alone, and of budgets that are too small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from instar.cli.app import app
from instar.errors import BudgetError, ModelError, PlanError, UnknownNameError

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    architectures=["LlamaForCausalLM"],
)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan-offload", "--seconds", "0.1", "--mode", "throttled", *words])
    if done.exception is not None:
        raise done.exception
    return done.output


def planned(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*words, "--json"))
    return found


def test_weights_and_configuration_say_the_same(tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIG)
    model.save_pretrained(tmp_path / "stored")
    CONFIG.save_pretrained(tmp_path / "blank")
    plans = [
        planned(str(where), "--ram", "2MB") for where in (tmp_path / "stored", tmp_path / "blank", tmp_path / "blank/config.json")
    ]
    count = sum(p.numel() for p in model.parameters())
    for found in plans:
        best = found["plans"]["interleaved"]
        assert (best["parameters"], best["state_bytes"], best["weights_bytes"]) == (count, 8 * count, 4 * count)
        assert best["budget_bytes"] <= 2_000_000 < best["state_bytes"]
        assert best["peak_bytes"] == best["budget_bytes"] + 8 * count
        assert found["plans"]["in memory"]["streamed"] == 0
        assert found["hardware"]["emulated"]
    halves = planned(str(tmp_path / "stored"), "--ram", "2MB", "--dtype", "bfloat16")["plans"]["interleaved"]
    assert halves["state_bytes"] == 4 * count
    text = run(str(tmp_path / "blank"), "--ram", "2MB", "--passes", "1")
    for word in ("EMULATED", "interleaved", "sequential", "in memory", "activations"):
        assert word in text


def test_a_named_file_is_planned_as_the_optimiser_takes_it(tmp_path: Path) -> None:
    CONFIG.save_pretrained(tmp_path)
    whole = planned(str(tmp_path), "--ram", "1GB")["plans"]["interleaved"]["budget_bytes"]
    ram, mode = ("--ram", f"{whole}B"), ("--mode", "buffered")
    for store, streams in ((tmp_path, False), (tmp_path / "state", True)):
        found = planned(str(tmp_path), *ram, "--store", str(store), *mode)["plans"]["interleaved"]
        assert bool(found["streamed"]) == streams
    assert not (tmp_path / "state").exists()


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    CONFIG.save_pretrained(tmp_path)
    with pytest.raises(BudgetError, match="The least that works"):
        run(str(tmp_path), "--ram", "20KB")
    with pytest.raises(PlanError, match="--ram expects"):
        run(str(tmp_path), "--ram", "2")
    with pytest.raises(UnknownNameError, match="dtype"):
        run(str(tmp_path), "--ram", "2MB", "--dtype", "float8")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError):
        run(str(tmp_path), "--ram", "2MB")
    with pytest.raises(ModelError, match="no folder"):
        run(str(tmp_path / "none"), "--ram", "2MB")
