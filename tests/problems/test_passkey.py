"""A key hidden in text: rows hold what they should, looking it up finds every key, and both figures are of the same rows."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.bench.seeds import stream
from instar.data import blocks
from instar.errors import DataError, ShapeError
from instar.problems import passkey as module
from instar.problems.passkey import DEPTHS, FRAME, LENGTHS, PasskeyProblem, rows

SMALL = {"width": 16, "depth": 1, "heads": 2, "batch": 4, "test_rows": 3}
TEXT = blocks.Blocks(
    [np.frombuffer((b"All that is gold does not glitter, not all those who wander are lost. " * 40)[:2000], dtype=np.uint8)],
    np.zeros(4, dtype=np.int32),
    np.array([0, 500, 1000, 1500]),
    np.array([500, 500, 500, 90]),
)


class LookUp(nn.Module):
    """Writes the key that it finds after the question, but only keys told behind byte `blind`; else all bytes alike."""

    def __init__(self, blind: int = 0) -> None:
        super().__init__()
        self.blind, self.unused = blind, nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, 257)
        for b, row in enumerate(tokens.tolist()):
            told = re.search(rb"The key is (\d{5})\.", bytes(row[1:]))
            assert told
            if told.start() >= self.blind:
                for k, digit in enumerate(told[1]):
                    logits[b, len(row) - 5 + k, digit] = 20.0
        return logits, None


@pytest.fixture(scope="module")
def problem() -> PasskeyProblem:
    return PasskeyProblem(**SMALL)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(FRAME + 1, 300), st.floats(0, 1), st.integers(0, 99))
def test_a_row_is_text_around_a_key_and_the_question(length: int, depth: float, seed: int) -> None:
    found = rows(TEXT, length, torch.full((3,), depth, dtype=torch.float64), stream(seed, "x"))
    assert found.bytes.shape == found.text.shape == (3, length)
    for row, text in zip(found.bytes.tolist(), found.text.tolist(), strict=True):
        whole = bytes(row)
        parts = re.fullmatch(rb"(.*)\nThe key is (\d{5})\.\n(.*)\nThe key is (\d{5})", whole, re.DOTALL)
        assert parts
        assert parts[2] == parts[4]
        around = parts[1] + parts[3]
        assert around in TEXT.sources[0].tobytes()
        assert len(parts[1]) == round(depth * len(around))
        assert bytes(byte for byte, is_text in zip(whole, text, strict=True) if is_text) == around


def test_looking_up_finds_all_that_it_can_see(problem: PasskeyProblem) -> None:
    split = problem.load(0).test
    assert problem.evaluate(LookUp(), split)["exact_match"].value == 1.0  # type: ignore[arg-type]
    blind = problem.evaluate(LookUp(70), split)  # type: ignore[arg-type]
    around = {word: int(factor * problem.length) - FRAME for word, factor in LENGTHS.items()}
    for word in LENGTHS:
        for depth in DEPTHS:
            assert blind[f"exact_match_{word}@{depth}"].value == float(round(depth / 100 * around[word]) + 1 >= 70)
        assert blind[f"bits_per_byte@{module.CONDITIONS[word]}"].value == pytest.approx(
            math.log2(257), rel=1e-5
        )  # nothing of it shows in the bits


def test_one_wrong_digit_is_a_lost_key(problem: PasskeyProblem) -> None:
    class LastWrong(LookUp):
        def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
            logits, _ = super().forward(tokens)
            logits[:, -1, 0] = 30.0
            return logits, None

    assert problem.evaluate(LastWrong(), problem.load(0).test)["exact_match"].value == 0.0  # type: ignore[arg-type]


def test_greedy_decoding_agrees(problem: PasskeyProblem) -> None:
    data = problem.load(0)
    model = lift(problem, "softmax", {}, data, 0)
    problem.fit(model, data.train, steps=10, seed=0)
    given = data.test["full@50"].bytes.clone()
    prompt = torch.cat([torch.full((len(given), 1), 256), given[:, :-5]], 1)
    written = model.generate(prompt, max_new_tokens=5)
    given[:, -5:] = written  # rows whose answer is what the model writes: each is a hit, and with one digit changed none is
    cell = {"full@50": module.Rows(given, data.test["full@50"].text)}
    assert _cell(problem, model, cell) == [1.0] * len(given)
    given[:, -3] = (given[:, -3] + 1) % 256
    assert _cell(problem, model, cell) == [0.0] * len(given)


def _cell(problem: PasskeyProblem, model: nn.Module, cell: dict[str, module.Rows]) -> list[float]:
    full = {f"{word}@0": cell["full@50"] for word in LENGTHS}
    return list(problem.evaluate(model, full | cell)["exact_match_full@50"].totals)  # type: ignore[arg-type]


def test_every_row_is_scored_at_any_batch_size(problem: PasskeyProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    data = problem.load(0)
    model = lift(problem, "gru", {}, data, 0)
    found = problem.evaluate(model, data.test)
    assert set(found) == {m.id for m in catalogue.problem("passkey").metrics if m.kind == "quality"}
    cells = [items for name, items in found.items() if name.startswith("exact_match_")]
    assert sum(len(items.weights) for items in cells) == data.facts["test_items"] == 3 * 15
    for word, factor in LENGTHS.items():
        assert list(found[f"bits_per_byte@{module.CONDITIONS[word]}"].weights) == [float(int(factor * 128) - FRAME)] * 15
    monkeypatch.setattr(module, "_EVALUATION_ROWS", 2)
    for name, items in problem.evaluate(model, data.test).items():
        np.testing.assert_allclose(items.totals, found[name].totals, rtol=1e-4)


def test_training_learns_and_depends_on_the_seed_alone() -> None:
    problem = PasskeyProblem(**SMALL, lr=2e-2)  # type: ignore[arg-type]
    data = problem.load(0)
    losses: list[float] = []
    models = [lift(problem, "linear_attention", {}, data, 0) for _ in range(3)]
    problem.fit(models[0], data.train, steps=20, seed=1, monitor=lambda _, value: losses.append(value))
    problem.fit(models[1], data.train, steps=20, seed=1)
    problem.fit(models[2], data.train, steps=20, seed=2)
    assert losses[-1] < losses[0] - 2
    assert torch.equal(models[0].embedding.weight, models[1].embedding.weight)
    assert not torch.equal(models[0].embedding.weight, models[2].embedding.weight)
    assert problem.load(1).sha256 == data.sha256  # seeds pair over items


def test_costs_name_every_metric_of_the_card(problem: PasskeyProblem) -> None:
    data = problem.load(0)
    found = costs.measure(problem, lift(problem, "gla", {}, data, 0), data, 0)
    wanted = {m.id for m in catalogue.problem("passkey").metrics if m.kind == "cost"}
    assert wanted == {name for name in found if "." not in name}


def test_bad_settings_and_texts() -> None:
    for bad in ({"length": 2 * FRAME}, {"batch": 0}, {"test_rows": 0}):
        with pytest.raises(ShapeError, match="received"):
            PasskeyProblem(**bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="No block"):
        rows(TEXT, 501 + FRAME, torch.zeros(1), stream(0, "x"))
