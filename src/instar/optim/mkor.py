"""MKOR: Kronecker-factored preconditioning, the inverses kept by rank-one updates, around any first-order optimiser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instar.errors import CheckpointError, ShapeError, UnknownNameError
from instar.interfaces import Optimizer
from instar.optim.adamw import AdamW
from instar.optim.first_order import dense_and_finite, refuse_copy, tensor_bytes
from instar.optim.hybrid import HybridPolicy
from instar.optim.inverse import RULES, Rule, stabilised, updated
from instar.optim.lamb import LAMB
from instar.optim.layers import Layer, averaged, preconditionable, skipping
from instar.optim.sgd import SGD

Inner = torch.optim.Optimizer | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Named = Literal["sgd", "adamw", "lamb"]
_NAMED: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adamw": AdamW, "lamb": LAMB}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_RULES_THAT_GROW = ("exact", "paper")


class MKOR(Optimizer):
    r"""D = P_g G P_a for each layer, D · ‖G‖ / ‖D‖ for the optimiser inside.

    G [out, in (+1)] is the gradient with that of the bias as its last column; P_g and P_a keep the inverses of the factors of
    output gradients and inputs, from I, by one rank-one update each (`instar.optim.inverse.updated`) every f steps.

    Args:
        model: its Linear and Conv2d layers and `transformers` Conv1D are preconditioned; what else it has is the inner
            optimiser's alone, and so are embeddings, shared weights, grouped convolutions and what is named in `skip`.
            `left_out` says why, layer by layer.
        inner: an optimiser over the model's parameters, or what makes one of them (`lambda p: torch.optim.SGD(p, 0.1, 0.9)`), or
            the name of one of ours, which gets the rate `lr`: sgd (momentum 0.9), adamw, lamb.
        f: steps between updates of the factors. warmup: first steps that update every time.
        rule: released, exact or paper. gamma: γ. eps: an entry beyond it brings the stabiliser, P ← ζ P + (1-ζ) I. zeta: ζ.
        rescale: whether D gets the norm of G, as weight part plus bias part. factor_dtype: of what is kept; products are float32.
        clip: bound of each entry of the statistics. accumulation: micro-batches a step, whose losses are divided by it.
        skip: names of layers, or a function of (name, module). widest: side of the largest factor.
        hybrid: MKOR-H: when to go on with the inner optimiser alone; tell it the loss by a closure or by `observe`.
        process_group: over which the vectors are averaged, in + 1 + out numbers a layer and one that says whether it was used;
            None is the default group.

    A `torch.optim.Optimizer` that shares parameter groups and state with the inner one, so that schedulers and clipping see one
    optimiser. A step whose gradients are not all finite, or sparse, is skipped whole; `skipped` counts them. A step that the
    caller skips takes nothing into the factors once its `zero_grad` is called.

    Attributes: loss_scale, what the loss is multiplied with before the backward pass. Hooks see gradients before anybody divides
    them again: with a GradScaler set it to `scaler.get_scale()` before each backward pass, and call `scaler.unscale_` as ever.

    Raises ShapeError, CheckpointError.
    Per layer: update O(in² + out²) every f steps; product O(out · in · (out + in)) a step; in² + out² numbers of `factor_dtype`.
    Differs from the paper: `rule` is by default what its code does; the vectors are averaged in one call at the step, not during
    the backward pass; the stabiliser blends where the released code's restarts from I.
    Mozaffari et al. 2023 (arXiv 2306.01685).
    """

    def __init__(
        self,
        model: nn.Module,
        inner: Inner | Named = "sgd",
        *,
        lr: float = 0.01,
        f: int = 10,
        warmup: int = 0,
        rule: Rule = "released",
        gamma: float = 0.95,
        eps: float = 2.0,
        zeta: float = 0.9,
        rescale: bool = True,
        factor_dtype: str = "bfloat16",
        clip: float = 100.0,
        accumulation: int = 1,
        skip: Sequence[str] | Callable[[str, nn.Module], bool] = (),
        widest: int = 8192,
        hybrid: HybridPolicy | None = None,
        process_group: Any = None,
    ) -> None:
        if f < 1 or warmup < 0 or accumulation < 1 or widest < 1 or rule not in RULES:
            raise ShapeError(
                f"MKOR expects f, accumulation and widest of 1 or more, warmup of 0 or more and a rule of {', '.join(RULES)}; "
                f"received {f}, {accumulation}, {widest}, {warmup} and '{rule}'."
            )
        if not (0 < gamma < 1 and 0 <= zeta <= 1 and eps > 0 and clip > 0):
            raise ShapeError(
                f"MKOR expects 0 < gamma < 1, 0 ≤ zeta ≤ 1, eps > 0, clip > 0; received {gamma}, {zeta}, {eps}, {clip}."
            )
        if factor_dtype not in _DTYPES:
            raise UnknownNameError.among("factor_dtype", factor_dtype, _DTYPES)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if isinstance(inner, str):
            if inner not in _NAMED:
                raise UnknownNameError.among("inner optimiser", inner, _NAMED)
            self.inner: torch.optim.Optimizer = _NAMED[inner](model, lr=lr)
        else:
            self.inner = inner if isinstance(inner, torch.optim.Optimizer) else inner(parameters)
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share()
        self.f, self.warmup, self.rule, self.gamma, self.eps, self.zeta = f, warmup, rule, gamma, eps, zeta
        self.rescale, self.factor_dtype, self.accumulation, self.hybrid = rescale, _DTYPES[factor_dtype], accumulation, hybrid
        self.group = process_group
        self.layers, self.left_out = preconditionable(model, skip=skipping(skip), widest=widest)
        names = {layer.name for layer in self.layers} | self.left_out.keys()
        if not callable(skip) and (unknown := [name for name in skip if name not in names]):
            raise ShapeError(f"skip names {unknown[0]}, which is no layer of the model with a matrix.")
        self.factors: dict[str, tuple[Tensor, Tensor]] = {layer.name: self._identity(layer) for layer in self.layers}
        self.steps = self.skipped = self.stabilised = 0
        self.loss_scale = 1.0
        self.switched: int | None = None
        for layer in self.layers:
            layer.watch(self._due, lambda: accumulation / self.loss_scale, clip, lambda rows: rows.mean(0))

    def __getstate__(self) -> NoReturn:
        refuse_copy(self, "it watches the layers of its own model")

    @property
    def keeps(self) -> str:  # type: ignore[override]
        return "statistics of layers" if self.layers else ""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Precondition the gradients in place and let the inner optimiser step. With a closure, the loss is its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._finite():
            self._forget()
            return loss
        if self.switched is None:
            if self._due():
                self._refresh()
            self._precondition()
            self._forget()
        self.inner.step()
        self.steps += 1
        if loss is not None:
            self.observe(float(loss.detach() if isinstance(loss, Tensor) else loss))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As ever; the statistics of the gradients go with them."""
        super().zero_grad(set_to_none)
        self._forget()

    def observe(self, loss: float) -> None:
        """For MKOR-H, where steps have no closure. Processes of a group take the mean of theirs, so that they switch together."""
        if self.hybrid is None or self.switched is not None:
            return
        if dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1:
            total = torch.tensor(loss, device=self.param_groups[0]["params"][0].device)
            dist.all_reduce(total, group=self.group)
            loss = float(total) / dist.get_world_size(self.group)
        if math.isfinite(loss) and self.hybrid.observe(loss):
            self.detach()
            self.switched = self.steps

    def detach(self) -> None:
        """Remove all hooks and factors: from here on the inner optimiser steps alone. Its state stays."""
        for layer in self.layers:
            layer.release()
        self.factors.clear()
        self.layers.clear()
        if self.switched is None:
            self.switched = self.steps

    def state_bytes(self) -> int:
        """Bytes of the inner optimiser's state and of the factors."""
        own = sum(t.numel() * t.element_size() for pair in self.factors.values() for t in pair)
        return own + tensor_bytes(self.inner.state.values())

    def stats(self) -> dict[str, Any]:
        """Steps, skipped steps, how often the stabiliser acted, the step of the switch, and the largest entry of each factor."""
        largest = {name: tuple(float(t.abs().max()) for t in pair) for name, pair in self.factors.items()}
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "stabilised": self.stabilised,
            "switched": self.switched,
            "largest": largest,
            "left_out": dict(self.left_out),
        }

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To both optimisers, which have one list of groups."""
        if "inner" in self.__dict__ and self.param_groups is self.inner.param_groups:
            self.inner.add_param_group(param_group)
        else:  # the base class, while it is made
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimiser, with "mkor" beside "state" and "param_groups"."""
        hybrid = self.hybrid.state_dict() if self.hybrid is not None else None
        own = {
            "inner": type(self.inner).__name__,
            "steps": self.steps,
            "skipped": self.skipped,
            "stabilised": self.stabilised,
            "switched": self.switched,
            "hybrid": hybrid,
            "factors": {name: {"outputs": pair[0], "inputs": pair[1]} for name, pair in self.factors.items()},
        }
        return {**self.inner.state_dict(), "mkor": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """All or nothing. Raises CheckpointError for the state of another model or of another optimiser."""
        if "mkor" not in state_dict:
            raise CheckpointError("This state has no part 'mkor': it is that of another optimiser.")
        own = state_dict["mkor"]
        if own["switched"] is None:
            if self.switched is not None:
                raise CheckpointError("This optimiser has switched or was detached; make a new one to load an earlier state.")
            for layer in self.layers:
                found = own["factors"].get(layer.name)
                wanted = [tuple(t.shape) for t in self.factors[layer.name]]
                if found is None or [tuple(found[k].shape) for k in ("outputs", "inputs")] != wanted:
                    raise CheckpointError(f"The state has no factors of {wanted} for {layer.name}: it is of another model.")
            if own["factors"].keys() != self.factors.keys():
                raise CheckpointError(
                    f"The state has factors for {sorted(own['factors'].keys() - self.factors.keys())}, unknown here."
                )
        if (own["hybrid"] is None) != (self.hybrid is None):
            raise CheckpointError("Of state and optimiser one is MKOR-H and the other is not.")
        self._require_inner(own.get("inner"), state_dict["param_groups"])
        if self.hybrid is not None:
            self.hybrid.load_state_dict(own["hybrid"])
        self.inner.load_state_dict({k: v for k, v in state_dict.items() if k != "mkor"})
        self._share()
        self.steps, self.skipped, self.stabilised = own["steps"], own["skipped"], own["stabilised"]
        if own["switched"] is not None:
            self.detach()
            self.switched = own["switched"]
            return
        for layer in self.layers:
            device = layer.weight.device
            pair = own["factors"][layer.name]
            self.factors[layer.name] = (
                pair["outputs"].to(device, self.factor_dtype, copy=True),
                pair["inputs"].to(device, self.factor_dtype, copy=True),
            )
            layer.forget()

    def _require_inner(self, name: str | None, groups: list[dict[str, Any]]) -> None:
        """Raise CheckpointError where the state of the inner optimiser is that of another; early states do not name it."""
        mine = type(self.inner).__name__
        if name not in (None, mine) or any(self.inner.defaults.keys() - group.keys() for group in groups if name is None):
            raise CheckpointError(
                f"The optimiser inside is {mine}, and the state is of {name or 'another one'}. Make MKOR around that one."
            )
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            raise CheckpointError("This state is of other parameter groups, or of a model with other parameters.")

    def _share(self) -> None:
        """One list of groups and one state: the inner optimiser's."""
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state

    def _identity(self, layer: Layer) -> tuple[Tensor, Tensor]:
        rows, columns = layer.sizes
        device = layer.weight.device
        return torch.eye(rows, dtype=self.factor_dtype, device=device), torch.eye(columns, dtype=self.factor_dtype, device=device)

    def _due(self) -> bool:
        return self.switched is None and (self.steps < self.warmup or self.steps % self.f == 0)

    def _forget(self) -> None:
        for layer in self.layers:
            layer.forget()

    def _finite(self) -> bool:
        """Whether all gradients are dense and finite; says once that a step is skipped."""
        if dense_and_finite(self):
            return True
        self.skipped += 1
        if self.skipped == 1:
            text = "A gradient is sparse or not finite: MKOR skips this step whole, and counts such steps in `skipped`."
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        return False

    @torch.no_grad()
    def _refresh(self) -> None:
        """One rank-one update of both factors of each layer that was used, here or in another process of the group."""
        for layer, a, g in averaged(self.layers, 1, self.group):
            outputs, inputs = self.factors[layer.name]
            with layer.full_precision():
                self.factors[layer.name] = self._next(outputs, g), self._next(inputs, a)

    def _next(self, kept: Tensor, v: Tensor) -> Tensor:
        inverse = kept.float()
        if self.rule in _RULES_THAT_GROW or self.eps < 1:  # of the released rule no entry is ever beyond 1
            calmed = stabilised(inverse, self.eps, self.zeta)
            if calmed is not None:
                inverse, self.stabilised = calmed, self.stabilised + 1
        found = updated(inverse, v, self.rule, self.gamma)
        if not bool(torch.linalg.vector_norm(found, math.inf).isfinite()):  # half precision, or a rule that diverged
            found = torch.eye(len(found), device=found.device)
            self.stabilised += 1
        return found.to(self.factor_dtype)

    @torch.no_grad()
    def _precondition(self) -> None:
        for layer in self.layers:
            gradient = layer.gradient()
            if gradient is None:
                continue
            outputs, inputs = (factor.float() for factor in self.factors[layer.name])
            if gradient.shape[1] != len(inputs):
                continue  # a bias without a gradient in this step
            with layer.full_precision():
                found = outputs @ gradient @ inputs
            if self.rescale:
                ratio = _size(gradient, layer) / _size(found, layer)
                if not math.isfinite(ratio):
                    continue
                found *= ratio
            layer.put(found)


def _size(gradient: Tensor, layer: Layer) -> float:
    """The norm of the weight part plus that of the bias part; NaN where both are 0."""
    if layer.bias is None:
        return float(gradient.norm()) or math.nan
    return float(gradient[:, :-1].norm() + gradient[:, -1].norm()) or math.nan
