"""Images as sequences: real digits in their order of pixels, files of the user's own, and files that are none."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.data import images as module
from instar.errors import DataError, ShapeError
from instar.interfaces import Data
from instar.problems.pixels import PixelsProblem

SMALL = {"width": 16, "depth": 1, "heads": 2, "batch": 16}


@pytest.fixture(scope="module")
def problem() -> PixelsProblem:
    return PixelsProblem(**SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(problem: PixelsProblem) -> Data:
    return problem.load(0)


def test_every_digit_is_in_one_split_row_by_row(data: Data) -> None:
    splits = (data.train, data.valid, data.test)
    assert [len(split) for split in splits] == [1259, 179, 359]
    given = load_digits()
    wanted = sorted((label, image.astype(np.uint8).tobytes()) for image, label in zip(given.images, given.target, strict=True))
    found = [(label, row.tobytes()) for split in splits for row, label in zip(split.rows, split.labels.tolist(), strict=True)]
    assert sorted(found) == wanted
    assert PixelsProblem(**SMALL).load(1).sha256 == data.sha256  # type: ignore[arg-type]


def test_no_mask_where_all_are_of_one_length(data: Data) -> None:
    tokens, mask, labels = data.test.batch([3, 1])
    assert mask is None
    assert tokens.tolist() == [data.test.rows[3].tolist(), data.test.rows[1].tolist()]
    assert labels.tolist() == [data.test.labels[3], data.test.labels[1]]


def test_a_few_steps_find_more_than_the_floor(data: Data) -> None:
    problem = PixelsProblem(**{**SMALL, "lr": 1e-2})  # type: ignore[arg-type]
    model = lift(problem, "gru", {}, data, 0)
    problem.fit(model, data.train, steps=80, seed=0)
    found = problem.evaluate(model, data.test)["accuracy"]
    assert list(found.weights) == [1.0] * data.facts["test_items"]
    assert found.value > 2 * data.facts["accuracy_of_the_majority_class"]


def test_costs_name_every_metric_of_the_card(problem: PixelsProblem, data: Data) -> None:
    found = costs.measure(problem, lift(problem, "gla", {}, data, 0), data, 0)
    wanted = {m.id for m in catalogue.problem("pixels").metrics if m.kind == "cost"}
    assert wanted == {name for name in found if "." not in name}


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    pixels = np.arange(30 * 3 * 5, dtype=np.uint8).reshape(30, 3, 5)
    labels = np.tile([7, -2, 40], 10)
    np.savez(tmp_path / "own.npz", images=pixels, labels=labels)
    problem = PixelsProblem(data=str(tmp_path / "own.npz"), **SMALL)  # type: ignore[arg-type]
    data = problem.load(0)
    assert (problem.length, problem.classes, data.facts["test_items"]) == (15, 3, 6)
    logits = lift(problem, "softmax", {}, data, 0)(torch.from_numpy(np.stack(data.test.rows)).long())
    assert logits.shape == (6, 3)
    known = {row.tobytes(): label for row, label in zip(pixels.reshape(30, 15), labels.tolist(), strict=True)}
    for row, label in zip(data.test.rows, data.test.labels.tolist(), strict=True):
        assert [-2, 7, 40][label] == known[row.tobytes()]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((30, 2, 2)), np.zeros(30, dtype=int), "uint8"),
        (np.zeros((30, 4), dtype=np.uint8), np.zeros(30, dtype=int), "height, width"),
        (np.zeros((30, 2, 2), dtype=np.uint8), np.zeros(29, dtype=int), r"\[29\]"),
        (np.zeros((30, 2, 2), dtype=np.uint8), np.zeros(30), "float64"),
        (np.zeros((0, 2, 2), dtype=np.uint8), np.zeros(0, dtype=int), "empty"),
        (np.zeros((30, 2, 2), dtype=np.uint8), np.zeros(30, dtype=int), "nothing to tell apart"),
        (np.zeros((9, 2, 2), dtype=np.uint8), np.arange(9) % 2, "9 images are too few"),
        (np.array([{"a": 1}] * 30), np.zeros(30, dtype=int), "cannot be read"),
    ],
)
def test_files_that_do_not_fit(images: np.ndarray, labels: np.ndarray, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    with pytest.raises(DataError, match=words):
        PixelsProblem(data=str(tmp_path / "own.npz")).load(0)


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.npz"
    with pytest.raises(DataError, match="cannot be read"):
        module.images(str(path))
    path.write_text("text")
    with pytest.raises(DataError, match="cannot be read"):
        module.images(str(path))
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(DataError, match="images"):
        module.images(str(path))
    np.savez_compressed(path, images=np.arange(9000, dtype=np.uint8).reshape(-1, 3, 3), labels=np.arange(1000) % 2)
    whole = path.read_bytes()
    for seed in range(8):  # what is damaged may be a header, a table of codes or a sum
        spoilt = np.frombuffer(whole, dtype=np.uint8).copy()
        spoilt[np.random.default_rng(seed).integers(45, 300, 6)] ^= 0x55
        path.write_bytes(spoilt.tobytes())
        with pytest.raises(DataError, match="cannot be read"):
            module.images(str(path))
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**4, 10**4)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot be read"):
        module.images(str(path))
    monkeypatch.setattr(module, "_LARGEST", 1000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(10_000))
    with pytest.raises(DataError, match="unpacks to 10000 bytes"):
        module.images(str(path))


def test_mnist_is_the_pinned_file_or_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.environ.get("INSTAR_DATA")
    monkeypatch.delenv("INSTAR_DATA", raising=False)
    with pytest.raises(DataError, match="set INSTAR_DATA"):
        module.images("mnist")
    monkeypatch.setenv("INSTAR_DATA", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / module.MNIST).write_bytes(b"another file")
    with pytest.raises(DataError, match="not the pinned file"):
        module.images("mnist")
    if real is None or not (Path(real) / module.MNIST).is_file():
        pytest.skip(f"INSTAR_DATA holds no {module.MNIST}")
    monkeypatch.setenv("INSTAR_DATA", real)
    found = module.images("mnist")
    assert found.pixels.shape == (10_000, 28, 28)
    assert found.classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("bad", [{"batch": 0}, {"depth": 0}, {"heads": -1}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="received"):
        PixelsProblem(**bad)  # type: ignore[arg-type]
