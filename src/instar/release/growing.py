"""A stored decoder made larger, as the next stored version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instar.bench.seeds import stream
from instar.errors import CheckpointError, ModelError
from instar.growth import grow as grow_model
from instar.growth import saved
from instar.interfaces import Growth, Plan
from instar.models import pretrained
from instar.models.decoder import Decoder
from instar.receipt import fingerprint
from instar.receipts.facts import Facts
from instar.release import writing

_ROWS, _LENGTH = 4, 64


@dataclass(frozen=True)
class Enlarged:
    """What became larger, and what that did."""

    folder: Path
    receipt: Facts
    parameters_before: int
    parameters_after: int
    apart: float
    """Largest difference of the logits before and after, on random tokens."""


def grow(
    folder: str | Path,
    plan: Plan,
    out: str | Path,
    *,
    method: Growth | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> Enlarged:
    """Grow a folder that `TokenFormer` or `Decoder` wrote into a new one, whole or not at all, with a receipt for `undo`.

    method: of the family growth; by default that of `instar.growth.grow`. Weights only: an optimiser grows with a model in
    memory. Raises ModelError for a folder of something else, TransformError for a plan that does not fit, CheckpointError,
    OutputError.
    """
    source = Path(folder)
    writing.vacant(Path(out))
    model = _opened(source)
    before, parameters = _logits(model), _parameters(model)
    progress("growing")
    grown = grow_model(model, None, plan, method=method, seed=seed)
    apart = float((_logits(model) - before).abs().max())
    progress("writing")
    with writing.version(out, source) as new:
        model.save_pretrained(new)
        recorded = grown.receipt.record(new)
        shutil.copyfile(source / pretrained.CONFIG, recorded / pretrained.CONFIG)  # the way back needs it
        if fingerprint(new) != grown.receipt.facts.after:
            raise CheckpointError("The weights that were written are not those that growth left. Nothing was kept.")
        saved.load_any(new)  # a config that does not say what became of the sizes is found here, and nothing is kept
    return Enlarged(Path(out), grown.receipt.facts, parameters, _parameters(model), apart)


def _opened(source: Path) -> Decoder:
    try:
        return saved.load_any(source)
    except CheckpointError as error:
        raise ModelError(
            f"{source} cannot be grown: {error} What grows are folders that instar.growth.TokenFormer or "
            "instar.models.decoder.Decoder wrote with save_pretrained."
        ) from error


def _parameters(model: Decoder) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _logits(model: Decoder) -> Tensor:
    tokens = torch.randint(model.vocabulary, (_ROWS, _LENGTH), generator=stream(0, "grow"))
    found: Tensor = model(tokens)[0]
    return found.float()
