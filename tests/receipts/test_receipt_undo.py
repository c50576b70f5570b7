"""Undo to the bit, last in first out, refused when the model changed since."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from made_updates import DOWN, DTYPES, attach, decoder, edit, grow, quantise
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from instar.checks.witness import contents, picture, require
from instar.errors import ReceiptError
from instar.receipt import updating
from instar.receipts import bits


def test_bits_of_every_type_come_back() -> None:
    model = nn.Module()
    for dtype in DTYPES:
        if dtype == torch.bool:
            raw = (torch.arange(6) % 2).bool()
        else:
            raw = torch.randint(0, 256, (6 * dtype.itemsize,), dtype=torch.uint8).view(dtype)
        model.register_buffer("of_" + str(dtype).removeprefix("torch."), raw.view(2, 3), persistent="8" not in str(dtype))
    # Quiet and signalling NaNs with payloads, −0.0, infinities.
    odd = torch.tensor([0x7FC12345, 0x7F812345, -0x00400001, -0x80000000, 0x7F800000], dtype=torch.int32)
    model.odd = nn.Parameter(odd.view(torch.float32).clone())
    model.scalar = nn.Parameter(torch.tensor(-0.0, dtype=torch.bfloat16))
    model.empty = nn.Parameter(torch.empty(0, 4))
    model.strided = nn.Parameter(torch.randn(4, 6).t())
    before = picture(model)
    with updating(model, method="noise") as update:
        for tensor in [*model.parameters(), *model.buffers()]:
            bits.bits(tensor.data).bitwise_xor_(1)
    receipt = update.receipt
    after = picture(model)
    assert len(receipt.changes) == len(DTYPES) + 3  # all but the empty one
    receipt.undo()
    require(model, before, "After undo")
    receipt.apply()
    require(model, after, "After apply")


def test_what_a_receipt_says(tmp_path: Path) -> None:
    model = decoder()
    first = edit(model)
    assert [change.name for change in first.changes] == [DOWN, "embedding.weight"]
    assert first.nbytes == 4 * (24 * 16 + 40 * 16)
    assert first.seconds > 0
    assert first.facts.settings == {"by": 0.1}
    assert not first.facts.structural
    second = attach(model)
    assert second.facts.parent == first.id
    assert second.facts.base == first.facts.after
    assert second.facts.structural
    assert second.facts.moved["blocks.0.feed.up.weight"] == "blocks.0.feed.up.base.weight"
    assert {change.name for change in second.changes} == {f"blocks.{i}.feed.up.{n}" for i in (0, 1) for n in ("low", "steps")}
    assert second.id in repr(second)
    json.dumps(second.facts.json())


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    before = picture(model)
    with updating(model, method="edit", changes=["b.weight"]) as update, torch.no_grad():
        model["b"].weight.add_(1)
    assert [change.name for change in update.receipt.changes] == ["a.weight"]
    update.receipt.undo()
    assert model["b"].weight is model["a"].weight
    require(model, before, "After undo")


def test_memory_shared_by_different_parameters_stays_shared() -> None:
    model = nn.Module()
    whole = torch.arange(8.0)
    model.left, model.right = nn.Parameter(whole[:5]), nn.Parameter(whole[3:])
    before = picture(model)
    with updating(model, method="edit") as update, torch.no_grad():
        model.left.mul_(-1)
        model.right = nn.Parameter(model.right.data.add_(7))  # another object on the same memory
    after = picture(model)
    update.receipt.undo()
    require(model, before, "After undo")
    assert model.left.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    update.receipt.apply()
    require(model, after, "After apply")


def test_the_optimiser_learns_which_parameters_were_replaced() -> None:
    model = decoder()
    old = model.blocks[0].feed.down.weight, model.blocks[1].feed.down.weight
    receipt = grow(model)
    assert {id(a): id(b) for a, b in receipt.replaced()} == {
        id(o): id(block.feed.down.weight) for o, block in zip(old, model.blocks, strict=True)
    }


def test_undo_follows_a_model_that_was_moved() -> None:
    model = decoder()
    before = contents(model)
    receipt = edit(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # what model.to(device) does
    receipt.undo()
    assert all(content == before[name][2] for name, (_, _, content) in contents(model).items())


def test_undo_is_refused_when_objects_were_replaced_by_equal_ones() -> None:
    model = decoder()
    receipt = edit(model)
    model.blocks[0].feed.down.weight = nn.Parameter(model.blocks[0].feed.down.weight.detach().clone())
    with pytest.raises(ReceiptError, match="replaced"):
        receipt.undo()


def test_undo_is_refused_when_what_the_receipt_holds_was_written() -> None:
    model = decoder()
    held = model.blocks[0].feed.down
    receipt = quantise(model)
    with torch.no_grad():
        held.weight.add_(1)
    with pytest.raises(ReceiptError, match="somebody else"):
        receipt.undo()


def test_a_receipt_holds_the_difference_and_not_the_model() -> None:
    model = decoder()
    receipt = edit(model)
    assert sum(slot.copy is not None for slot in receipt._sides.before) == 2
    assert len(receipt._sides.after) == 2
    del model
    gc.collect()
    with pytest.raises(ReceiptError, match="no model"):
        receipt.undo()


def test_parts_of_tensor_subclasses() -> None:
    model = nn.Module()
    model.x = nn.Parameter(TwoTensor(torch.zeros(3), torch.ones(3)), requires_grad=False)
    model.y = nn.Parameter(torch.zeros(3))
    before = model.x
    with updating(model, method="swap", changes=()) as update:
        model.y = nn.Parameter(TwoTensor(torch.zeros(3), torch.ones(3)), requires_grad=False)
    with pytest.raises(ReceiptError, match="subclass"):
        update.receipt.values("after")
    update.receipt.undo()
    assert model.x is before
    assert type(model.y.data) is Tensor
