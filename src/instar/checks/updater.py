"""The contract of `Updater`: what holds of every way of bringing a task to the next version."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from instar import catalogue, extras, formula
from instar.adapters import LoRA, off, switch
from instar.adapters.attached import active, bare, own_layers
from instar.bench.seeds import initialising
from instar.checks.arguments import constructed, keeps
from instar.checks.subject import Check, Subject
from instar.compat.teacher import DATA
from instar.errors import AdapterError, ContractError, DataError, ModelError
from instar.interfaces import Answering, Monitor, Updater, Versions
from instar.receipt import fingerprint

_STEPS, _V = 4, 23
_ROWS = (((1, 2, 3), (4, 5)), ((6, 7), (8, 9, 10, 11)), ((12,), (13, 14)), ((15, 16, 17, 18), (19,)), ((3, 1), (2, 0)))


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    for what, values, made in constructed(subject):
        keeps(subject, what, values, made, "receipts say what was done")


def check_only_reads(subject: Subject) -> None:
    """Both bases, the task's adapter and the old version keep their bits and get no gradients; off, the base answers as ever."""
    versions = world()
    old, new = versions.old, versions.new
    with bare(new):
        base = fingerprint(new)
    before, task = fingerprint(old), _tensors(new)
    with off(new):
        plain = _answers(new)
    updated(subject, versions)
    with bare(new):
        after = fingerprint(new)
    if fingerprint(old) != before or any(p.grad is not None for p in old.parameters()):
        raise ContractError("The old version was changed, or got gradients: it is only read.")
    if after != base or any(p.grad is not None for p in new.parameters()):
        raise ContractError("The base of the new version was changed, or gradients were left in it.")
    if any(not torch.equal(tensor, task[key]) for key, tensor in _tensors(new).items()):
        raise ContractError("The task's own adapter was changed; train a further one beside it.")
    with off(new):
        if not torch.equal(_answers(new), plain):
            raise ContractError("With its adapters off, the new version does not answer as its base does, to the bit.")


def check_start(subject: Subject) -> None:
    """After no steps, what takes one pass answers as the new version does, to the bit."""
    versions = world()
    expected = _answers(versions.new)
    answering = updated(subject, versions, steps=0)
    if answering.passes == 1 and not torch.equal(_said(answering), expected):
        raise ContractError("After no steps the answers are not those of the new version with the task's adapter.")


def check_active(subject: Subject) -> None:
    """Where an answer takes one pass, the active adapter gives it, so that it can be saved and merged."""
    versions = world()
    answering = updated(subject, versions)
    if answering.passes == 1 and not torch.equal(_said(answering), _answers(versions.new)):
        raise ContractError("The active adapter of the new version answers otherwise than the update says.")


