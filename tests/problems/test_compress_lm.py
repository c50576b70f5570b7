"""The problem of compressed language models: likelihoods are those of the model, windows do not overlap."""

from __future__ import annotations

import pytest
import torch

from instar.checks.transform_models import conv1d
from instar.errors import ShapeError
from instar.problems.compress_lm import CompressLmProblem, Windows, nats


def test_nats_are_those_of_the_tokens_after_the_first() -> None:
    model = conv1d()
    if model is None:
        pytest.skip("transformers is not installed")
    tokens = torch.arange(24).view(2, 12) * 5 % 64
    found = nats(model, tokens)
    with torch.no_grad():
        loss = [float(model(row[None], labels=row[None]).loss) * 11 for row in tokens]
    assert found == pytest.approx(loss, rel=1e-5)
    problem = CompressLmProblem(windows=2, length=12)
    scored = problem.evaluate(type("Subject", (), {"model": model})(), Windows(tokens, [1.0, 2.0]))
    assert scored["nats@compressed"].value == pytest.approx(sum(loss) / 22, rel=1e-5)
    assert scored["nats@fp32"].value == pytest.approx(3 / 22)


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"windows": 0}, {"length": 1}):
        with pytest.raises(ShapeError, match="compress_lm expects"):
            CompressLmProblem(**wrong)
