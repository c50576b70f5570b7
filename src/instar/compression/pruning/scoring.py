"""The losses of labelled batches, sample by sample, taken up in the middle of a model where what comes before did not change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compression.pruning.layout import Layout
from instar.errors import DataError, TransformError, UnknownNameError
from instar.models import modes

Batch = Mapping[str, Any]
Loss = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> [B], 0 or more for each sample, less is better."""
Metric = Literal["loss", "accuracy"]
_IGNORED = -100


@dataclass(frozen=True)
class Validation:
    """Labelled batches that the model was not trained on, and what is measured on them.

    batches: what a model of `transformers` is called with, `labels` included: of classes [B], of values [B] for a regression, or
    of tokens [B, T]. loss: for other models, other batches, or another measure, which then decides alone.
    """

    batches: Sequence[Batch]
    loss: Loss | None = None

    @classmethod
    def of(cls, data: Any, metric: Metric) -> Validation:
        """From what a transform is given. Raises TransformError for nothing, DataError for what says nothing."""
        if metric not in ("loss", "accuracy"):
            raise UnknownNameError.among("metric", metric, ("loss", "accuracy"))
        if data is None:
            raise TransformError(
                "What to take out is chosen by the loss on labelled batches that the model was not trained on: give them as data."
            )
        made = data if isinstance(data, Validation) else cls(list(data))
        if not made.batches:
            raise DataError("There are no validation batches, so nothing can be chosen.")
        if made.loss is not None:
            return made
        if not all(isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor) for batch in made.batches):
            raise DataError("Every batch is expected to be a mapping with 'labels'; for others give Validation(batches, loss).")
        labels = torch.cat([batch["labels"].reshape(-1) for batch in made.batches])
        if bool((labels == labels[0]).all()):
            raise DataError(f"All {len(labels)} validation labels are {labels[0].item()}: they cannot tell good from bad.")
        return cls(made.batches, error if metric == "accuracy" else sample_loss)


def sample_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy [B]; of tokens, their mean in each sample; squared error where there is one output."""
    logits, labels = _answers(model, batch)
    if labels.dim() == 1 and logits.shape[-1] == 1:
        return (logits.view(-1).float() - labels.float()) ** 2
    if labels.dim() == 1:
        return F.cross_entropy(logits.float(), labels, reduction="none")
    found = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=_IGNORED, reduction="none")
    return found.sum(1) / (labels != _IGNORED).sum(1).clamp(min=1)


def error(model: nn.Module, batch: Batch) -> Tensor:
    """[B]: 0 where the answer is right, else 1; of tokens, the share that is wrong."""
    logits, labels = _answers(model, batch)
    wrong = logits.argmax(-1) != labels
    if labels.dim() == 1:
        return wrong.float()
    known = labels != _IGNORED
    return (wrong & known).sum(1) / known.sum(1).clamp(min=1)


def _answers(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits, and the labels that stand at their places."""
    labels: Tensor = batch["labels"]
    logits: Tensor = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    if labels.dim() == 2 and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return logits[:, :-1], labels[:, 1:]
    return logits, labels


class Scorer:
    """Losses of a model under changing masks.

    A run of the last n − i blocks needs the states that enter block i, which stay as they are while nothing before it changes:
    they are kept, for one i at a time, so that memory is that of one layer's states [samples, T, D]. The rest of the model runs
    as ever, its first i blocks replaced by what they gave. The losses are the same to the bit.
    """

    def __init__(self, model: nn.Module, parts: Layout, data: Validation, *, cached: bool = True) -> None:
        assert data.loss is not None
        self.model, self.parts, self.batches, self.loss, self.cached = model, parts, data.batches, data.loss, cached
        self._at = 0
        self._states: list[Any] = []

    @torch.no_grad()
    def losses(self, layer: int = 0, stop: Callable[[list[float]], bool] | None = None) -> list[float] | None:
        """The losses of all samples; None as soon as `stop`, told those so far, says that they are enough.

        layer: nothing before this block changed since `forget`. Raises DataError for losses that are negative or not finite.
        """
        if self.cached:
            self._advance(layer)
        found: list[float] = []
        for place, batch in enumerate(self.batches):
            with self._resumed(place):
                values = self.loss(self.model, batch)
            if values.dim() != 1 or not bool((torch.isfinite(values) & (values >= 0)).all()):
                raise DataError("A loss is expected to be one number for each sample, finite and 0 or more.")
            found += values.double().tolist()
            if stop is not None and place + 1 < len(self.batches) and stop(found):
                return None
        return found

    def forget(self, layer: int) -> None:
        """Block `layer` computes something else from now on."""
        if layer < self._at:
            self._at, self._states = 0, []

    def _advance(self, layer: int) -> None:
        """Have the states that enter block `layer`."""
        if layer < self._at:
            self._at, self._states = 0, []
        if layer == self._at:
            return
        found = []
        for place, batch in enumerate(self.batches):
            with self._resumed(place), _replaced(self.parts.parts.blocks[layer - 1].module, _reaching) as reached:
                try:
                    self.loss(self.model, batch)
                except _Reached:
                    found.append(reached[0])
        if len(found) != len(self.batches):
            raise TransformError(f"The loss does not run block {layer - 1} of the model.")
        self._at, self._states = layer, found

    @contextlib.contextmanager
    def _resumed(self, place: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self.parts.parts.blocks[: self._at]:
                stack.enter_context(_replaced(block.module, _giving(self._states[place])))
            yield


class _Reached(BaseException):
    """No error: it ends a run whose rest is not needed."""


Replacement = Callable[[Callable[..., Any], list[Any]], Callable[..., Any]]


def _giving(state: Any) -> Replacement:
    return lambda forward, seen: lambda *args, **kwargs: state


def _reaching(forward: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        seen.append(forward(*args, **kwargs))
        raise _Reached

    return run


@contextlib.contextmanager
def _replaced(module: nn.Module, replacement: Replacement) -> Iterator[list[Any]]:
    """Give a module another forward for the block."""
    own = vars(module)
    before, seen = own.get("forward"), []  # type: ignore[var-annotated]
    own["forward"] = replacement(module.forward, seen)
    try:
        yield seen
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and without a cache of keys and values."""
    config = getattr(model, "config", None)
    caches = getattr(config, "use_cache", None)
    if caches:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        with modes.evaluating(model):
            yield
    finally:
        if caches:
            config.use_cache = caches  # type: ignore[union-attr]
