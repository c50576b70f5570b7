"""Logits of teachers on disk: exact, resumed, and never another model's or anybody's who altered the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instar.adapters.attached import own_layers, switch
from instar.checks.updater import world
from instar.compat import teacher
from instar.compat.teacher import DATA, FACTS, Teacher, logits
from instar.errors import DataError, DivergedError, ModelError, ShapeError

V = 23
ROWS = [([i % V, (3 * i) % V], [(7 * i + j) % V for j in range(1 + i % 4)]) for i in range(70)]  # three chunks of 32


class Counting(nn.Module):
    """A model that counts what it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, 0

    def forward(self, **given: Tensor) -> object:
        self.asked += len(given["input_ids"])
        return self.model(**given)


def whole(found: Teacher) -> Tensor:
    return found(range(len(ROWS)), 5)


def test_they_are_the_models_own(tmp_path: Path) -> None:
    model = world().new
    found = Teacher(model, ROWS, 0, tmp_path)
    for place in (0, 31, 32, 69):
        ids = torch.tensor([[*ROWS[place][0], *ROWS[place][1]]])
        alone = logits(model, ids, torch.ones_like(ids))[0, :-1]
        read = found([place], 5)[0]
        assert torch.allclose(read[: len(alone)], alone, atol=1e-6)
        assert bool((read[len(alone) :] == 0).all())
    assert found.nbytes == (tmp_path / DATA).stat().st_size == 4 * V * sum(len(a) + len(b) - 1 for a, b in ROWS)


def test_keeping_all_of_them_is_exact_and_keeping_some_keeps_their_mass(tmp_path: Path) -> None:
    model = world().old
    every = whole(Teacher(model, ROWS, 0, tmp_path / "every"))
    assert torch.equal(every, whole(Teacher(model, ROWS, 0, tmp_path / "v", keep=V)))
    some = Teacher(model, ROWS, 0, tmp_path / "k", keep=4)
    assert some.nbytes == (8 * 4 + 4) * sum(len(a) + len(b) - 1 for a, b in ROWS)
    few = whole(some)
    real = every.abs().sum(-1) > 0
    top = every[real].topk(4, dim=-1)
    assert torch.equal(few[real].gather(-1, top.indices), top.values)
    assert torch.equal(few[real].argmax(-1), every[real].argmax(-1))
    assert torch.allclose(few[real].logsumexp(-1), every[real].logsumexp(-1), atol=1e-5)
    rest = few[real].scatter(1, top.indices, -torch.inf)
    assert torch.allclose(rest.amax(-1).exp() * (V - 4), rest.exp().sum(-1), rtol=1e-5)  # the others are equal


def test_a_second_call_asks_nothing_and_an_interrupted_one_asks_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting(world().old)
    expected = whole(Teacher(model, ROWS, 0, tmp_path / "a"))
    first = model.asked
    assert torch.equal(whole(Teacher(model, ROWS, 0, tmp_path / "a")), expected)
    assert model.asked == first + 1  # one row tells how many tokens there are

    written: list[int] = []
    real = teacher.files.write

    def failing(path: Path, content: str | bytes) -> None:
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(teacher.files, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        Teacher(model, ROWS, 0, tmp_path / "b")
    monkeypatch.undo()
    before = model.asked
    assert torch.equal(whole(Teacher(model, ROWS, 0, tmp_path / "b")), expected)
    assert model.asked - before == 1 + len(ROWS) - 64  # two chunks stood


def test_what_was_altered_is_made_anew(tmp_path: Path) -> None:
    model = Counting(world().old)
    expected = whole(Teacher(model, ROWS, 0, tmp_path))
    data, facts = tmp_path / DATA, tmp_path / FACTS
    good, told = data.read_bytes(), json.loads(facts.read_text())
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for content, text in (
        (good[: len(good) // 2], None),  # truncated
        (good + b"more", None),
        (bytes(flipped), None),
        (b"", None),
        (good, "{"),
        (good, "[]"),
        (good, json.dumps({**told, "chunks": 3})),
        (good, json.dumps({**told, "chunks": [*told["chunks"], "0" * 64]})),
        (good, json.dumps({**told, "key": "0" * 64})),
        (good, "[" * 100_000),
        (np.full(len(good) // 4, np.nan, "<f4").tobytes(), None),
    ):
        data.write_bytes(content)
        facts.write_text(json.dumps(told) if text is None else text)
        assert torch.equal(whole(Teacher(model, ROWS, 0, tmp_path)), expected)
        assert data.read_bytes() == good
    data.unlink()
    assert torch.equal(whole(Teacher(model, ROWS, 0, tmp_path)), expected)


def test_other_models_adapters_rows_and_sizes_are_told_apart(tmp_path: Path) -> None:
    versions = world()
    plain = whole(Teacher(versions.new, ROWS, 0, tmp_path))
    for change in ("off", "adapter", "old", "rows", "keep"):
        model, rows, keep = versions.new, ROWS, None
        if change == "off":
            switch(model, None)
        elif change == "adapter":
            switch(model, "task")
            next(iter(own_layers(model, "task").values())).adapters["task"].lora_A.data[0, 0] += 1.0  # type: ignore[union-attr, operator]
        elif change == "old":
            model = versions.old
        elif change == "rows":
            rows = [ROWS[1], *ROWS[1:]]
        else:
            keep = 3
        found = whole(Teacher(model, rows, 0, tmp_path, keep=keep))
        assert not torch.equal(found, plain), change


def test_refusals(tmp_path: Path) -> None:
    model = world().old
    for rows in ([], [((1,), ())]):
        with pytest.raises(DataError, match="two tokens"):
            Teacher(model, rows, 0, tmp_path)
    with pytest.raises(ShapeError, match="keep"):
        Teacher(model, ROWS, 0, tmp_path, keep=V + 1)
    with pytest.raises(ModelError, match="knows 23"):
        Teacher(model, [((1, V), (2,))], 0, tmp_path)
    model.get_parameter("transformer.h.0.mlp.c_fc.weight").data.fill_(torch.nan)
    with pytest.raises(DivergedError, match="not finite"):
        Teacher(model, ROWS, 0, tmp_path)
