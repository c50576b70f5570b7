"""K-FAC: gradients between the inverses of the damped covariances of outputs and inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from instar.errors import CheckpointError, ShapeError
from instar.optim.first_order import Whole, decayed, refuse_copy, tensor_bytes
from instar.optim.layers import Layer, averaged, preconditionable, skipping


class KFAC(Whole):
    r"""D = (B + δ I)⁻¹ G (A + δ I)⁻¹, ν D for SGD with momentum, ν = min(1, √(κ / Σ η² |⟨G, D⟩|)).

    A ← ρ A + (1-ρ) E[a aᵀ], B ← ρ B + (1-ρ) E[g gᵀ], from I; a and g are samples as in `instar.optim.layers`.
    Martens & Grosse 2015 (arXiv 1503.05671); with the means, damping and KL clip of the K-FAC that MKOR is held against.

    Args:
        model: Linear and Conv2d layers and `transformers` Conv1D are preconditioned, as by `MKOR`.
        lr: η. momentum, weight_decay: of SGD. f: steps between inversions; covariances are taken at the same steps.
        damping: δ. decay: ρ. kl_clip: κ; 0 is no clip, and then D gets the norm of G where `rescale` is set, as in MKOR.
        clip, accumulation, skip, widest: as of `MKOR`, and so is the attribute loss_scale.

    Processes of `torch.distributed` average their covariances, in one call every f steps, over the default group.
    Per layer: covariances O(N (in² + out²)) and inversions O(in³ + out³) every f steps; 2 (in² + out²) numbers.
    Differs from the paper: positions of an image are averaged before the covariance, those of a sequence are samples; one δ for
    both factors.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        f: int = 10,
        damping: float = 1e-3,
        decay: float = 0.95,
        kl_clip: float = 1e-3,
        rescale: bool = False,
        clip: float = 100.0,
        accumulation: int = 1,
        skip: Sequence[str] | Callable[[str, nn.Module], bool] = (),
        widest: int = 4096,
    ) -> None:
        if f < 1 or accumulation < 1 or not (damping > 0 and 0 <= decay < 1 and kl_clip >= 0 and 0 <= momentum < 1 and lr >= 0):
            raise ShapeError(
                "KFAC expects f and accumulation of 1 or more, damping > 0, 0 ≤ decay, momentum < 1, lr and kl_clip ≥ 0; "
                f"received {f}, {accumulation}, {damping}, {decay}, {momentum}, {lr}, {kl_clip}."
            )
        super().__init__(decayed(model, weight_decay), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.f, self.damping, self.decay, self.kl_clip, self.rescale = f, damping, decay, kl_clip, rescale
        self.steps, self.loss_scale = 0, 1.0
        self.layers, self.left_out = preconditionable(model, skip=skipping(skip), widest=widest)
        self.covariances: dict[str, tuple[Tensor, Tensor]] = {}
        self.inverses: dict[str, tuple[Tensor, Tensor]] = {}
        for layer in self.layers:
            rows, columns = layer.sizes
            device = layer.weight.device
            self.covariances[layer.name] = torch.eye(rows, device=device), torch.eye(columns, device=device)
            self.inverses[layer.name] = torch.eye(rows, device=device), torch.eye(columns, device=device)
            layer.watch(
                lambda: self.steps % self.f == 0, lambda: accumulation / self.loss_scale, clip,
                lambda rows: rows.T @ rows / len(rows),
            )  # fmt: skip

    def __getstate__(self) -> NoReturn:
        refuse_copy(self, "it watches the layers of its own model")

    @property
    def keeps(self) -> str:  # type: ignore[override]
        return "statistics of layers" if self.layers else ""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; nothing changes where a gradient is not finite. With a closure, the loss is its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.ready():
            if self.steps % self.f == 0:
                self._refresh()
            self._precondition()
            self._descend()
            self.steps += 1
        for layer in self.layers:
            layer.forget()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As ever; the statistics of the gradients go with them."""
        super().zero_grad(set_to_none)
        for layer in self.layers:
            layer.forget()

    def state_bytes(self) -> int:
        kept = [t for table in (self.covariances, self.inverses) for pair in table.values() for t in pair]
        return tensor_bytes(self.state.values()) + sum(t.numel() * t.element_size() for t in kept)

    def state_dict(self) -> dict[str, Any]:
        """With "kfac" beside "state" and "param_groups"."""
        own = {"steps": self.steps, "covariances": dict(self.covariances), "inverses": dict(self.inverses)}
        return {**super().state_dict(), "kfac": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises CheckpointError for the state of another model or optimiser."""
        own = state_dict.get("kfac")
        if own is None:
            raise CheckpointError("This state has no part 'kfac': it is that of another optimiser.")
        for table, mine in (("covariances", self.covariances), ("inverses", self.inverses)):
            shapes = {name: [tuple(t.shape) for t in pair] for name, pair in own[table].items()}
            if shapes != {name: [tuple(t.shape) for t in pair] for name, pair in mine.items()}:
                raise CheckpointError(f"The {table} of this state are those of another model.")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "kfac"})
        self.steps = own["steps"]
        for table, mine in (("covariances", self.covariances), ("inverses", self.inverses)):
            for name, pair in own[table].items():
                outputs, inputs = mine[name]
                mine[name] = pair[0].to(outputs.device, copy=True), pair[1].to(inputs.device, copy=True)

    def _refresh(self) -> None:
        for layer, a, g in averaged(self.layers, 2, None):
            kept = [
                self.decay * old + (1 - self.decay) * new for old, new in zip(self.covariances[layer.name], (g, a), strict=True)
            ]
            self.covariances[layer.name] = kept[0], kept[1]
            self.inverses[layer.name] = _inverse(kept[0], self.damping), _inverse(kept[1], self.damping)

    def _precondition(self) -> None:
        found: list[tuple[Layer, Tensor, Tensor]] = []
        for layer in self.layers:
            gradient = layer.gradient()
            outputs, inputs = self.inverses[layer.name]
            if gradient is not None and gradient.shape[1] == len(inputs):
                with layer.full_precision():
                    found.append((layer, gradient, outputs @ gradient @ inputs))
        rates = {id(p): float(group["lr"]) for group in self.param_groups for p in group["params"]}
        products: dict[float, float] = {}
        for layer, gradient, made in found:
            rate = rates[id(layer.weight)]
            products[rate] = products.get(rate, 0.0) + float((gradient * made).sum().abs())
        total = sum(product * rate**2 for rate, product in products.items())
        nu = min(1.0, math.sqrt(self.kl_clip / total)) if self.kl_clip > 0 and total > 0 else 1.0
        for layer, gradient, made in found:
            size = float(made.norm())
            layer.put(made * (float(gradient.norm()) / size if self.rescale and self.kl_clip == 0 and size > 0 else nu))

    def _descend(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                step = p.grad + group["weight_decay"] * p
                entry = self.state[p]
                kept = entry.get("momentum_buffer")
                entry["momentum_buffer"] = step.clone() if kept is None else kept.mul_(group["momentum"]).add_(step)
                p.add_(entry["momentum_buffer"], alpha=-group["lr"])


def _inverse(covariance: Tensor, damping: float) -> Tensor:
    """(C + δ I)⁻¹ of a symmetric C without negative eigenvalues, by Cholesky; δ is doubled as long as rounding made one."""
    damped = covariance.clone()
    damped.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    while bool(failed) and math.isfinite(damping):
        damped.diagonal().add_(damping)
        damping *= 2
        factor, failed = torch.linalg.cholesky_ex(damped)
    return torch.cholesky_inverse(factor)
