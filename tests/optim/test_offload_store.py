"""The store of offloaded state: what a commit leads back to, and what is refused and stays as it is."""

from __future__ import annotations

import copy
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from offload_runs import FINE, network, same, train
from torch import nn

from instar.errors import CheckpointError, OutputError, StoreError
from instar.optim.offload.store import StoreSpec
from instar.optim.offloaded_adamw import OffloadedAdamW


def opened(path: Path, model: nn.Module | None = None, **arguments: Any) -> tuple[nn.Module, OffloadedAdamW]:
    model = network() if model is None else model
    return model, OffloadedAdamW(model, store=path, **{**FINE, **arguments})


@pytest.mark.parametrize("mode", ["buffered", "direct", "mmap"])
@pytest.mark.parametrize("arguments", [{}, {"ratio": 0.0}, {"ratio": 1.0, "schedule": "sequential"}])
def test_a_run_goes_back_to_its_last_commit(mode: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = network()
    through = OffloadedAdamW(whole, **FINE)
    train(whole, through, 9)
    spec = StoreSpec(tmp_path / "state", mode)
    model = network()
    ours = OffloadedAdamW(model, store=spec, **{**FINE, **arguments})
    train(model, ours, 3)
    ours.commit({"epoch": 1})
    train(model, ours, 1, 3)
    ours.commit({"epoch": 2, "words": ["β", None]})
    train(model, ours, 2, 4)  # lost
    ours.close()
    fresh = network()
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    again = OffloadedAdamW(fresh, lr=9.0, store=spec, **{**FINE, **arguments})
    assert (again.made, again.payload) == (4, {"epoch": 2, "words": ["β", None]})
    assert again.param_groups[0]["lr"] == 1e-3
    train(fresh, again, 5, 4)
    assert same(whole, fresh)
    again.close()


def test_a_commit_is_made_every_so_many_steps(tmp_path: Path) -> None:
    model, ours = opened(tmp_path / "state", commit_every=2)
    train(model, ours, 5)
    ours.close()
    _, again = opened(tmp_path / "state")
    assert again.made == 4


def test_a_store_of_another_model_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "state"
    model, ours = opened(path)
    train(model, ours, 1)
    ours.commit()
    ours.close()
    before = path.read_bytes()
    torch.manual_seed(0)
    turned = nn.Sequential(nn.Linear(70, 24), nn.Tanh(), nn.LayerNorm(24))
    for other, arguments in ((turned, {}), (network(), {"subgroup": 800}), (network(torch.float64), {})):
        weights = [p.detach().clone() for p in other.parameters()]
        with pytest.raises(StoreError, match="Nothing was changed"):
            opened(path, other, **arguments)
        assert all(torch.equal(a, b) for a, b in zip(weights, other.parameters(), strict=True))
    assert path.read_bytes() == before


def test_equal_sizes_are_not_taken_for_the_same_model(tmp_path: Path) -> None:
    wide, high = nn.Parameter(torch.ones(4, 9)), nn.Parameter(torch.ones(9, 4))
    ours = OffloadedAdamW([wide], store=tmp_path / "state")
    ours.commit()
    ours.close()
    with pytest.raises(StoreError, match="another model, or of other subgroups"):
        OffloadedAdamW([high], store=tmp_path / "state")
    OffloadedAdamW([wide], store=tmp_path / "state")


def test_truncated_foreign_and_busy_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    model, ours = opened(path)
    train(model, ours, 1)
    ours.commit()
    with pytest.raises(StoreError, match="in use by another"):
        opened(path)
    ours.close()
    size = path.stat().st_size
    os.truncate(path, size - 4096)
    with pytest.raises(StoreError, match="truncated"):
        opened(path)
    path.write_bytes(b"something else" * 10)
    with pytest.raises(StoreError, match="Nothing was changed"):
        opened(path)
    path.write_bytes(b"x" * size)
    with pytest.raises(StoreError, match="no store of optimiser state"):
        opened(path)
    assert path.read_bytes() == b"x" * size


@pytest.mark.parametrize("which", ["state", "weights"])
def test_a_damaged_extent_is_found_before_a_parameter_changes(which: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    model, ours = opened(path)
    train(model, ours, 1)
    ours.commit()
    store, last = ours.engine.store, ours.engine.division.count - 1
    if which == "state":
        place = store._place(last, store._committed[last])
    else:
        place = store._weights_place(last, store._weights_slot[last])
    ours.close()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(64))
    fresh = network()
    before = [p.detach().clone() for p in fresh.parameters()]
    with pytest.raises(StoreError, match="damaged"):
        opened(path, fresh)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True))


def test_a_torn_record_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state"
    model, ours = opened(path)
    for step in range(2):
        train(model, ours, 1, step)
        ours.commit()
    place = ours.engine.store.sequence % 2 * ours.engine.store._record_bytes
    ours.close()
    with path.open("r+b") as file:
        file.seek(place + 60)
        file.write(b"torn")
    _, again = opened(path)
    assert again.made == 1


@pytest.fixture
def small_files() -> Iterator[int]:
    """The process may write no byte beyond this size of a file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield 50_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_found_before_training(small_files: int, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no room for"):
        opened(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_store_with_a_name_takes_no_further_group(tmp_path: Path) -> None:
    model, ours = opened(tmp_path / "state")
    with pytest.raises(StoreError, match="save"):
        ours.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    ours.close()
    with pytest.raises(StoreError, match="store with a name"):
        OffloadedAdamW(model).commit()


def test_a_copy_is_refused() -> None:
    with pytest.raises(CheckpointError, match="cannot be copied or pickled"):
        copy.deepcopy(OffloadedAdamW(network()))


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_commit_that_is_cut_off_at_its_end_is_the_last_thing_that_is_written(ratio: float, tmp_path: Path) -> None:
    model, ours = opened(tmp_path / "state", ratio=ratio)
    train(model, ours, 2)
    ours.commit({"epoch": 1})
    train(model, ours, 1, 2)
    medium, syncs = ours.engine.store.medium, iter((False, True))
    durable = medium.sync

    def interrupted() -> None:
        durable()
        if next(syncs):  # the record is on the disk, and nobody is told
            raise KeyboardInterrupt

    medium.sync = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ours.commit({"epoch": 2})
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(StoreError, match="nothing is written any more"):
        train(model, ours, 1, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    ours.save(tmp_path / "now.safetensors")
    ours.close()
    fresh, again = opened(tmp_path / "state", ratio=ratio)
    assert again.payload == {"epoch": 2}
    assert same(model, fresh)


def test_an_export_onto_a_disk_that_fills_up_leaves_the_old_file(small_files: int, tmp_path: Path) -> None:
    """The limit cuts the last write in two: it takes a part of what it is given, and does not fail."""
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"old")
    weight = nn.Parameter(torch.zeros(small_files // 4, dtype=torch.bfloat16))
    ours = OffloadedAdamW([weight], store=StoreSpec(mode="throttled"), ratio=0.0, subgroup=small_files)
    weight.grad = torch.ones_like(weight)
    ours.step()
    with pytest.raises(OutputError, match="unchanged"):
        ours.save(path)
    assert path.read_bytes() == b"old"
