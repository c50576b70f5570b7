"""A decoder that learns to learn in context: any mixer, or a `transformers` model, trained over fresh tasks.

Akyürek, Schuurmans, Andreas, Ma, Zhou, "What learning algorithm is in-context learning? Investigations with linear models", ICLR
2023 (arXiv 2211.15661); Garg et al. 2022 (2208.01066); for Boolean functions Bhattamishra et al. 2024 (2310.03016).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from instar.bench.fit import descend
from instar.errors import ShapeError
from instar.interfaces import InContextLearner, Monitor
from instar.lab.icl import contexts
from instar.lab.icl.network import MixerBackbone, PairNetwork, TransformersBackbone


class InContextDecoder(nn.Module, InContextLearner):
    r"""ŷ_i = f_θ(x_1, y_1, …, x_{i-1}, y_{i-1}, x_i), with θ = argmin E Σ_i (ŷ_i - y_i)² over fresh tasks at each step.

    Tokens x̃ = [0, x], ỹ = [y, 0]; the prediction is read at x_i. All positions count in the loss, the first included.

    Args:
        width: D of the inputs. examples: most pairs of a context; longer ones are refused, as their positions are untrained.
        mixer: an address of the catalogue. model_width, depth, heads: of the decoder. normalised: the residual quirk of the
            authors' code, see `icl.network.Block`.
        lr: peak rate of Adam (0.9, 0.98, ε 1e-9), without decay; `bench.fit.descend` warms it up and lowers it. backbone: a
            module in the place of the mixers' blocks, such as `icl.network.TransformersBackbone(model)`.

    Raises ShapeError. The paper's best has 16 layers of width 512; defaults here learn in a minute.
    """

    def __init__(
        self,
        width: int,
        *,
        examples: int,
        mixer: str = "softmax:no_positions",
        model_width: int = 64,
        depth: int = 2,
        heads: int = 4,
        normalised: bool = False,
        lr: float = 1e-3,
        backbone: TransformersBackbone | MixerBackbone | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or examples < 1 or not lr > 0:
            raise ShapeError(f"Expected width ≥ 1, examples ≥ 1 and lr > 0; received {width}, {examples} and {lr}.")
        if backbone is None:
            backbone = MixerBackbone(
                mixer, width=model_width, depth=depth, heads=heads, tokens=2 * examples, normalised=normalised
            )
        self.network, self.lr, self.examples = PairNetwork(width, examples, backbone), lr, examples

    def forward(self, xs: Tensor, ys: Tensor) -> Tensor:
        """xs [B, N, D], ys [B, N] -> [B, N]: the prediction at each x."""
        return self.network(xs, ys)

    def prefixes(self, xs: Tensor, ys: Tensor) -> Tensor:
        """One pass gives all prefixes."""
        return self(xs, ys)

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """A sequence for each query, which stands in the place after the examples."""
        contexts.fitting(xs, ys, x_query)
        B, N, D = xs.shape
        Q = x_query.shape[1]
        inputs = torch.cat([xs.unsqueeze(1).expand(B, Q, N, D), x_query.unsqueeze(2)], 2).flatten(0, 1)
        labels = torch.cat([ys, ys.new_zeros(B, 1)], 1).unsqueeze(1).expand(B, Q, N + 1).flatten(0, 1)
        return self(inputs, labels)[:, -1].unflatten(0, (B, Q))

    def fit(
        self,
        tasks: Callable[[int], tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Adam over fresh tasks. Raises DivergedError."""
        trained = [p for p in self.parameters() if p.requires_grad]
        descend(
            self,
            torch.optim.Adam(trained, lr=self.lr, betas=(0.9, 0.98), eps=1e-9),
            tasks,
            lambda model, batch: loss(model(*batch), batch[1]),
            steps=steps,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )
