"""Composed clips: what a clip holds, frame by frame, no image in two splits, order, and the classifier around a mixer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.data import clips as module
from instar.data.clips import compose
from instar.errors import DataError, ShapeError
from instar.interfaces import Data
from instar.problems.clips import ClipsProblem

SMALL: dict[str, Any] = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "batch": 16,
    "frames": 8,
    "moving": True,
    "train_items": 300,
    "valid_items": 20,
}
PATCH, CELLS = 4, 3


@pytest.fixture(scope="module")
def problem() -> ClipsProblem:
    return ClipsProblem(**SMALL, test_items=40)


@pytest.fixture(scope="module")
def data(problem: ClipsProblem) -> Data:
    return problem.load(0)


def frames_of(row: np.ndarray, frames: int) -> np.ndarray:
    """Tokens [T, P] as pictures [frames, 12, 12]."""
    cells = row.reshape(frames, CELLS, CELLS, PATCH, PATCH)
    return cells.transpose(0, 1, 3, 2, 4).reshape(frames, CELLS * PATCH, CELLS * PATCH)


def whole(picture: np.ndarray, images: np.ndarray) -> list[tuple[int, int, int]]:
    """Which images stand in a picture, and where."""
    found = []
    for top in range(PATCH + 1):
        for left in range(PATCH + 1):
            inside = picture[top : top + 8, left : left + 8]
            if inside.sum() == picture.sum():
                found += [(int(i), top, left) for i in np.flatnonzero((images == inside).all((1, 2)))]
    return found


def test_a_digit_moves_through_its_frames_and_all_else_is_clutter(data: Data) -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    for split in (data.train, data.test):
        for n in range(12):
            pictures, begin = frames_of(split.rows[n], 8), int(split.begins[n, 0])
            stood = [whole(picture, images) for picture in pictures]
            assert [bool(s) for s in stood] == [begin <= t < begin + 3 for t in range(8)]
            places = [
                {(top, left) for i, top, left in s if digits.target[i] == split.labels[n]} for s in stood[begin : begin + 3]
            ]
            assert all(places)
            moves = [(a, b) for one, other in itertools.pairwise(places) for a in one for b in other]
            assert any(a != b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1 for a, b in moves)


def test_ink_does_not_tell_the_digit_from_the_clutter() -> None:
    digits = load_digits()
    made = compose(
        digits.images.astype(np.uint8), digits.target, 600, frames=8, shown=4, targets=1, patch=PATCH, moving=True, seed=0
    )
    ink = made.tokens.reshape(600, 8, -1).mean(-1)
    shown = (np.arange(8) >= made.begins) & (np.arange(8) < made.begins + 4)
    assert ink[shown].mean() == pytest.approx(ink[~shown].mean(), rel=0.02)


def test_no_image_is_in_two_splits(problem: ClipsProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[bytes]] = []

    def spy(pixels: np.ndarray, *args: Any, **options: Any) -> module.Composed:
        given.append({image.tobytes() for image in pixels})
        return compose(pixels, *args, **options)

    monkeypatch.setattr(module, "compose", spy)
    problem.load(0)
    assert len(given) == 3
    assert sum(map(len, given)) == len(set().union(*given)) == len({i.tobytes() for i in load_digits().images.astype(np.uint8)})


def test_all_seeds_have_the_same_clips_and_settings_other_ones(data: Data) -> None:
    assert ClipsProblem(**SMALL, test_items=40).load(1).sha256 == data.sha256
    assert ClipsProblem(**SMALL, test_items=40, shown=2).load(0).sha256 != data.sha256


def test_the_label_is_the_digit_that_comes_first() -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    problem = ClipsProblem(**{**SMALL, "frames": 12, "targets": 2, "train_items": 30})
    split = problem.load(0).train
    for n in range(30):
        begins = split.begins[n]
        assert begins[1] - begins[0] >= 3
        pictures = frames_of(split.rows[n], 12)
        classes = [{int(digits.target[i]) for i, _, _ in whole(pictures[b], images)} for b in begins]
        assert int(split.labels[n]) in classes[0]
        assert classes[0] != classes[1]


def test_tokens_are_grey_values_up_to_one(data: Data) -> None:
    tokens, mask, labels = data.test.batch([3, 1])
    assert mask is None
    assert tokens.shape == (2, 8 * CELLS * CELLS, PATCH * PATCH)
    assert float(tokens.max()) == 1.0
    torch.testing.assert_close(tokens[1], torch.from_numpy(data.test.rows[1]).float() / 16)
    assert labels.tolist() == [data.test.labels[3], data.test.labels[1]]


@pytest.mark.parametrize("method", ["selective_s4", "softmax"])
def test_mixers_of_either_kind_learn_on_them(method: str) -> None:
    """Where every frame shows the digit."""
    problem = ClipsProblem(**{**SMALL, "frames": 4, "shown": 4, "moving": False, "lr": 1e-2}, test_items=100)
    data = problem.load(0)
    model = lift(problem, method, {"state_size": 4} if "s4" in method else {}, data, 0)
    problem.fit(model, data.train, steps=60, seed=0)
    found = problem.evaluate(model, data.test)["accuracy"]
    assert found.value > 2 * data.facts["accuracy_of_the_majority_class"]
    assert sum(found.weights) == data.facts["test_clips"] == 100  # clips of one image are one item
    assert len(found.totals) == data.facts["test_items"] == len(np.unique(data.test.images)) < 100


def test_cells_and_frames_are_told_apart(problem: ClipsProblem, data: Data) -> None:
    embedding = problem.embedding()
    with torch.no_grad():
        y = embedding(torch.zeros(1, 8 * CELLS * CELLS, PATCH * PATCH))[0]
    assert len({tuple(row) for row in y.tolist()}) == len(y)


def test_costs_name_every_metric_of_the_card(problem: ClipsProblem, data: Data) -> None:
    found = costs.measure(problem, lift(problem, "s4", {"state_size": 4}, data, 0), data, 0)
    wanted = {m.id for m in catalogue.problem("clips").metrics if m.kind == "cost"}
    assert wanted == {name for name in found if "." not in name}


@pytest.mark.parametrize("bad", [{"frames": 0}, {"batch": 0}, {"shown": 0}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="received"):
        ClipsProblem(**bad)


def test_clips_that_cannot_be_composed(tmp_path: Any) -> None:
    for wrong in ({"patch": 3}, {"frames": 4, "targets": 2}):
        with pytest.raises(ShapeError, match="received"):
            ClipsProblem(**wrong).load(0)
    np.savez(tmp_path / "own.npz", images=np.zeros((9, 8, 8), dtype=np.uint8), labels=np.arange(9) % 2)
    with pytest.raises(DataError, match="too few"):
        ClipsProblem(data=str(tmp_path / "own.npz"), targets=2).load(0)
    sizes: dict[str, Any] = {"frames": 8, "shown": 2, "targets": 2, "patch": 4, "moving": False, "seed": 0}
    with pytest.raises(DataError, match="different classes"):
        compose(np.zeros((5, 8, 8), dtype=np.uint8), np.zeros(5, dtype=int), 2, **sizes)
