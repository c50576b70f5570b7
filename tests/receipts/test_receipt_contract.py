"""The contract of receipts: every kind of update passes, planted defects do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from made_updates import DOWN, UPDATES, Wrapped, decoder, edit, minilm
from torch import nn

from instar.checks.receipt import CONTRACT, check_receipts
from instar.checks.witness import flip
from instar.errors import ContractError
from instar.receipt import Receipt, updating


@pytest.mark.parametrize("update", UPDATES, ids=lambda u: u.__name__)
@pytest.mark.parametrize("check", CONTRACT, ids=lambda c: c.__name__)
def test_contract(check: Callable, update: Callable[[nn.Module], Receipt]) -> None:
    check(decoder, update)


def test_contract_on_a_trained_encoder() -> None:
    path = "encoder.layer.3.output.dense"

    def edit_bert(model: nn.Module) -> Receipt:
        with updating(model, method="edit", changes=[f"{path}.weight"]) as update, torch.no_grad():
            model.get_submodule(path).weight.add_(1e-3)
        return update.receipt

    def attach_bert(model: nn.Module) -> Receipt:
        with updating(model, method="adapter", changes=()) as update:
            model.encoder.layer[3].output.dense = Wrapped(model.encoder.layer[3].output.dense)
        return update.receipt

    for update in (edit_bert, attach_bert):
        for check in CONTRACT:
            if check.__name__ in ("check_only_declared", "check_order", "check_save_apply"):
                check(minilm, update)


def broken_updates() -> Iterator[tuple[str, Callable[[nn.Module], Receipt]]]:
    def after_the_block(model: nn.Module) -> Receipt:
        receipt = edit(model)
        flip(model, "norm.weight")
        return receipt

    def before_the_block(model: nn.Module) -> Receipt:
        flip(model, "norm.weight")
        return edit(model)

    def no_receipt(model: nn.Module) -> Receipt:
        edit(model)
        return None  # type: ignore[return-value]

    def only_the_inner(model: nn.Module) -> Receipt:
        with updating(model, method="outer"):
            return edit(model)

    def writes_undeclared(model: nn.Module) -> Receipt:
        with updating(model, method="edit", changes=[]) as update:
            flip(model, DOWN)
        return update.receipt

    def of_a_copy(model: nn.Module) -> Receipt:
        other = decoder()
        receipt = edit(other)
        model.load_state_dict(other.state_dict())
        return receipt

    yield "facts", before_the_block
    yield "facts", after_the_block
    yield "facts", no_receipt
    yield "only_declared", after_the_block
    yield "undo", after_the_block
    yield "undo", before_the_block
    yield "undo", only_the_inner
    yield "facts", only_the_inner
    yield "facts", writes_undeclared
    yield "facts", of_a_copy
    yield "context", before_the_block
    yield "redo", before_the_block
    yield "order", before_the_block
    yield "refusal_after_change", before_the_block
    yield "save_apply", before_the_block


@pytest.mark.parametrize(("check", "update"), list(broken_updates()))
def test_the_contract_catches_planted_defects(check: str, update: Callable[[nn.Module], Receipt]) -> None:
    outcome = {outcome.name: outcome for outcome in check_receipts(decoder, update)}[check]
    assert outcome.status == "failed"
    assert outcome.message


@pytest.mark.parametrize(("check", "method"), [("undo", "undo"), ("redo", "apply"), ("order", "undo"), ("context", "undo")])
def test_the_contract_catches_receipts_that_do_not_restore(check: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Receipt, method, lambda self, model=None: None)
    assert {o.name: o.status for o in check_receipts(decoder, edit)}[check] == "failed"


def test_the_contract_catches_an_update_without_a_transaction() -> None:
    def update(model: nn.Module) -> Receipt:
        model.norm.weight.data.add_(1)
        receipt = edit(model)
        return receipt

    with pytest.raises(ContractError, match="interrupt"):
        next(check for check in CONTRACT if check.__name__ == "check_interrupted")(decoder, update)
