"""What BT² trains: the basis transformations still as free parameters, and the loss on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compat import pseudo_classes
from instar.compat.orthogonal import Orthogonal
from instar.interfaces import Pairs

if TYPE_CHECKING:
    from instar.compat.bt2 import BT2


class Parts(NamedTuple):
    """What the loss sees of B items."""

    compatible: Tensor
    """z_c [B, O], of any length."""
    matched: Tensor
    """f [B, D], of length 1, which learns φ_p."""


@dataclass(frozen=True)
class Targets:
    """What the loss compares with: nothing here is trained."""

    old: Tensor
    """φ_old [N, O], of length 1."""
    new: Tensor
    """φ_p [N, D], of length 1."""
    labels: Tensor | None
    """[N]; None drops both cross entropies."""
    frozen: Tensor | None
    """W_old [C, O]: the means of old vectors over all classes."""

    @classmethod
    def of(cls, pairs: Pairs, labels: Tensor | None) -> Targets:
        """From pairs of unit vectors."""
        return cls(pairs.old, pairs.new, labels, None if labels is None else pseudo_classes.means(pairs.old, labels))


class BT2Network(nn.Module):
    """h [B, D + O] -> Parts. Beside the head's own modules, P, Q and the classifier W_c, which is thrown away afterwards."""

    def __init__(self, head: BT2, backbone: nn.Module, side: nn.Module | None, classes: int) -> None:
        super().__init__()
        self.new_dim, self.old_dim, self.extra, self.C = head.new_dim, head.old_dim, head.extra, head.C
        self.rectified, self.smoothing = head.side_branch == "relu", head.label_smoothing
        self.weights = (head.new_weight, head.class_weight, head.old_weight)
        self.backbone, self.side = backbone, side
        self.P = Orthogonal(head.new_dim, head.parameterisation) if "p" in head.transform else None
        self.Q = Orthogonal(head.old_dim, head.parameterisation) if "q" in head.transform else None
        self.classifier = nn.Linear(head.new_dim, classes, bias=False) if classes else None

    def forward(self, h: Tensor) -> Parts:
        """The rows of Q diag(I_k, C P) that make z_c, multiplied out once a step, then one product with the batch."""
        f = F.normalize(h[:, : self.new_dim], dim=1)
        mix = self._compatible_rows(self.P() if self.P is not None else None, self.Q() if self.Q is not None else None, f)
        return Parts(torch.cat([sided(h, self.side, self.rectified), f], 1) @ mix.T, f)

    def loss(self, h: Tensor, targets: Targets, places: Tensor) -> Tensor:
        """The mean loss of the items at `places` [B], whose h [B, D + O] is given."""
        parts = self(h)
        z = F.normalize(parts.compatible, dim=1)
        new_weight, class_weight, old_weight = self.weights
        found = new_weight * (1 - (targets.new[places] * parts.matched).sum(1).mean())
        found = found + old_weight * (1 - (targets.old[places] * z).sum(1).mean())
        if self.classifier is None or targets.labels is None or targets.frozen is None:
            return found
        y = targets.labels[places]
        for weight, logits in ((1.0, self.classifier(parts.matched)), (class_weight, z @ targets.frozen.T)):
            found = found + weight * F.cross_entropy(logits, y, label_smoothing=self.smoothing)
        return found

    @torch.no_grad()
    def folded(self) -> Tensor:
        """diag(Q, I) · diag(I_k, C P) [D + k, k + D], in float64: v = this · (o_k, f)."""
        p, q = (None if part is None else part.folded() for part in (self.P, self.Q))
        like = torch.empty(0, dtype=torch.float64, device=next(self.parameters()).device)
        whole = _stacked(self.extra, self.C * (torch.eye(self.new_dim).to(like) if p is None else p))
        return torch.cat([self._compatible_rows(p, q, like), whole[self.old_dim :]])

    def _compatible_rows(self, p: Tensor | None, q: Tensor | None, like: Tensor) -> Tensor:
        """[O, k + D]"""
        if p is None:
            p = torch.eye(self.new_dim, dtype=like.dtype, device=like.device)
        rows = self.old_dim - self.extra
        if q is None:
            return _stacked(self.extra, self.C * p)[: self.old_dim]
        return torch.cat([q[:, : self.extra], self.C * (q[:, self.extra :] @ p[:rows])], 1)


def sided(h: Tensor, side: nn.Module | None, rectified: bool) -> Tensor:
    """o_k [B, k], of length 1: the estimate of the old vector's first coordinates. Empty where k is 0."""
    if side is None:
        return h[:, :0]
    return F.normalize(side(h.relu() if rectified else h), dim=1)


def _stacked(extra: int, below: Tensor) -> Tensor:
    """diag(I_extra, below)"""
    return torch.block_diag(torch.eye(extra, dtype=below.dtype, device=below.device), below) if extra else below


def reference(network: BT2Network, h: Tensor, targets: Targets, places: Tensor) -> tuple[Tensor, Tensor]:
    """The full vectors v [B, D + k] and the loss, written to be read beside the paper: the oracle of the network and its fold."""
    d, d_o, k, C = network.new_dim, network.old_dim, network.extra, network.C
    lambda_1, lambda_2, lambda_3 = network.weights
    P = network.P() if network.P is not None else torch.eye(d).to(h)
    Q = network.Q() if network.Q is not None else torch.eye(d_o).to(h)

    f = F.normalize(h[:, :d], dim=1)
    o = h[:, :0] if network.side is None else F.normalize(network.side(F.relu(h) if network.rectified else h), dim=1)
    u = torch.cat([o, (C * f) @ P.T], dim=1)
    assert u.shape[1] == d + k
    z_c, z_e = u[:, :d_o] @ Q.T, u[:, d_o:]
    v = torch.cat([z_c, z_e], dim=1)

    phi_old, phi_p, y = targets.old[places], targets.new[places], targets.labels
    z_hat = z_c / z_c.norm(dim=1, keepdim=True)
    loss = lambda_3 * (1 - (phi_old * z_hat).sum(1).mean()) + lambda_1 * (1 - (phi_p * f).sum(1).mean())
    if y is not None and network.classifier is not None and targets.frozen is not None:
        loss = loss + F.cross_entropy(f @ network.classifier.weight.T, y[places], label_smoothing=network.smoothing)
        loss = loss + lambda_2 * F.cross_entropy(z_hat @ targets.frozen.T, y[places], label_smoothing=network.smoothing)
    return v, loss
