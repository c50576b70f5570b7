"""Functions as encoders: what they are given, what they may return, and when they count as another one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instar.encoders import of, open_encoder
from instar.errors import DataError, ModelError, UnknownNameError

CODE = """
import numpy as np
SCALE = 1.0
def embed(texts, kind="document", power=1.0):
    sign = 1.0 if kind == "query" else -1.0
    return np.array([[len(t) ** power, sign, SCALE, t.count("e")] for t in texts])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_a_function_in_a_file(file: Path) -> None:
    encoder = open_encoder(f"{file}:embed", {"batch": "2", "power": "0.5"})
    found = encoder.encode(["four", "nine char", "e"], "query")
    expected = np.array([[2, 1, 1, 0], [3, 1, 1, 1], [1, 1, 1, 1]], float)
    assert np.allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert encoder.encode(["four"], "document")[0, 1] < 0
    assert encoder.dim == 4


def test_its_fingerprint_follows_file_settings_and_vectors(file: Path) -> None:
    def opened(**settings: Any) -> str:
        return open_encoder(f"{file}:embed", settings).fingerprint

    first = opened()
    assert opened() == first == opened(batch=3)
    assert opened(power=2.0) != first
    file.write_text(CODE + "# a comment\n")
    assert opened() != first
    # The same code that reads another model: only the vector of the probe tells.
    scale = {"by": 1.0}
    weights = np.random.default_rng(0).normal(size=(2, 8))

    def reads(texts: list[str]) -> Any:
        return np.array([weights[0] + scale["by"] * weights[1] for _ in texts])

    before = of(reads).fingerprint
    assert of(reads).fingerprint == before
    scale["by"] = -1.0
    assert of(reads).fingerprint != before


@pytest.mark.parametrize("made", [np.asarray, torch.tensor, list, lambda rows: np.asarray(rows, np.float16)])
def test_what_a_function_may_return(made: Any) -> None:
    found = of(lambda texts: made([[3.0, 4.0] for _ in texts])).encode(["a", "b"])
    assert found.dtype == np.float32
    assert np.allclose(found, [[0.6, 0.8]] * 2, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda texts: [[1.0]] * (len(texts) + 1), r"\[2, 1\].*for 1 texts"),
        (lambda texts: [1.0] * len(texts), "a row for each text"),
        (lambda texts: None, "must return numbers"),
        (lambda texts: [["x"]] * len(texts), "must return numbers"),
        (lambda texts: [[0.0, 0.0]] * len(texts), "zero"),
        (lambda texts: [[float("nan"), 1.0]] * len(texts), "NaN"),
        (lambda texts: [[1e300]] * len(texts), "infinite"),
        (lambda texts: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_what_a_function_may_not_return(function: Any, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        of(function)


def test_a_width_that_changes_and_a_late_nan() -> None:
    widths = itertools.chain([2, 2], itertools.repeat(3))
    with pytest.raises(ModelError, match="not 2 each"):
        of(lambda texts: np.ones((len(texts), next(widths))), settings={"batch": 1}).encode(["a", "b"])
    encoder = of(lambda texts: [[np.nan if "bad" in t else 1.0, 0.5] for t in texts])
    with pytest.raises(ModelError, match="text 2: 'bad one'"):
        encoder.encode(["good", "bad one"])


def test_wrong_names(file: Path) -> None:
    with pytest.raises(UnknownNameError, match="power"):
        open_encoder(f"{file}:embed", {"powr": 2})
    with pytest.raises(UnknownNameError, match="embed"):
        open_encoder(f"{file}:embedd")
    with pytest.raises(DataError, match="no file"):
        open_encoder("nowhere.py:embed")
    with pytest.raises(ModelError, match="name a function"):
        open_encoder(f"{file}:SCALE")
