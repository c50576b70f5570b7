"""Checks of an adapter's ways: into the weights and back, onto the disk and back, one of several, and out again."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

from instar import catalogue
from instar.adapters.attached import names, off, parameters, switch
from instar.adapters.attaching import detach
from instar.adapters.layer import Adapted
from instar.adapters.merging import merge, merge_and_unload, unmerge
from instar.adapters.saved import WEIGHTS, load, save
from instar.checks.adapter_worlds import World, output, worlds
from instar.checks.subject import Subject
from instar.checks.witness import flip, picture, require
from instar.errors import AdapterError, CheckpointError, ContractError, InstarError

MERGED = 1e-5


def check_merge(subject: Subject) -> None:
    """Merged, the base alone computes the same; unmerged, and undone, every bit is back."""
    for world in worlds(subject):
        model, x = world.learnt(), world.x()
        before, wanted = picture(model), output(model, x)
        receipt = merge(model)
        _near(output(model, x), wanted, f"{world}: the merged model")
        receipt.undo()
        require(model, before, f"{world}: after undo of merge")
        merge(model)
        with_base = [p for p in model.parameters() if p.requires_grad]
        if with_base:
            raise ContractError(f"{world}: while merged nothing takes gradients, since they would not reach the adapter.")
        unmerge(model)
        found = output(model, x)
        if not torch.equal(found, wanted):
            raise ContractError(f"{world}: after unmerge the model computes something else.")
        if any(not torch.equal(a, b) for a, b in zip(model.parameters(), world.learnt().parameters(), strict=True)):
            raise ContractError(f"{world}: unmerge did not restore the bits of the base.")


def check_unload(subject: Subject) -> None:
    """`merge_and_unload` leaves the base's own modules, of the same types, that compute what the adapted model did."""
    for world in worlds(subject):
        model, x = world.learnt(), world.x()
        before, wanted = picture(model), output(model, x)
        receipt = merge_and_unload(model)
        plain = world.model()
        kinds = [(path, type(module)) for path, module in model.named_modules()]
        if kinds != [(path, type(module)) for path, module in plain.named_modules()]:
            raise ContractError(f"{world}: an unloaded model must consist of the base's kinds of modules.")
        if model.state_dict().keys() != plain.state_dict().keys() or any(not p.requires_grad for p in model.parameters()):
            raise ContractError(f"{world}: an unloaded model must have the base's tensors, which take gradients as they did.")
        _near(output(model, x), wanted, f"{world}: the unloaded model")
        receipt.undo()
        require(model, before, f"{world}: after undo of merge_and_unload")


def check_not_finite(subject: Subject) -> None:
    """A merge that would write NaN is refused and changes nothing."""
    for world in worlds(subject):
        model = world.learnt()
        with torch.no_grad():
            parameters(model)[0].view(-1)[0] = torch.nan
        before = picture(model)
        try:
            merge(model)
        except AdapterError:
            require(model, before, f"{world}: after a refused merge")
            continue
        raise ContractError(f"{world}: a merge that makes weights NaN must raise AdapterError.")


def check_receipts(subject: Subject) -> None:
    """Attach and merge owe what every update in place owes: `checks.receipt`."""
    from instar.checks import receipt  # it needs this package whole

    world = World(subject, False)
    for what, build, update in (
        ("attach", world.model, world.attach),
        ("merge", world.learnt, merge),
        ("merge_and_unload", world.learnt, merge_and_unload),
        ("detach", world.learnt, lambda model: detach(model, "default")),
    ):
        found = [f"{o.name}: {o.message}" for o in receipt.check_receipts(build, update) if o.status == "failed"]
        if found:
            raise ContractError(f"{what}: {found[0]}")


def check_detach(subject: Subject) -> None:
    """Without its adapter the model is the base again, object by object."""
    for world in worlds(subject):
        model = world.model()
        before = picture(model)
        world.attach(model)
        world.learn(model)
        detach(model, "default")
        require(model, before, f"{world}: after detach")


