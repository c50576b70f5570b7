"""What changes a model that was trained: adapters, editors, transforms, growth, and updates as a whole."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from instar.adapters.layer import AdapterLayer
    from instar.growth.growing import Grown
    from instar.receipt import Receipt
from instar.interfaces.problem import Monitor


class Adapter(abc.ABC):
    """A small trainable change of some layers of a model, whose own weights stay as they are.

    Constructor arguments are the configuration, each kept as an attribute of its name: a saved adapter is rebuilt from them. A
    method says what it adds to one layer; the rest — attach, switch, off, merge, unmerge, save, load, several side by side —
    stands in `instar.adapters` and is the same for all. At birth the adapted model equals the base.
    """

    lr: float
    """The peak rate of AdamW, without weight decay, that suits it. Who trains it reads it."""
    noun: ClassVar[str] = "linear layer"
    """What it takes, for messages."""
    replaces: ClassVar[bool] = False
    """Whether it trains copies of whole modules: then it does not matter which weights lie under them."""

    @abc.abstractmethod
    def layer(self, base: nn.Module, name: str) -> AdapterLayer:
        """What it adds to one layer; `name` is the layer's path. Raises ShapeError for a layer whose sizes do not fit."""

    def layers(self, model: nn.Module, names: Sequence[str]) -> dict[str, AdapterLayer]:
        """`layer` of each, by path; for methods that must know the whole model."""
        return {name: self.layer(model.get_submodule(name), name) for name in names}

    def takes(self, module: nn.Module) -> bool:
        """Whether it can adapt a module: `torch.nn.Linear` and `transformers` Conv1D, unless it says otherwise."""
        from instar.adapters import where

        return where.linear(module)

    def targets(self, model: nn.Module) -> list[str]:
        """Paths of what it adapts where nobody says: the query and value projections of attention, unless it says otherwise.

        Raises AdapterError where the model's parts are not known.
        """
        from instar.adapters import where

        return where.query_and_value(model)

    def attach(
        self,
        model: nn.Module,
        where: str | Sequence[str] | None = None,
        *,
        name: str = "default",
        modules_to_save: Sequence[str] = (),
    ) -> Receipt:
        """Put the adapter into a model, in place, active, and freeze everything else.

        where: layers, by the last part of their names or a regular expression over whole ones; by default `targets`. name:
        several adapters may stand beside each other, one of them active. modules_to_save: modules that are trained whole (a
        head), as copies beside the base's own. Raises AdapterError where no layer is found or the name is taken.
        """
        from instar.adapters import attaching

        return attaching.attach(self, model, where, name=name, modules_to_save=modules_to_save)


@dataclass(frozen=True)
class Fact:
    """What a language model should say from now on: after `prompt`, which holds `subject`, comes `target`."""

    prompt: str
    subject: str
    target: str
    old: str | None = None
    """What the model said, where it is known."""
    paraphrases: Sequence[str] = ()
    """Other prompts that ask the same; they are never trained on."""
    neighbours: Sequence[str] = ()
    """Prompts about other subjects, whose answer `old` should stay."""


class Editor(abc.ABC):
    """Writes facts into the weights of a causal language model. Constructor arguments are the configuration."""

    @abc.abstractmethod
    def edit(self, model: nn.Module, tokenizer: Any, facts: Sequence[Fact], *, monitor: Monitor | None = None) -> Receipt:
        """Change the model in place; only the declared tensors, and nothing for no facts.

        The order of the facts does not matter. Raises EditError for facts that cannot be written (a subject that is not in its
        prompt, targets that contradict each other), ModelError for a model whose parts are not found.
        """


class Transform(abc.ABC):
    """Changes size, format or structure of a model in place. Constructor arguments are the configuration."""

    @abc.abstractmethod
    def apply(self, model: nn.Module, data: Any = None, *, monitor: Monitor | None = None) -> Receipt:
        """Transform the model; it loads again without the code that trained it.

        data: what the method needs to choose by, as its card says; None for methods that need none. Raises TransformError, and
        ModelError for a model that it cannot take.
        """


Plan = Mapping[str, int | str]
"""How large a model shall become: name of a size -> the size, or a multiple of it, as in {"hidden": 512} or {"n": "2x"}."""

Preserves = Literal["bits", "rounding", "nothing"]
"""What a growth keeps of a model's outputs: every bit, all but rounding, or no promise."""


class Growth(abc.ABC):
    """Makes a model larger in place, so that it keeps what it has learnt. Constructor arguments are the configuration.

    It is no `Transform`, since it needs a plan for each model, and the optimiser with which the model is trained on.
    """

    architecture: Literal["tokenformer", "decoder"]
    """Which models it takes: `instar.growth.TokenFormer`, or `instar.models.decoder.Decoder` with softmax attention."""
    sizes: tuple[str, ...]
    """What a plan may name."""
    grows: ClassVar[bool] = True
    """Whether anything is added; a control may leave the model as it is."""

    @property
    @abc.abstractmethod
    def preserves(self) -> Preserves:
        """What it keeps with these settings."""

    @abc.abstractmethod
    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        """Grow the model, and what the optimiser knows of it; all or nothing, a function of model, plan and seed.

        Raises TransformError for a plan that names what is not there, wants less than there is, or does not divide, for a model
        that it cannot take, and for an optimiser whose state cannot grow.
        """


@dataclass(frozen=True)
class Versions:
    """A task before and after its model changed. Both are causal models of `transformers` with one vocabulary."""

    old: nn.Module
    """Answers as the version before did, its adapter active or merged."""
    new: nn.Module
    """The next base, with an adapter that was trained for the task on it, active."""
    rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    """Tokens of prompts and of what follows: what the adapter was trained on."""
    fill: int
    """The token that pads."""


@dataclass(frozen=True)
class Answering:
    """How the task is answered from now on."""

    logits: Callable[[Tensor, Tensor], Tensor]
    """Ids and mask [B, T] -> [B, T, V]: the softmax of the last axis predicts the next token. No gradients, no dropout."""
    passes: int = 1
    """Forward passes that it takes. Where it is one, the adapter that answers is the active one of `Versions.new`."""


class Updater(abc.ABC):
    """Brings a task to the next version of its model, so that what the old one answered rightly stays right.

    Constructor arguments are the configuration, each kept as an attribute of its name.
    """

    @abc.abstractmethod
    def update(
        self,
        versions: Versions,
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        folder: Path | None = None,
    ) -> Answering:
        """Learn for `steps` steps, as further adapters of `versions.new`, beside its own; the old version is only read.

        After no steps, what takes one pass answers as the new version does. folder: progress is kept there and taken up again to
        the bit, for the same versions. Raises DataError for no rows, ModelError for versions of different vocabularies,
        AdapterError where no adapter is active, DivergedError.
        """
