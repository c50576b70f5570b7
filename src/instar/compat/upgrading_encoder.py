"""An encoder that is trained together with its BT² head: the full mode of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from instar.compat import training
from instar.compat.bt2 import BT2
from instar.data import pretrained
from instar.errors import DataError, ShapeError
from instar.interfaces import Monitor, Pairs

Batch = Any
"""What the encoder takes: a tensor, or whatever `batch` gives."""


class Upgraded(NamedTuple):
    """What the encoder says of N items."""

    compat: Tensor
    """z_c [N, O], compared by cosine with stored old vectors."""
    full: Tensor
    """v [N, D + k], what new rows store."""
    logits: Tensor | None
    """W_c f [N, classes]; None where it was trained without labels."""


class UpgradingEncoder(nn.Module):
    """inputs -> Upgraded: an encoder whose vectors [N, I] the head reads, both trained by the loss of BT².

    Args:
        encoder: any module from a batch to [N, I]. The paper starts it from random weights. From those of the new encoder it
            takes a fraction of the steps: with `BT2(…, layers=0)` f then starts as φ_p.
        head: a BT2 whose input_dim is I.
        recipe: how it is trained; by default as the authors do on CIFAR-100 (batches of 128, rate 0.001, 100 epochs, 5 of them
            warm-up), but for at most a million items in all.

    After `fit`, `head` alone serves cached vectors of `encoder`, and can be saved as any head.
    """

    RECIPE = training.Recipe(epochs=100, batch=128, lr=1e-3, weight_decay=2.0**-15)

    def __init__(self, encoder: nn.Module, head: BT2, recipe: training.Recipe | None = None) -> None:
        super().__init__()
        self.encoder, self.head, self.recipe = encoder, head, recipe or self.RECIPE
        self.classifier: nn.Linear | None = None

    def forward(self, inputs: Batch) -> Upgraded:
        """Of a batch, as the encoder takes it."""
        x = self.encoder(inputs)
        full = self.head.full(x)
        logits = None if self.classifier is None else self.classifier(self.head.matched(x))
        return Upgraded(full[:, : self.head.old_dim], full, logits)

    def fit(
        self,
        batch: Callable[[Tensor], Batch],
        pairs: Pairs,
        *,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
    ) -> None:
        """Train encoder and head in place on targets that were computed before.

        Args:
            batch: places [B] of items -> what the encoder takes of them.
            pairs: old vectors φ_old, vectors φ_p of the independent new encoder, and labels, of the same items; no inputs.

        An interrupted or diverged training leaves the encoder where it stopped and the head as it was. Raises DataError,
        ShapeError, DivergedError.
        """
        if pairs.inputs is not None:
            raise ShapeError("The encoder makes the inputs here; give pairs of old and new vectors alone.")
        # Zeros without memory of their own stand for the inputs, which the encoder is yet to make.
        inputs = pairs.new.new_zeros(1).expand(len(pairs.new), self.head.input_dim)
        network, targets, _ = self.head.network(Pairs(pairs.old, pairs.new, pairs.labels, inputs), seed)

        def loss(places: Tensor) -> Tensor:
            x = self.encoder(batch(places))
            if x.ndim != 2 or x.shape != (len(places), self.head.input_dim):
                raise ShapeError(
                    f"The encoder gave {list(x.shape)} for {len(places)} items; the head reads [N, {self.head.input_dim}]."
                )
            return network.loss(network.backbone(x), targets, places)

        both = nn.ModuleList([self.encoder, network])
        training.train(both, loss, len(pairs.old), recipe=self.recipe, steps=steps, seed=seed, monitor=monitor)
        self.head.take(network)
        self.classifier = network.classifier


class Pooled(nn.Module):
    """Tokens -> [N, I]: the mean of a `transformers` model's last hidden states over the tokens that are no padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> Pooled:
        """Training, but without dropout: vectors are trained as they are served, and φ_p was computed without it as well."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        states: Tensor = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def of_texts(
    name_or_path: str, texts: Sequence[str], *, longest: int = 128, layers: int | None = None
) -> tuple[Pooled, Callable[[Tensor], dict[str, Tensor]]]:
    """A `transformers` encoder with its pretrained weights, and `batch` for these texts.

    Args:
        name_or_path: as in `data.pretrained`. longest: tokens of a text. layers: keep only the first so many.

    Raises DataError for no texts, and what `pretrained.load` raises.
    """
    if not texts:
        raise DataError("There are no texts to train on.")
    model, tokenizer = pretrained.load(name_or_path, "encoder", layers=layers)

    def batch(places: Tensor) -> dict[str, Tensor]:
        chosen = [texts[i] for i in places.tolist()]
        tokens = tokenizer(chosen, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return {name: value.to(places.device) for name, value in tokens.items()}

    return Pooled(model), batch