def check_several(subject: Subject) -> None:
    """Of two adapters each computes what it does alone; off is the base; one is detached without harm to the other."""
    for world in worlds(subject):
        x, both = world.x(), world.model()
        plain = output(both, x)
        alone = {}
        for name, size in (("one", 0.05), ("second", 0.03)):
            single = world.model()
            for model in (single, both):
                world.attach(model, name)
                world.learn(model, name, size)
            alone[name] = output(single, x)
        for name in ("one", "second", "one"):
            switch(both, name)
            if not torch.equal(output(both, x), alone[name]):
                raise ContractError(f"{world}: beside another adapter, {name} computes something else than alone.")
            trained = {id(p) for p in parameters(both, name)}
            if {id(p) for p in both.parameters() if p.requires_grad} != trained:
                raise ContractError(f"{world}: exactly the active adapter takes gradients.")
            with off(both):
                if not torch.equal(output(both, x), plain):
                    raise ContractError(f"{world}: with adapters off the model must compute what its base does, to the bit.")
        switch(both, None)
        if not torch.equal(output(both, x), plain):
            raise ContractError(f"{world}: switched to none the model must compute what its base does, to the bit.")
        detach(both, "one")
        switch(both, "second")
        if names(both) != ["second"] or not torch.equal(output(both, x), alone["second"]):
            raise ContractError(f"{world}: detaching one adapter changed the other.")


def check_saved(subject: Subject) -> None:
    """Saved and loaded on a fresh base it computes the same bits; another base, and an altered file, are refused untouched."""
    for world in worlds(subject):
        model, x = world.learnt(), world.x()
        with tempfile.TemporaryDirectory() as place, catalogue.holding(subject.card, subject.cls):
            folder = save(model, Path(place) / "adapter")
            fresh = world.model()
            load(fresh, folder)
            if not torch.equal(output(fresh, x), output(model, x)):
                raise ContractError(
                    f"{world}: loaded, the adapter computes something else; keep all that is learnt in parameters."
                )
            if not world.adapter().replaces:
                other = world.model()
                flip(other, "query.weight")
                _refuses(other, folder, f"{world}: a base with another bit")
            data = bytearray((folder / WEIGHTS).read_bytes())
            data[-1] ^= 1
            (folder / WEIGHTS).write_bytes(bytes(data))
            _refuses(world.model(), folder, f"{world}: an altered file")


def check_copy(subject: Subject) -> None:
    """A deep copy computes the same, and learns alone."""
    for world in worlds(subject):
        model, x = world.learnt(), world.x()
        wanted = output(model, x)
        twin = copy.deepcopy(model)
        if not torch.equal(output(twin, x), wanted):
            raise ContractError(f"{world}: a deep copy computes something else.")
        world.learn(twin)
        if not torch.equal(output(model, x), wanted):
            raise ContractError(f"{world}: a deep copy shares what it learns with the original.")
        detach(twin, "default")
        if any(isinstance(module, Adapted) for module in twin.modules()):
            raise ContractError(f"{world}: an adapter of a deep copy cannot be detached.")


def _near(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    worst = float((found - wanted).abs().max())
    allowed = MERGED * max(1.0, float(wanted.abs().max()))
    if not worst <= allowed:
        raise ContractError(f"{what} differs from the adapted one by {worst:.1e} (allowed {allowed:.0e}).")


def _refuses(model: nn.Module, folder: Path, what: str) -> None:
    before = picture(model)
    try:
        load(model, folder)
    except (AdapterError, CheckpointError):
        require(model, before, f"After {what} was refused")
        return
    except InstarError as error:
        raise ContractError(f"{what} must be an AdapterError or a CheckpointError; it was {type(error).__name__}.") from error
    raise ContractError(f"{what} must be refused; it was loaded.")
