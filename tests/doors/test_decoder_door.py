"""Our own checkpoints as versions: choices and generation as by hand, at any batch; damaged folders refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from instar.doors import decoder, speaking
from instar.doors.decoder import DecoderModel
from instar.doors.hf import Live
from instar.errors import CheckpointError, ModelError, UnknownNameError
from instar.gate.predictions import Cases
from instar.models.decoder import Decoder

CASES = Cases(
    "bytes",
    ["a", "b", "c"],
    ["To be", "naïve ", "A much longer line of text, and"],
    choices=[["or not", "and"], ["é", "plain", "x"], ["so", "on and on"]],
)


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    made = Decoder(257, 32, 2, "gla", heads=2).eval()
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made


@torch.no_grad()
def naive(model: Decoder, prompt: str, answer: str) -> float:
    ids = [256, *(prompt + answer).encode()]
    rows = model(torch.tensor([ids]))[0][0].log_softmax(-1)
    return sum(float(rows[i - 1, ids[i]]) for i in range(1 + len(prompt.encode()), len(ids)))


def test_choices_are_the_naive_loop(model: Decoder) -> None:
    expected, best = [], []
    for text, choices in zip(CASES.inputs, CASES.choices or [], strict=True):
        values = [naive(model, text.rstrip(), f" {choice}") for choice in choices]
        expected += values
        best.append(choices[values.index(max(values))])
    subject = decoder.Bytes(model)
    rows = [
        speaking.split(subject, t.rstrip(), f" {c}") for t, cs in zip(CASES.inputs, CASES.choices or [], strict=True) for c in cs
    ]
    np.testing.assert_allclose(speaking.likelihoods(subject, rows, 16), expected, rtol=1e-4)
    for batch in (1, 2, 50):
        assert Live(model, None, settings={"batch": batch}).run(CASES, "multiple_choice").outputs == best


def test_generation_is_that_of_the_decoder(model: Decoder) -> None:
    expected = []
    for text in CASES.inputs:
        new = model.generate(torch.tensor([[256, *text.encode()]]), max_new_tokens=9, stop=256)[0].tolist()
        expected.append(bytes(new[: new.index(256)] if 256 in new else new).decode("utf-8", errors="replace"))
    for batch in (1, 3):
        assert Live(model, None, settings={"batch": batch, "max_new_tokens": 9}).run(CASES, "generation").outputs == expected
    stop = expected[0][2]
    stopped = Live(model, None, settings={"max_new_tokens": 9, "stop": stop}).run(CASES, "generation").outputs
    assert stopped == [text.split(stop)[0] for text in expected]


def test_a_checkpoint_answers_in_a_process_of_its_own(model: Decoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    found = DecoderModel(str(tmp_path), {"threads": 1}).run(CASES, "multiple_choice")
    assert found.outputs == Live(model, None).run(CASES, "multiple_choice").outputs
    assert found.costs["size_bytes"] == sum(4 * p.numel() for p in model.parameters())
    assert found.facts["mixer"] == "gla"
    assert decoder.recognised(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="no safetensors"):
        DecoderModel(str(tmp_path)).run(CASES, "multiple_choice")


def test_what_is_no_decoder_over_bytes(model: Decoder, tmp_path: Path) -> None:
    assert not decoder.recognised(tmp_path)
    with pytest.raises(ModelError, match="257"):
        decoder.Bytes(Decoder(50, 16, 1, "gla", heads=2))
    with pytest.raises(ModelError, match="chat"):
        Live(model, None, settings={"chat": True}).run(CASES, "generation")
    with pytest.raises(ModelError, match="multiple_choice and generation"):
        Live(model, None).run(CASES, "retrieval")
    with pytest.raises(UnknownNameError, match="task"):
        DecoderModel(str(tmp_path)).run(CASES, "choice")
    with pytest.raises(UnknownNameError, match="setting"):
        DecoderModel(str(tmp_path), {"quantize": "int8"})