def check_repeats(subject: Subject) -> None:
    """The same seed gives the same bits, and the global generator is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = _said(updated(subject, world()))
    if not torch.equal(state, torch.get_rng_state()):
        raise ContractError("The update draws from the global generator; draw from instar.bench.seeds.stream(seed, name).")
    torch.manual_seed(2)
    if not torch.equal(first, _said(updated(subject, world()))):
        raise ContractError("Updated a second time with the same seed, it answers otherwise.")


def check_padding(subject: Subject) -> None:
    """What pads a row changes neither training nor the answer."""
    first = _said(updated(subject, world()))
    other = updated(subject, replace(world(), fill=20))
    if not torch.allclose(first, _said(other), atol=1e-5):
        raise ContractError("Trained with another token for padding, it answers otherwise: padding must not count.")


def check_resumes(subject: Subject) -> None:
    """Interrupted after two steps and called again with its folder, it ends with the same bits."""
    whole = _said(updated(subject, world()))
    with tempfile.TemporaryDirectory() as folder:
        updated(subject, world(), monitor=lambda step, loss: step == 2, folder=Path(folder))
        again = _said(updated(subject, world(), folder=Path(folder)))
    if not torch.equal(whole, again):
        raise ContractError("Interrupted and taken up again it does not end as an uninterrupted update does.")


def check_refusals(subject: Subject) -> None:
    """No rows, versions of different vocabularies and a new version without an active adapter are refused."""
    small = world().new
    with initialising(3):
        narrow = _gpt(_V - 4)
    inactive = world()
    switch(inactive.new, None)
    for what, versions, error in (
        ("no rows", replace(world(), rows=()), DataError),
        ("an old version of another vocabulary", replace(world(), old=narrow), ModelError),
        ("no active adapter", inactive, AdapterError),
        ("a token that no version knows", replace(world(), new=small, rows=[((1,), (_V,))]), ModelError),
    ):
        try:
            updated(subject, versions)
        except error:
            continue
        except Exception as other:
            raise ContractError(f"{what} must be {error.__name__}; received {type(other).__name__}: {other}") from other
        raise ContractError(f"{what} must be refused; it went through.")


def check_costs(subject: Subject) -> None:
    """Bytes of teachers' logits on disk are those of the card's formula."""
    assert subject.card.cost is not None
    tokens = sum(len(asked) + len(answer) - 1 for asked, answer in _ROWS)
    with tempfile.TemporaryDirectory() as folder:
        updated(subject, world(), folder=Path(folder))
        kept = sum(path.stat().st_size for path in Path(folder).rglob(DATA))
    expected = tokens * formula.evaluate(subject.card.cost.state, catalogue.variables(subject.cls, subject.arguments, P=1, V=_V))
    if getattr(subject.cls(**subject.arguments), "keep", None) is None and kept != expected:
        raise ContractError(f"Logits of teachers take {kept} bytes; the card's formula gives {expected:g}.")


def world() -> Versions:
    """Two small GPTs of other weights, an adapter of random numbers on the new one, and rows of five lengths."""
    with initialising(1):
        old = _gpt(_V)
    with initialising(2):
        new = _gpt(_V)
        LoRA(r=2, lr=1e-2).attach(new, ["c_attn", "c_fc"], name="task")
        for layer in own_layers(new, "task").values():
            nn.init.normal_(layer.adapters["task"].lora_B, std=0.1)  # type: ignore[arg-type]
    return Versions(old.eval(), new.eval(), _ROWS, 0)


def updated(
    subject: Subject,
    versions: Versions,
    *,
    steps: int = _STEPS,
    monitor: Monitor | None = None,
    folder: Path | None = None,
) -> Answering:
    """The versions after an update by the subject, in batches of two rows where it asks."""
    own = {"batch": 2} if "batch" in inspect.signature(subject.cls).parameters else {}
    updater = subject.cls(**{**own, **subject.arguments})
    if not isinstance(updater, Updater):
        raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.Updater: derive the class from it.")
    return updater.update(versions, steps=steps, seed=5, monitor=monitor, folder=folder)


def _gpt(vocabulary: int) -> nn.Module:
    transformers = extras.require("transformers", "models")
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    made: nn.Module = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocabulary, **sizes, **still))
    return made


def _said(answering: Answering) -> Tensor:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    return answering.logits(ids, torch.ones_like(ids))


def _answers(model: nn.Module) -> Tensor:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Of the task's adapter, copied."""
    assert active(model) is not None
    return {
        f"{path}/{name}": tensor.clone()
        for path, layer in own_layers(model, "task").items()
        for name, tensor in layer.adapters["task"].state_dict().items()
    }


CONTRACT: tuple[Check, ...] = (
    Check("arguments", check_arguments),
    Check("only_reads", check_only_reads),
    Check("start", check_start),
    Check("active", check_active),
    Check("repeats", check_repeats),
    Check("padding", check_padding),
    Check("resumes", check_resumes),
    Check("refusals", check_refusals),
    Check("costs", check_costs, costs=True),
)
