"""State in pinned memory for a CUDA device: what is refused without one, and what a medium is told of updates."""

from __future__ import annotations

import copy

import pytest
import torch
from offload_runs import FINE, batch, network, pair, same, train
from torch import Tensor, nn

from instar.errors import ShapeError, StoreError
from instar.optim.adamw import AdamW
from instar.optim.offload.calibration import calibrate
from instar.optim.offload.media import Throttled
from instar.optim.offload.pinned import Pinned
from instar.optim.offload.store import StoreSpec
from instar.optim.offloaded_adamw import OffloadedAdamW


class Told(Throttled):
    """Memory without stamps that is told of updates, as a device's is, and refuses what it was not told of."""

    stamped = False

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes, 1e12, 1e12)
        self.told = self.writes = self.cleared = 0

    def handed_on(self) -> None:
        self.told += 1

    def clear(self, buffer: Tensor) -> None:
        self.cleared += 1
        super().clear(buffer)

    def write(self, offset: int, buffer: Tensor) -> None:
        self.writes += 1
        assert self.told >= self.writes
        assert not bool(buffer[:64].any())  # what stamps would be in
        super().write(offset, buffer)


@pytest.mark.parametrize("schedule", ["interleaved", "sequential"])
def test_a_medium_is_told_of_every_update_before_it_is_stored(schedule: str) -> None:
    model, plain, other, ours = pair(schedule=schedule, **FINE)
    store = ours.engine.store
    store.medium.close()
    told = store.medium = Told(store.nbytes)
    train(model, plain, 3)
    train(other, ours, 3)
    state = copy.deepcopy(ours.state_dict())
    again = network()
    again.load_state_dict(other.state_dict())
    fresh = OffloadedAdamW(again, schedule=schedule, **FINE)
    fresh.engine.store.medium.close()
    fresh.engine.store.medium = Told(fresh.engine.store.nbytes)
    fresh.load_state_dict(state)
    train(model, plain, 2, first=3)
    train(other, ours, 2, first=3)
    train(again, fresh, 2, first=3)
    assert same(model, other)
    assert same(model, again)
    assert told.writes > ours.engine.division.streamed
    assert told.cleared == ours.engine.division.streamed  # nothing was written yet when each was first read


def test_pinned_memory_is_for_a_device() -> None:
    with pytest.raises(StoreError, match="parameters on a CUDA device; received cpu"):
        OffloadedAdamW(network(), store=StoreSpec(mode="pinned"))
    with pytest.raises(StoreError, match="parameters on a CUDA device; received cpu"):
        calibrate(StoreSpec(mode="pinned"))
    with pytest.raises(StoreError, match="needs a store with a name"):
        OffloadedAdamW(network(), store=StoreSpec("state", mode="pinned"), commit_every=1)
    with pytest.raises(ShapeError, match="on one device"):
        OffloadedAdamW([nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4, device="meta"))])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_memory_that_cannot_be_pinned_is_said() -> None:
    with pytest.raises(StoreError, match="4096 bytes of main memory cannot be pinned for cuda"):
        Pinned(4096, torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this has never been run")
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_on_a_device_it_learns_what_adamw_learns(ratio: float) -> None:
    model = network().cuda()
    other = copy.deepcopy(model)
    plain = AdamW(model)
    ours = OffloadedAdamW(other, store=StoreSpec(mode="pinned"), ratio=ratio, subgroup=700, buffers=2)
    for step in range(6):
        for one, optimiser in ((model, plain), (other, ours)):
            x, y = (part.cuda() for part in batch(step))
            nn.functional.mse_loss(one(x), y).backward()
            optimiser.step()
            optimiser.zero_grad()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    again = AdamW(other)
    again.load_state_dict(ours.state_dict())
