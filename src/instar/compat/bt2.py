"""BT²: backward-compatible training with basis transformations and a few extra dimensions.

Zhou, Li, Shrivastava, Zhao, Torralba, Tian, Lim, "BT²: Backward-compatible Training with Basis Transformation", ICCV 2023
(arXiv 2211.03989).
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import initialising
from instar.compat import backbone, labelled, training
from instar.compat.bt2_network import BT2Network, Targets, sided
from instar.compat.embedding import ready
from instar.compat.nested import NestedHead
from instar.compat.orthogonal import Parameterisation
from instar.errors import ShapeError
from instar.interfaces import Monitor, Pairs

Transform = Literal["pq", "p", "q", "none"]


class BT2(NestedHead):
    r"""v = (Q u[:O], u[O:]),  u = (o_k, C P f),  f = h[:D]/‖·‖,  o_k = (A relu(h) + a)/‖·‖,  h = backbone(x).

    f learns the vectors φ_p of the independent new encoder, z_c = Q u[:O] the stored ones φ_old; P and Q are orthonormal, so that
    ‖v‖² = 1 + C² and ⟨v, v'⟩ = ⟨o_k, o_k'⟩ + C² ⟨f, f'⟩ for all x. With ẑ = z_c/‖z_c‖ the loss is
    CE(W_c f, y) + λ₂ CE(W_old ẑ, y) + λ₃ (1 − ⟨φ_old, ẑ⟩) + λ₁ (1 − ⟨φ_p, f⟩); W_old holds the class means of φ_old, frozen.

    Args:
        k: extra dimensions; raised to O − D where the new vectors are too narrow to hold the old ones, lowered to O.
        C: the share of f in v; the larger, the more new vectors compare as φ_p do.
        new_weight, class_weight, old_weight: λ₁, λ₂, λ₃. label_smoothing: of both CE; the authors have none here.
        labels: False drops both CE even where there are labels; without labels they are dropped anyway.
        parameterisation: of P and Q (`compat.orthogonal`). transform: which of the two there are; "none" leaves plain extra
            dimensions.
        side_branch: "relu", or "linear" without it, as the authors' ViT.
        hidden, layers: of the backbone (`compat.backbone`). start: where x is as wide as the new vectors, whether f starts as x
            itself, as training from the new encoder's weights does, or from random weights. Take False where x is as wide but
            something else.

    A sequence of updates: `previous` is the BT² head before; its full vectors, made unit vectors, are the old ones. Another
    modality: Pairs.inputs are of one, Pairs.new (φ_p) of the other.
    Shapes: x [N, input_dim] -> [N, D + k]. Raises ShapeError; `fit` raises DataError, DivergedError.
    A step costs 6 B (I · hidden + hidden · (D + O) + (D + O) · k + O · (D + k)) + O(D³ + O³) FLOPs; labels of Y classes
    6 B Y (D + O) more.
    Differs from the paper: a small network on cached vectors in place of an encoder (`upgrading_encoder` trains the encoder too);
    of A only the k rows that are used; P and Q are multiplied into one matrix after training.
    """

    RECIPE: ClassVar = backbone.RECIPE

    mix: Tensor
    """diag(Q, I) · diag(I_k, C P) [D + k, k + D]: v = mix · (o_k, f)."""

    def __init__(
        self,
        new_dim: int,
        old_dim: int,
        *,
        input_dim: int | None = None,
        k: int = 32,
        C: float = 2.0,
        new_weight: float = 1.0,
        class_weight: float = 10.0,
        old_weight: float = 5.0,
        label_smoothing: float = 0.0,
        labels: bool = True,
        parameterisation: Parameterisation = "exp",
        transform: Transform = "pq",
        side_branch: Literal["relu", "linear"] = "relu",
        hidden: int = 512,
        layers: int = 1,
        start: bool = True,
    ) -> None:
        extra = max(min(k, old_dim), old_dim - new_dim)
        super().__init__(new_dim, old_dim, new_dim + extra, input_dim)
        weights = (new_weight, class_weight, old_weight)
        if k < 0 or not 0 < C < float("inf") or not 0 <= label_smoothing < 1 or not all(0 <= w < float("inf") for w in weights):
            raise ShapeError(
                "BT2 expects k ≥ 0, C > 0, weights ≥ 0 and label_smoothing in [0, 1); "
                f"received {k}, {C}, {weights} and {label_smoothing}."
            )
        for name, value, known in (
            ("parameterisation", parameterisation, get_args(Parameterisation)),
            ("transform", transform, get_args(Transform)),
            ("side_branch", side_branch, ("relu", "linear")),
        ):
            if value not in known:
                raise ShapeError(f"{name} expects one of {', '.join(map(repr, known))}; received {value!r}.")
        self.k, self.extra, self.C, self.label_smoothing, self.labels = k, extra, C, label_smoothing, labels
        self.new_weight, self.class_weight, self.old_weight = weights
        self.parameterisation: Parameterisation = parameterisation
        self.transform, self.side_branch = transform, side_branch
        self.hidden, self.layers, self.start = hidden, layers, start
        self.backbone, self.side = self._fresh()
        self.register_buffer("mix", torch.diag(torch.tensor([1.0] * extra + [float(C)] * new_dim)))

    def full(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> v [N, D + k], of length √(1 + C²) (C where k is 0)."""
        h: Tensor = self.backbone(x)
        f = F.normalize(h[:, : self.new_dim], dim=1)
        return torch.cat([sided(h, self.side, self.side_branch == "relu"), f], 1) @ self.mix.T

    def matched(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> f [N, D], of length 1: what learns φ_p."""
        return F.normalize(self.backbone(x)[:, : self.new_dim], dim=1)

    def bases(self) -> list[Tensor]:
        """The orthonormal matrix diag(Q, I) · diag(I_k, P) [D + k, k + D], as it is folded into `mix`."""
        return [torch.cat([self.mix[:, : self.extra], self.mix[:, self.extra :] / self.C], 1)]

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Train from scratch; the head changes only when that is done. Raises DataError, ShapeError, DivergedError."""
        network, targets, x = self.network(pairs, seed)

        def loss(places: Tensor) -> Tensor:
            return network.loss(network.backbone(x[places]), targets, places)

        training.train(network, loss, len(x), recipe=self.RECIPE, steps=steps, seed=seed, monitor=monitor)
        self.take(network)

    def network(self, pairs: Pairs, seed: int) -> tuple[BT2Network, Targets, Tensor]:
        """What is trained, from random weights; what it is compared with; and what it reads. Raises DataError, ShapeError."""
        pairs = ready(self, pairs)
        labels = pairs.labels if self.labels else None
        if labels is not None:
            labelled.require(labels)
        targets = Targets.of(pairs, labels)
        classes = 0 if targets.frozen is None else len(targets.frozen)
        with initialising(seed):
            network = BT2Network(self, *self._fresh(), classes=classes).to(pairs.x)
        return network, targets, pairs.x

    @torch.no_grad()
    def take(self, network: BT2Network) -> None:
        """Become what was trained, with P and Q multiplied out."""
        self.backbone.load_state_dict(network.backbone.state_dict())
        if self.side is not None and network.side is not None:
            self.side.load_state_dict(network.side.state_dict())
        self.mix.copy_(network.folded())

    def _fresh(self) -> tuple[backbone.Backbone, nn.Linear | None]:
        width = self.new_dim + self.old_dim
        start = self.new_dim if self.start and self.input_dim == self.new_dim else 0
        own = backbone.Backbone(self.input_dim, width, hidden=self.hidden, layers=self.layers, start=start)
        return own, nn.Linear(width, self.extra) if self.extra else None
