"""AdamW whose state is larger than memory: streamed from a file, its transfers hidden behind updates of what is resident."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from instar.errors import CheckpointError, InstarError, ShapeError, StoreError
from instar.interfaces import Optimizer
from instar.optim.first_order import decayed, dense_and_finite, refuse_copy
from instar.optim.offload import exporting
from instar.optim.offload.engine import Engine, device_of
from instar.optim.offload.layout import checked
from instar.optim.offload.schedule import Division, ScheduleName, divide, interleaved
from instar.optim.offload.store import StoreSpec

_AS_TORCH = {
    "amsgrad": False,
    "maximize": False,
    "foreach": True,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
"""What the groups of torch's AdamW say besides, so that a state fits both."""


class OffloadedAdamW(Optimizer):
    r"""AdamW, equal to the bit to `torch.optim.AdamW(foreach=True)`, that holds no more of its state than a budget allows.

    The parameters are cut into subgroups of S elements. The moments of some stay in memory; those of the others are read from a
    store, updated and written back, by two threads, while resident ones are updated.

    Args:
        params: a model, whose norms and biases do not decay; or parameters, or groups of them, as of any optimiser.
        lr, beta1, beta2, eps, weight_decay: of AdamW.
        budget_bytes: for resident moments, staging buffers and workspace; parameters and gradients are not of it. None is what
            `ratio` needs, and without a ratio half of what the moments take, or the least that works.
        store: a file (recoverable after a crash; found again, it restores the parameters and the state of its last commit), a
            folder for a scratch file, or a `StoreSpec`; None is a scratch file in the folder for temporary files.
        schedule: `interleaved` (a streamed subgroup after every k - 1 residents), `pipelined` (residents first; reads ahead,
            writes behind) or `sequential` (residents first; every transfer is waited for).
        k: interval of the interleaved schedule, 2 or more; "auto" spreads streamed subgroups evenly. It may be set at any time.
        ratio: share of subgroups that is streamed; None is the least that the budget allows, 0 none, 1 all of them.
        subgroup: S; None aims at 64 subgroups. buffers: for staging.
        alternate: every other step goes backwards, so that what the last step left in the buffers is neither written nor read.
        prefetch: the first streamed subgroups are read during the backward pass.
        max_norm: largest norm of all gradients together, taken before the first update, as by `clip_grad_norm_`.
        commit_every: steps between commits to a recoverable store; 0 leaves them to `commit`.

    Attributes: skipped, steps that were skipped whole because a gradient was sparse or not finite; made, all others; payload,
    what the commit that was restored had been given, and None where nothing was restored.

    Raises ShapeError, BudgetError (which says the least that works), StoreError. A transfer that fails in the middle of a step
    leaves parameters between two steps: the optimiser says so, and takes no further step.
    Time of a step: about max(updates, reads, writes), where their sum is what the sequential schedule takes.
    Differs from the paper: the tiers are memory and a file instead of GPU and CPU memory, so that all updates run on the
    parameters' own device; which subgroups are streamed follows from the budget (`ratio`), k only orders them. For parameters on
    a CUDA device, `StoreSpec(mode="pinned")` makes them its memory and pinned memory; that has never been run.
    It needs Linux. Maurya et al. 2024, Deep Optimizer States (arXiv 2410.21316).
    """

    keeps = "moments in subgroups of its parameters"

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        budget_bytes: int | None = None,
        store: str | Path | StoreSpec | None = None,
        schedule: ScheduleName = "interleaved",
        k: int | Literal["auto"] = "auto",
        ratio: float | None = None,
        subgroup: int | None = None,
        buffers: int = 3,
        alternate: bool = True,
        prefetch: bool = True,
        max_norm: float | None = None,
        commit_every: int = 0,
    ) -> None:
        if not (lr >= 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and eps >= 0 and weight_decay >= 0):
            raise ShapeError(
                "OffloadedAdamW expects lr, eps and weight_decay of 0 or more and 0 ≤ beta < 1; received "
                f"{lr}, {eps}, {weight_decay}, {beta1}, {beta2}."
            )
        if commit_every < 0 or (max_norm is not None and not max_norm > 0):
            raise ShapeError(f"Expected are commit_every ≥ 0 and max_norm > 0; received {commit_every} and {max_norm}.")
        interleaved((), (), k)
        self.spec = store if isinstance(store, StoreSpec) else StoreSpec(store)
        if commit_every and not self.spec.recoverable:
            raise StoreError("commit_every needs a store with a name: store='FILE', on a disk.")
        self.k, self.alternate, self.prefetch, self.max_norm, self.commit_every = k, alternate, prefetch, max_norm, commit_every
        self._division: dict[str, Any] = {"schedule": schedule, "ratio": ratio, "subgroup": subgroup, "buffers": buffers}
        self.budget_bytes = budget_bytes
        self.made = self.skipped = 0
        self.payload: dict[str, Any] | None = None
        self._engine: Engine | None = None
        defaults = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay, **_AS_TORCH}
        super().__init__(decayed(params, weight_decay) if isinstance(params, nn.Module) else params, defaults)
        self._hooks: list[Any] = []
        self._build(self._divided())
        self._restore()

    def __getstate__(self) -> NoReturn:
        refuse_copy(self, "its state lies in a store that it alone holds")

    @property
    def engine(self) -> Engine:
        """What moves and updates the state. Raises StoreError after `close`."""
        if self._engine is None:
            raise StoreError("This optimiser is closed.")
        return self._engine

    @property
    def memory_bytes(self) -> int:
        """Bytes that are held now for resident state, staging and workspace; never more than the budget."""
        return self.engine.memory.used

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; nothing changes where a gradient is sparse or not finite. With a closure, the loss is its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not dense_and_finite(self):
            self.skipped += 1
            if self.skipped == 1:
                text = "A gradient is sparse or not finite: this step is skipped whole, and such steps are counted in `skipped`."
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            return loss
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.max_norm)
        if self.engine.step(self.param_groups, self.k, self.alternate):
            self.made += 1
            if self.commit_every and self.made % self.commit_every == 0:
                self.commit()
        return loss

    def commit(self, payload: dict[str, Any] | None = None) -> None:
        """Make the state and the parameters of now durable in the store: what a crash leads back to.

        Args:
            payload: of JSON, at most 64 KiB, given back as the attribute `payload` after a crash: a scheduler's state, an epoch.

        Raises StoreError; the commit before then stands.
        """
        if not self.spec.recoverable:
            raise StoreError("Only a store with a name can be committed to: store='FILE', on a disk.")
        facts = {"groups": self._groups(), "made": self.made, "skipped": self.skipped, "payload": payload or {}}
        self.engine.commit(facts, self.made)

    def state_bytes(self) -> int:
        """Bytes of the state of all parameters that have made a step, wherever it lies; `memory_bytes` is what is in memory."""
        engine = self.engine
        return sum(2 * p.numel() * p.dtype.itemsize + 4 for p, step in zip(engine.params, engine.steps, strict=True) if step)

    def state_dict(self) -> dict[str, Any]:
        """As that of `torch.optim.AdamW`. Its tensors are mapped from a scratch file, so that they need not fit into memory."""
        return self.engine.exported(self._groups())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of this class or of `torch.optim.AdamW`; it is checked before anything changes. Raises CheckpointError."""
        groups, state = state_dict.get("param_groups"), state_dict.get("state")
        if not isinstance(groups, list) or not isinstance(state, dict):
            raise CheckpointError("This is no state of an optimiser: 'state' and 'param_groups' are expected.")
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise CheckpointError(
                "This state is of an optimiser with other parameter groups, or of a model with other parameters."
            )
        if any(g.get("amsgrad") or g.get("maximize") or g.get("decoupled_weight_decay") is False for g in groups):
            raise CheckpointError(
                "This state is of AdamW with amsgrad or maximize, or of Adam; OffloadedAdamW has none of these."
            )
        numbers = [n for g in groups for n in g["params"]]
        steps = self.engine.load({new: state[old] for new, old in enumerate(numbers) if state.get(old)})
        self._set_groups(groups)
        self.made = max(steps, default=0)

    def save(self, path: str | Path) -> None:
        """Write the state as a safetensors file, extent by extent; `offload.exporting.read` reads it. Raises OutputError."""
        self.engine.export(Path(path), self._groups())

    def load(self, path: str | Path) -> None:
        """`load_state_dict` of a file of `save`, which is mapped and not read at once. Raises CheckpointError."""
        self.load_state_dict(exporting.read(Path(path)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A further group; the state is cut anew.

        Raises StoreError where a store with a name holds the old cut or a disk has no room for the new one, and BudgetError and
        ShapeError as at the start; nothing has changed then.
        """
        if self._engine is None:  # the base class, while it is made
            super().add_param_group(param_group)
            return
        if self.spec.recoverable:
            raise StoreError(
                "A store with a name cannot take another group: save() the state, and load() it into a new optimiser."
            )
        kept = self.state_dict()
        super().add_param_group(param_group)
        try:
            division = self._divided()
        except InstarError:
            self.param_groups.pop()
            raise
        before = self.engine.division
        self.close()
        try:
            self._build(division).load(kept["state"])
        except BaseException:
            self.close()
            self.param_groups.pop()
            self._build(before).load(kept["state"])
            raise

    def close(self) -> None:
        """End the threads and release the store and the memory. What is not committed is lost."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _divided(self) -> Division:
        """How the parameters of now are cut. Raises BudgetError, ShapeError."""
        device_of(checked(self.param_groups), self.spec)
        return divide(self.param_groups, self.budget_bytes, scratch=self.spec.recoverable, **self._division)

    def _build(self, division: Division) -> Engine:
        self._engine = Engine(self.param_groups, division, self.spec)
        if self.prefetch:
            told = weakref.WeakMethod(self._backward_begins)
            self._hooks = [p.register_post_accumulate_grad_hook(_telling(told)) for p in self._engine.params if p.requires_grad]
        return self._engine

    def _backward_begins(self) -> None:
        if self._engine is not None:
            self._engine.prefetch(self.k, self.alternate)

    def _restore(self) -> None:
        """The last commit of the store, where there is one."""
        facts = self.engine.restore()
        if facts is not None:
            self._set_groups(facts["groups"])
            self.made, self.skipped, self.payload = facts["made"], facts["skipped"], facts["payload"]

    def _groups(self) -> list[dict[str, Any]]:
        """The groups with numbers for parameters, as JSON has them."""
        numbers = iter(range(len(self.engine.params)))
        return [
            {**{key: value for key, value in g.items() if key != "params"}, "params": [next(numbers) for _ in g["params"]]}
            for g in self.param_groups
        ]

    def _set_groups(self, groups: list[dict[str, Any]]) -> None:
        for mine, given in zip(self.param_groups, groups, strict=True):
            mine.update({key: value for key, value in given.items() if key not in ("params", *_AS_TORCH)})
            mine["betas"] = tuple(mine["betas"])


def _telling(told: weakref.WeakMethod[Any]) -> Callable[[Tensor], None]:
    """A hook that keeps no optimiser alive."""

    def hook(_: Tensor) -> None:
        if (method := told()) is not None:
            method()

    return hook
