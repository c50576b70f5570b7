"""Updates are all or nothing, and write only what they declare."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from made_updates import DOWN, UPDATES, attach, decoder, edit, edit_undeclared, grow
from torch import Tensor, nn

from instar.checks.witness import Interrupt, contents, picture, require
from instar.errors import ReceiptError, UnknownNameError
from instar.receipt import Receipt, updating
from instar.receipts import bits


@pytest.mark.parametrize("update", UPDATES, ids=lambda u: u.__name__)
def test_an_interrupt_at_every_tenth_operation_leaves_the_model_as_it_was(update: Callable[[nn.Module], Receipt]) -> None:
    counter, model = Interrupt(-1), decoder()
    with counter:
        update(model)
    model = decoder()
    before = picture(model)
    for at in range(0, counter.seen, max(1, counter.seen // 10)):
        with pytest.raises(KeyboardInterrupt), Interrupt(at):
            update(model)
        require(model, before, f"After an interrupt at {at}")
    update(model).undo()
    require(model, before, "After all")


@pytest.mark.parametrize("way", ["undo", "apply"])
@pytest.mark.parametrize("update", [edit, edit_undeclared, attach, grow], ids=lambda u: u.__name__)
def test_a_failure_at_every_write_of_undo_and_apply_is_taken_back(
    update: Callable[[nn.Module], Receipt], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instar.receipts.snapshot import Slot
    from instar.receipts.structure import Difference

    model = decoder()
    before = picture(model)
    receipt = update(model)
    after = picture(model)
    if way == "apply":
        receipt.undo()
    calls = {"seen": 0, "fail": -1}

    def failing(original: Callable) -> Callable:
        def put(*args: object) -> object:
            calls["seen"] += 1
            result = original(*args)
            if calls["seen"] == calls["fail"]:
                raise MemoryError("injected")
            return result

        return put

    for cls in (Slot, Difference):
        monkeypatch.setattr(cls, "put", failing(cls.put))
    at = 0
    while True:
        at += 1
        calls.update(seen=0, fail=at)
        try:
            getattr(receipt, way)()
        except MemoryError:
            require(model, after if way == "undo" else before, f"After a failure at write {at}")
            assert receipt.standing == (way == "undo")
        else:
            break
    assert at > 1
    require(model, before if way == "undo" else after, f"After {way}")


def test_ctrl_c_while_the_model_is_put_back_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    before = picture(model)
    receipt = edit(model)
    original = bits.write

    def pressing(tensor: Tensor, kept: bits.Copy) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(tensor, kept)

    monkeypatch.setattr(bits, "write", pressing)
    with pytest.raises(KeyboardInterrupt):
        receipt.undo()
    require(model, before, "After the interrupted undo")
    assert not receipt.standing


def test_an_undeclared_write_is_refused_and_named() -> None:
    model = decoder()
    before = contents(model)

    @torch.no_grad()
    def careless() -> None:
        with updating(model, method="edit", changes=[DOWN]):
            model.blocks[0].feed.down.weight.add_(1)
            model.norm.weight.add_(1)

    with pytest.raises(ReceiptError, match=r"norm\.weight was written .* no copy") as caught:
        careless()
    assert "Load the model again" in str(caught.value)
    differ = [name for name, (_, _, content) in contents(model).items() if content != before[name][2]]
    assert differ == ["norm.weight"]


def test_tensors_are_declared_on_the_way() -> None:
    model = decoder()
    before = picture(model)
    with updating(model, method="edit", changes=()) as update, torch.no_grad():
        update.declare("norm.weight")
        model.norm.weight.add_(1)
        with pytest.raises(UnknownNameError, match=r"norm\.weight"):
            update.declare("norm.wieght")
        with pytest.raises(ReceiptError, match="ended"):
            _ = update.receipt
    update.receipt.undo()
    require(model, before, "After undo")
    with pytest.raises(ReceiptError, match="has ended"):
        update.declare("norm.weight")

    @torch.no_grad()
    def too_late() -> None:
        with updating(model, method="edit", changes=()) as update:
            model.norm.weight.add_(1)
            update.declare("norm.weight")

    with pytest.raises(ReceiptError, match="no copy") as caught:
        too_late()
    assert "Declare a tensor first" in str(caught.value.__cause__)


def test_what_cannot_be_kept_is_refused_before_anything_happens() -> None:
    model = decoder()
    for settings_ in ({"x": float("nan")}, {"x": torch.zeros(1)}, [1]):
        with pytest.raises(ReceiptError, match="settings"), updating(model, method="edit", settings=settings_):
            raise AssertionError
    with pytest.raises(UnknownNameError, match="Did you mean"), updating(model, method="edit", changes=["norm.weigth"]):
        raise AssertionError
    with pytest.raises(ReceiptError, match="meta"), updating(nn.Linear(2, 2, device="meta"), method="edit"):
        raise AssertionError


def test_updates_inside_an_update() -> None:
    model = decoder()
    before = picture(model)
    older = edit(model)
    with updating(model, method="outer") as outer:
        with pytest.raises(ReceiptError, match="under way"):
            older.undo()
        edit(model).undo()
        inner = attach(model)
    with pytest.raises(ReceiptError, match="part of a larger update"):
        inner.undo()
    outer.receipt.undo()
    with pytest.raises(ReceiptError, match="part of a larger update"):
        inner.undo()
    with pytest.raises(ReceiptError, match="part of a larger update"):
        inner.apply()
    older.undo()
    require(model, before, "After all")


class CtrlC:
    """Presses Ctrl-C before the given line of Python inside the receipts' own code; counts the lines."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __enter__(self) -> CtrlC:
        sys.settrace(self._call)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        return self._line if Path(frame.f_code.co_filename).parent.name == "receipts" else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable:
        if event == "line":
            self.seen += 1
            if self.seen == self.at:
                signal.raise_signal(signal.SIGINT)
        return self._line


@pytest.mark.parametrize("way", ["undo", "apply"])
@pytest.mark.parametrize("update", [edit_undeclared, attach, grow], ids=lambda u: u.__name__)
def test_ctrl_c_at_any_line_leaves_one_state_or_the_other(update: Callable[[nn.Module], Receipt], way: str) -> None:
    model = decoder()
    before = picture(model)
    receipt = update(model)
    after = picture(model)
    back = {"undo": "apply", "apply": "undo"}[way]
    if way == "apply":
        receipt.undo()
    with CtrlC(-1) as counter:
        getattr(receipt, way)()
    for at in random.Random(0).sample(range(1, counter.seen), 12):
        if receipt.standing == (way == "apply"):
            getattr(receipt, back)()
        with pytest.raises(KeyboardInterrupt), CtrlC(at):
            getattr(receipt, way)()
        require(model, after if receipt.standing else before, f"After Ctrl-C at line {at} of {way}")
