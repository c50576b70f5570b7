"""Predictors in folders: every one of the catalogue comes back to the bit, and damaged or hostile folders are refused."""

from __future__ import annotations

import copy
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instar import catalogue
from instar.errors import CheckpointError, ShapeError, UnknownNameError
from instar.inference import saved
from instar.inference.ebt import Ebt
from instar.inference.looped import Looped
from instar.inference.unlooped import Unlooped
from instar.interfaces import Predictor
from instar.models import checkpoint
from instar.models.pretrained import CONFIG, WEIGHTS

PREDICTORS = [card.slug for card in catalogue.methods().values() if card.interface == "Predictor"]


def trained(model: Predictor) -> Predictor:
    """After a step of training, which moves what is learnt and what is counted."""
    x, target = model.example(2, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.AdamW(model.train().groups(1e-3))
    model.loss(x, target).backward()
    optimiser.step()
    return model.eval()


def built(cls: Any, **arguments: Any) -> Predictor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trained(cls(**arguments))


def answer(model: Predictor) -> list[Tensor]:
    x, _ = model.example(2, generator=torch.Generator().manual_seed(2))
    x = x if not x.is_floating_point() else x.to(next(model.parameters()).dtype)
    y, trace = model.predict(x, steps=2, generator=torch.Generator().manual_seed(3))
    return [y, trace.steps, *([] if trace.energies is None else [trace.energies])]


def same(one: Predictor, two: Predictor) -> None:
    assert type(one) is type(two)
    assert one.arguments == two.arguments
    wanted, found = one.state_dict(), two.state_dict()
    assert list(wanted) == list(found)
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name]), name
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in two.parameters()]
    for a, b in zip(answer(one), answer(two), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("slug", PREDICTORS)
def test_every_predictor_comes_back_to_the_bit(slug: str, tmp_path: Path) -> None:
    model = built(catalogue.get(slug))
    model.save(tmp_path / "new" / "folder")
    before = torch.get_rng_state()
    found = saved.load(tmp_path / "new" / "folder")
    assert torch.equal(before, torch.get_rng_state())
    assert not found.training
    same(model, found)
    trained(found)  # it goes on learning


def test_arguments_types_and_copies_are_kept(tmp_path: Path) -> None:
    s2 = catalogue.method("ebt").preset("s2_small")
    model = copy.deepcopy(built(Ebt, **{**s2, "width": 16, "heads": 2}).double())
    model.save(tmp_path)
    same(model, saved.load(tmp_path))
    other = built(Looped, width=16, heads=2, pre=1, post=1, steps=3, injection="gate", tolerance=0.1)
    other.save(tmp_path)  # over the first one
    found = saved.load(tmp_path)
    same(other, found)
    assert int(found.trained) == 1  # type: ignore[arg-type]
    built(Unlooped, width=16, heads=2).bfloat16().save(tmp_path)
    assert next(saved.load(tmp_path).parameters()).dtype == torch.bfloat16


class Stranger(Unlooped):
    pass


def test_what_nobody_could_load_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Stranger"):
        Stranger().save(tmp_path)
    odd = Unlooped()
    odd.arguments["depth"] = torch.tensor(3)
    with pytest.raises(ShapeError, match="saved"):
        odd.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    built(Unlooped, width=8, heads=2, depth=1).save(tmp_path)
    return tmp_path


def test_damaged_files_are_refused(folder: Path) -> None:
    config, weights = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
    for size in (0, 7, len(weights) // 2, len(weights) - 1):
        (folder / WEIGHTS).write_bytes(weights[:size])
        with pytest.raises(CheckpointError, match="Nothing was loaded"):
            saved.load(folder)
    (folder / WEIGHTS).write_bytes(pickle.dumps({"read_in.weight": [1.0]}))
    with pytest.raises(CheckpointError, match="Nothing was loaded"):
        saved.load(folder)
    (folder / WEIGHTS).write_bytes(weights)
    for size in (0, len(config) // 2):
        (folder / CONFIG).write_bytes(config[:size])
        with pytest.raises(CheckpointError, match="JSON"):
            saved.load(folder)
    tensors, _ = checkpoint.read(folder / WEIGHTS)
    (folder / CONFIG).write_bytes(config)
    checkpoint.write(folder / WEIGHTS, {name: value for name, value in tensors.items() if name != "norm.weight"})
    with pytest.raises(CheckpointError, match=r"norm\.weight is missing"):
        saved.load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="no file"):
        saved.load(folder)
    with pytest.raises(CheckpointError, match="no file"):
        saved.load(folder / "elsewhere")


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 10**9},
        {"width": 2**40},
        {"length": 2**62},
        {"width": 10**30},
        {"heads": 3},
        {"depth": 2},
        {"depth": -1},
        {"depth": "1"},
        {"width": [8]},
        {"init": {"a": 1}},
        {"init": "random"},
        {"__class__": "os.system"},
        {"self": 1},
    ],
    ids=str,
)
def test_hostile_arguments_cost_nothing(folder: Path, wrong: dict[str, Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["arguments"] |= wrong
    (folder / CONFIG).write_text(json.dumps(config))
    start = time.process_time()
    with pytest.raises(CheckpointError):
        saved.load(folder)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "config",
    [
        [],
        {},
        {"format": saved.FORMAT, "method": "unlooped"},
        {"format": saved.FORMAT, "method": "unlooped", "arguments": {}, "code": "print"},
        {"format": saved.FORMAT, "method": "unlooped", "arguments": []},
        {"format": "instar-predictor-9", "method": "unlooped", "arguments": {}},
        {"format": saved.FORMAT, "method": "softmax", "arguments": {"width": 8}},
        {"format": saved.FORMAT, "method": "ebt", "arguments": {"temperature": float("nan")}},
    ],
    ids=str,
)
def test_configs_of_another_kind_are_refused(folder: Path, config: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        saved.load(folder)


@pytest.mark.parametrize("name", ["no_such_method", "../../etc/passwd", "os:system"])
def test_unknown_methods_are_named(folder: Path, name: str) -> None:
    (folder / CONFIG).write_text(json.dumps({"format": saved.FORMAT, "method": name, "arguments": {}}))
    with pytest.raises((UnknownNameError, CheckpointError), match="method"):
        saved.load(folder)
