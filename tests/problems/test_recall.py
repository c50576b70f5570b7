"""Associative recall: the rows ask what they should, and looking pairs up answers everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from instar import catalogue
from instar.bench.seeds import stream
from instar.errors import ShapeError
from instar.problems.recall import IGNORED, RecallProblem


class LookUp(nn.Module):
    """Answers each key by the value that followed it first."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.unused = vocab, nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, self.vocab)
        for b, row in enumerate(tokens.tolist()):
            seen: dict[int, int] = {}
            for t, token in enumerate(row):
                if token in seen:
                    logits[b, t, seen[token]] = 1.0
                elif token and t + 1 < len(row):
                    seen[token] = row[t + 1]
        return logits, None


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 100))
def test_looking_up_answers_everything(pairs: int, spare: int, seed: int) -> None:
    problem = RecallProblem(pairs=pairs, length=4 * pairs + 2 * spare, vocab=32, test_sequences=30)
    rows = problem.rows(30, stream(seed, "x"))
    assert problem.evaluate(LookUp(32), rows)["accuracy"].value == 1.0  # type: ignore[arg-type]
    inputs, targets = rows
    assert ((targets != IGNORED).sum(1) == pairs).all()
    keys, values = inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2]
    assert all(len(set(row)) == pairs for row in keys.tolist())
    assert int(keys.min()) >= 1
    assert int(keys.max()) < 16 <= int(values.min())


def test_every_row_is_scored() -> None:
    problem = RecallProblem(test_sequences=77)
    data = problem.load(0)
    found = problem.evaluate(LookUp(problem.vocab), data.test)["accuracy"]  # type: ignore[arg-type]
    assert len(found.totals) == len(found.weights) == data.facts["test_items"] == 77


def test_splits_and_steps_are_different_rows() -> None:
    problem = RecallProblem()
    data = problem.load(0)
    assert not torch.equal(data.valid[0], data.test[0])
    assert torch.equal(problem.load(1).test[0], data.test[0])  # seeds pair over items
    first, second = (problem.rows(32, stream(0, f"data/{i}"))[0] for i in (0, 1))
    assert not torch.equal(first, second)


def test_the_floor_is_above_all_that_looks_nothing_up_and_the_card_says_it() -> None:
    problem = RecallProblem()
    data = problem.load(0)
    floor = problem.floors(data)["accuracy"]
    values = data.test[0][:, 1 : 2 * problem.pairs : 2]
    commonest = (values.unsqueeze(2) == values.unsqueeze(1)).sum(2).amax(1).double().mean().item() / problem.pairs
    assert data.facts["chance"] < commonest < floor.value < 0.5
    assert f"{floor.value:.3g}" in catalogue.problem("recall").caution
    alone = RecallProblem(pairs=1, length=8, vocab=16, test_sequences=50)
    assert alone.floors(alone.load(0))["accuracy"].value == 1.0  # one pair needs no key


@pytest.mark.parametrize("bad", [{"length": 31}, {"length": 16, "pairs": 8}, {"vocab": 8}, {"batch": 0}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ShapeError):
        RecallProblem(**bad)
