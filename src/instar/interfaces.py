"""Every interface of Instar, without logic: the page to read first.

Axes. One order everywhere, named by the legend
    B batch · T time · D width of the model · H heads · K key width of a head · V value width of a head
    activations [B, T, D]     per head [B, T, H, K] and [B, T, H, V]     matrix states [B, H, K, V]
A method's constructor arguments are its configuration (there is no second config class), and `issubclass` decides which
interface it has. The interface of a family comes with its first method; the contract of each stands in `instar.checks`.

Vectors. An encoder turns texts into vectors, an index stores them, and a head lets a newer encoder's vectors be compared with an
older one's:
    N items · D width of the new vectors · O width of the old ones · F width of what a new row stores · Q queries · k results
What a store keeps is numpy float32; what learns is torch.

Whatever changes a model in place returns an `instar.receipt.Receipt` (contract: `instar.checks.receipt`). What answers items
for the gate, be it model, endpoint or function, is an `instar.doors.version.Version`; it imports no torch and stands there.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.items import Items
from instar.state import State

if TYPE_CHECKING:
    from instar.adapters.layer import AdapterLayer
    from instar.data.panel import Panel
    from instar.growth.growing import Grown
    from instar.receipt import Receipt

__all__ = [
    "Adapter",
    "Answering",
    "CompatibleHead",
    "Data",
    "Editor",
    "Encoder",
    "Examples",
    "Fact",
    "Floats",
    "Forecaster",
    "Fusion",
    "Generation",
    "Growth",
    "Hits",
    "Id",
    "InContextLearner",
    "Index",
    "Items",
    "Labeller",
    "Mixer",
    "Monitor",
    "Optimizer",
    "Pairs",
    "Plan",
    "Predictor",
    "Preserves",
    "Problem",
    "State",
    "Trace",
    "Transform",
    "Updater",
    "Versions",
    "Workload",
]

Floats = NDArray[np.float32]
Id = int | str
"""What a store calls a row."""


class Mixer(nn.Module, abc.ABC):
    """A token mixer: the part of a block that moves information between positions.

    `Mixer(width, *, heads=…, **knobs)`. One call form for training, prefill, streaming and decoding.
    """

    width: int
    heads: int

    @abc.abstractmethod
    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mix `x` [B, T, D] and return the output [B, T, D] and the state after the last token.

        state: what an earlier call returned; None is `init_state(B)`. It is a value: it is never changed, and continuing
            from an older one gives what it gave before.
        mask: bool [B, T], True where the token is real. Others leave the state as it is and reach no real output; their own
            outputs are finite and mean nothing. Left, right and inner padding are all allowed.
        reset: bool [B, T], True where a new sequence starts (packed rows): the state is dropped before that token.
        T may be 0 or 1: one token is a call with T = 1. A whole sequence, any split of it, and token by token give the same
        outputs, state and gradients (a card's tag declares exceptions).
        """

    @abc.abstractmethod
    def reference(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The same function, written to be read beside the paper: the oracle of `forward`, values and gradients."""

    @abc.abstractmethod
    def init_state(self, batch: int) -> State:
        """The state before the first token, on the module's device: a tree of tensors, batch first."""


@dataclass(frozen=True)
class Pairs:
    """The same items under both encoders: what a head is fitted on. Rows are made unit vectors by `compat.pairs.of`."""

    old: Tensor
    """[N, O], what is stored: the targets."""
    new: Tensor
    """[N, D], the new encoder's vectors."""
    labels: Tensor | None = None
    """[N] int64, classes; None where nobody knows them."""
    inputs: Tensor | None = None
    """[N, I], what a trained head reads, where that is not `new` itself (features before the last layers, another modality)."""

    @property
    def x(self) -> Tensor:
        """What a trained head reads."""
        return self.new if self.inputs is None else self.inputs


class CompatibleHead(nn.Module, abc.ABC):
    """Lets vectors of a new encoder be compared, by cosine, with those that an older one stored.

    `Head(new_dim, old_dim, *, input_dim=None, **knobs)`. Generations are counted from 0, the oldest that is still stored; this
    head's own new one is `newest`. Between two encoders that is 1; a head with a `previous` one goes on counting.
    """

    new_dim: int
    old_dim: int
    input_dim: int
    """Width of x: `new_dim`, unless the head reads something else than the new vectors."""
    full_dim: int
    """Width of what a row of the newest generation stores."""
    previous: CompatibleHead | None
    """The head of the update before this one; its full vectors are this one's old ones. None at the start; assign it."""
    nested: ClassVar[bool] = False
    """Whether `compatible(x)` is the prefix of `full(x)`, so that padded old rows and new rows can share one index."""
    supervised: ClassVar[bool] = False
    """Whether `fit` needs labels."""
    closed_form: ClassVar[bool] = False
    """Whether `fit` is a formula; otherwise it trains for `steps`."""

    def __init__(self) -> None:
        super().__init__()
        self.previous = None  # an attribute of the class would hide the module that is assigned later

    @abc.abstractmethod
    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Learn in place from items under both encoders.

        steps: of training; None takes what suits the number of pairs; closed forms ignore it. The result is a function of
        pairs, steps and seed alone. Raises DataError for too few pairs, DivergedError, ShapeError for other widths.
        """

    @abc.abstractmethod
    def compatible(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> [N, old_dim], comparable with stored old vectors by cosine."""

    @abc.abstractmethod
    def full(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> [N, full_dim]: what rows and queries of the newest generation are."""

    @abc.abstractmethod
    def lower(self, full: Tensor, generation: int) -> Tensor:
        """Full vectors [N, full_dim] -> comparable with those of an older `generation`."""

    @property
    def newest(self) -> int:
        """The number of the newest generation."""
        return 1 if self.previous is None else self.previous.newest + 1

    def project(self, x: Tensor, generation: int) -> Tensor:
        """Unit vectors that query rows of `generation`; serves an untouched index of that generation.

        Raises ShapeError for a generation that this head does not know.
        """
        from instar.compat import projecting

        return projecting.project(self, x, generation)


@dataclass(frozen=True)
class Generation:
    """The vectors of one encoder among those that an index stores."""

    number: int
    """0 is the oldest."""
    encoder: str
    """Fingerprint of what made them: encoder, settings, head. Vectors of another one are refused."""
    dim: int
    name: str = ""
    """How a person calls the encoder."""


Fusion = Literal["cosine", "rank"] | Callable[[int, Floats], Floats]
"""How scores of several generations become one list: as they are; by the place in the list of its own generation; or by a
function (generation, scores) -> scores that can be compared, such as a `retrieval.fusion.Calibration`."""


@dataclass(frozen=True)
class Hits:
    """What a search found, the best first."""

    scores: Floats
    """[Q, k], higher is better; −inf where there are fewer rows than k."""
    ids: NDArray[np.object_]
    """[Q, k], None where there are fewer rows than k."""
    generations: NDArray[np.int64]
    """[Q, k], the generation whose vector was compared; −1 where there are fewer rows than k."""


class Index(abc.ABC):
    """Stored vectors of one or several encoders: searchable, whole and right at every moment of a change between them.

    A row has one vector that counts, that of the newest generation it has reached. `begin` opens a new generation, `move` gives
    rows their vectors in it, `rollback` takes it back, `finish` drops what is older. Whatever returns is durable; whatever is
    interrupted has either happened for all of its rows or for none. Readers in other processes see every row, exactly once, at
    every moment. Vectors are float32 [N, dim] of length 1, ids are unique.
    """

    @abc.abstractmethod
    def generations(self) -> list[Generation]:
        """What is stored, the oldest first. Reads what other processes changed."""

    @abc.abstractmethod
    def counts(self) -> dict[int, int]:
        """Generation -> rows whose counting vector is of it."""

    @abc.abstractmethod
    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        """Ids of rows that stand in a generation, in an order of the store that does not change; page with `after`."""

    @abc.abstractmethod
    def fetch(self, ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        """The vector that counts and its generation, for each id. Raises DataError for an id that is not there."""

    @abc.abstractmethod
    def add(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """New rows. Raises DataError for ids that exist, DataError and ShapeError for bad vectors, GenerationError."""

    @abc.abstractmethod
    def remove(self, ids: Sequence[Id]) -> None:
        """Rows go, in every generation. Raises DataError for an id that is not there."""

    @abc.abstractmethod
    def begin(self, generation: Generation) -> None:
        """Open the next generation; nothing happens when it is open already.

        Raises GenerationError for any other number or encoder.
        """

    @abc.abstractmethod
    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """Existing rows now have these vectors, of the newest generation; rows that are there already are overwritten.

        Raises DataError for an id that is not there, and what `add` raises.
        """

    @abc.abstractmethod
    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        """The k rows of largest cosine among those that stand in a generation. queries [Q, dim of the generation]."""

    @abc.abstractmethod
    def rollback(self) -> None:
        """The newest generation is gone and every row is as it was before `begin`. May be interrupted and called again.

        Raises GenerationError when there is no older one, or when rows were added that have no older vector (remove them first).
        """

    @abc.abstractmethod
    def finish(self) -> None:
        """Older generations are gone. Raises GenerationError while rows still stand in one."""

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Give back files and connections."""

    def search(self, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
        """The k best rows over all generations.

        queries: generation -> the same queries [Q, dim], as `CompatibleHead.project` or each encoder gives them. Raises
        GenerationError where rows stand in a generation for which there is no query, or that the index does not know.
        """
        from instar.retrieval import fusion as fusing

        return fusing.search(self, queries, k, fusion)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Encoder(abc.ABC):
    """Turns texts into unit vectors."""

    name: str
    """How a person calls it."""
    dim: int
    fingerprint: str
    """SHA-256 over whatever decides the vectors: weights, pooling, prompts, lengths, dimensions kept."""

    @abc.abstractmethod
    def encode(
        self,
        texts: Sequence[str],
        kind: Literal["query", "document"] = "document",
        progress: Callable[[int, int], None] | None = None,
    ) -> Floats:
        """Unit vectors [N, dim], in the order of the texts. Raises ModelError for NaN or zero vectors, DataError for bad texts.

        kind: encoders that were trained with different prompts for queries and documents need to know. progress: called with
        (done, total).
        """


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


class InContextLearner(abc.ABC):
    """Answers queries from labelled examples that it is shown; its weights, if it has any, stay as they are while it does.

    B tasks · N examples · D width of an input · Q queries. Labels are numbers; of two classes they are −1 and 1, and the sign of
    a prediction is the class. A constructor may ask for `width` (D), `examples` (the most of a context), and `noise` and `prior`
    (standard deviations of labels' noise and of weights): a problem gives those that it names.
    """

    @abc.abstractmethod
    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """xs [B, N, D], ys [B, N], x_query [B, Q, D] -> labels of the queries [B, Q], each answered alone. N may be 0.

        Raises ShapeError for shapes that do not fit, or more examples than it can take.
        """

    def prefixes(self, xs: Tensor, ys: Tensor) -> Tensor:
        """xs [B, N, D], ys [B, N] -> [B, N]: what is said of y_i after the i − 1 pairs before it."""
        found = [self.predict(xs[:, :i], ys[:, :i], xs[:, i : i + 1]) for i in range(xs.shape[1])]
        return torch.cat(found, 1) if found else ys.new_zeros(ys.shape)

    def fit(  # noqa: B027 - closed forms have nothing to learn
        self,
        tasks: Callable[[int], tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Learn to learn, in place. tasks: of a step, xs [B, N, D] and ys [B, N]. loss: of predictions [B, N] and labels.

        Learners without weights do nothing.
        """


@dataclass(frozen=True)
class Examples:
    """Sequences of tokens with what shall be said of them."""

    tokens: Sequence[Sequence[str]]
    labels: Sequence[Sequence[str | None]]
    """As long as the tokens, None where nothing is asked; or one label for a whole sequence, in a list of one (`pooled`)."""
    pooled: bool = False
    """Whether a sequence has one label, in place of one for each token."""
    causal: bool = False
    """Whether the label of a token may depend only on that token and those before it."""

    def __len__(self) -> int:
        return len(self.tokens)


class Labeller(abc.ABC):
    """Learns to label the tokens of sequences, or whole sequences. Constructor arguments are the configuration.

    Each argument is kept as an attribute of its name.
    """

    @abc.abstractmethod
    def fit(
        self,
        train: Examples,
        valid: Examples,
        *,
        steps: int,
        batch: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Learn for `steps` steps of `batch` sequences in all; choices are made by `valid`.

        The result is a function of data, steps, batch and seed alone. With `checkpoint`, progress is kept there and taken
        up again to the bit. Raises DataError for data that it cannot take, ShapeError, DivergedError.
        """

    @abc.abstractmethod
    def predict(self, sequences: Sequence[Sequence[str]]) -> list[list[str]]:
        """A label for each token (one in all where it learnt from pooled examples); each sequence by itself.

        Raises DataError for a token that it does not know, an empty sequence, or one that is too long, and before `fit`.
        """

    @abc.abstractmethod
    def parameters(self) -> int:
        """Numbers that it learnt. 0 before `fit`."""


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer`: parameter groups, closures, schedulers, and a state that resumes to the bit.

    `Optimizer(model, *, lr=…, **knobs)`: some need its layers, the others take its parameters. A step whose gradients are not all
    finite changes nothing.
    """

    def observe(self, loss: float) -> None:
        """Be told the loss of the step that was made, where it was not given by a closure."""

    @abc.abstractmethod
    def state_bytes(self) -> int:
        """Bytes that it keeps between steps, as they are now."""


@dataclass(frozen=True)
class Trace:
    """What a prediction did on its way. A sample is whatever has an answer of its own: a row, or a position of a row."""

    steps: Tensor
    """int64 [B, …]: steps that each sample took; fewer than asked where it stopped by itself."""
    energies: Tensor | None = None
    """[S + 1, B, …]: energy of each sample before the first step and after every one; None for methods without an energy."""
    changes: Tensor | None = None
    """[S, B, …]: ‖z′ − z‖ / ‖z‖ of each step."""
    sampled: Tensor | None = None
    """[M, B, …]: last energies of all M samples among which one was chosen."""
    notes: tuple[str, ...] = ()
    """What a person should know: steps that were refused, energies that rose."""


class Predictor(nn.Module, abc.ABC):
    """Predicts by iterating: more steps is the dial between quick and careful.

    `Predictor(width=…, **sizes, **knobs)`; every argument has a default. What x and y are stands in the card's tag `reads`:
    tokens int64 [B, T] -> logits [B, T, V]; vectors [B, T, F] -> [B, T, O]; images [B, H, W] -> [B, H, W].
    """

    width: int
    steps: int
    """Steps that it is trained with, and what a plain call takes."""

    @abc.abstractmethod
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """y after `steps` steps, and the trace of them. No graph is kept, also where the method takes gradients itself.

        steps: 0 is the first guess; any number is allowed, whatever the training used. generator: of everything that is drawn
        (the global one when None). Raises ShapeError for a negative number.
        """

    @abc.abstractmethod
    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """What training lowers, with a graph; draws from the global generator. Targets: int64 [B, T], −100 is not counted;
        vectors [B, T, O], NaN is not counted; images [B, H, W]."""

    @abc.abstractmethod
    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A small random x and a target of the kinds that it takes: for checks and costs."""

    def forward(self, x: Tensor) -> Tensor:
        """y after the steps of training."""
        return self.predict(x, steps=self.steps)[0]

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW: matrices decay, all else does not."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        both = [{"params": matrices, "lr": lr, "weight_decay": 0.01}, {"params": others, "lr": lr, "weight_decay": 0.0}]
        return [group for group in both if group["params"]]


class Forecaster(nn.Module, abc.ABC):
    """Learns from series how they go on.

    `Forecaster(horizon, *, context=…, **knobs)`; each argument is kept as an attribute of its name. Whoever has a table or an
    array calls `fit`, `predict` and `cross_validation`; beneath them stand `learn` and `forecast` on a `Panel`:
        T rows · N series · L context · H horizon · W origins (a forecast each) · Q quantiles
    An origin is the number of rows that are known; a forecast never reads a value at or after its origin.
    """

    horizon: int
    """H: a forecast is of so many steps."""
    context: int
    """L: the rows before an origin that a forecast is made of."""
    trained: ClassVar[bool] = True
    """Whether `learn` takes steps of an optimiser; otherwise it is a formula and ignores them."""
    covariates: bool = False
    """Whether it reads the panel's covariates; those that do not refuse panels that have any."""
    kept: Panel | None
    """The last rows of what was fitted: where `predict` starts."""
    errors: Tensor | None
    """[R, H, N], truth minus forecast at origins that taught nothing: what quantiles are made of."""
    frame: Callable[[dict[str, Any]], Any] | None
    """Makes a table of the kind that was fitted."""

    def __init__(self, horizon: int, context: int) -> None:
        super().__init__()
        self.horizon, self.context = horizon, context
        self.kept = self.errors = self.frame = None

    @property
    def reach(self) -> int:
        """Rows before an origin beyond which nothing is read: the context, unless it says otherwise."""
        return self.context

    def prepare(self, panel: Panel) -> None:
        """Make the parameters that depend on a panel's series and covariates, drawn from the global generator."""

    @abc.abstractmethod
    def learn(
        self,
        panel: Panel,
        *,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Learn in place from all rows. The result is a function of panel, steps and seed; parameters that are there are kept.

        steps: of training; None takes what suits the number of windows. checkpoint: as of `Problem.fit`. Raises DataError for a
        panel without a whole window (L + H rows) or with covariates that it cannot read, DivergedError.
        """

    @abc.abstractmethod
    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        """What follows each origin, [W, H, N], in the units of the panel; finite whatever is missing.

        rows: origins that are computed at a time; the result does not depend on it. Raises DataError for origins outside the
        panel or future covariates that are not there, ShapeError before `learn` where something has to be learnt.
        """

    def fit(
        self,
        frame: Any,
        *,
        known: Sequence[str] = (),
        calibration: int = 0,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
    ) -> Forecaster:
        """Learn from a long table (unique_id, ds, y, and covariates), or an array [T] or [T, N]; returns itself.

        frame: of pandas, polars, pyarrow, or a mapping of columns; rows in any order, y may be missing, series may begin and end
        at different times. known: covariates whose future is given to `predict`. calibration: so many of the last rows teach
        nothing but the errors that quantiles are made of. Raises DataError that says what is wrong with the table.
        """
        from instar.forecasting import framing

        return framing.fit(self, frame, known=known, calibration=calibration, steps=steps, seed=seed, monitor=monitor)

    def predict(self, h: int | None = None, frame: Any = None, *, future: Any = None, quantiles: Sequence[float] = ()) -> Any:
        """The next h steps of each series from its own end, in the kind of table that was given: unique_id, ds, and the forecast.

        h: at most `horizon`, which is the default. frame: a history to go on from; None is what was fitted. future: unique_id, ds
        and the covariates that were called known. quantiles: columns beside, from the errors on the calibration rows.
        """
        from instar.forecasting import framing

        return framing.predict(self, h, frame, future=future, quantiles=quantiles)

    def cross_validation(self, frame: Any, *, windows: int = 1, step: int | None = None, refit: bool = False) -> Any:
        """Forecasts from the last origins of a table, `step` rows apart (H by default), with cutoff and the truth beside them.

        refit: learn anew before each origin from what precedes it; otherwise once, from what precedes the first.
        """
        from instar.forecasting import framing

        return framing.cross_validation(self, frame, windows=windows, step=step, refit=refit)

    def save(self, folder: Path) -> None:
        """Write it to a folder, with what `predict` needs; `instar.forecasting.saved.load` reads it."""
        from instar.forecasting import saved

        saved.save(self, folder)


@dataclass(frozen=True)
class Data:
    """What `Problem.load` returns: three splits of one schema, and what identifies them."""

    train: Any
    valid: Any
    test: Any
    sha256: str
    """Hash of the content and of the split: equal means comparable."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For people: names of files, bytes, items in each split."""


@dataclass(frozen=True)
class Workload:
    """Something to be timed: `prepare(subject)` gives a function without arguments; one call of it does `units` units of work.

    The metric is seconds (or its inverse) per unit, as the problem's card says.
    """

    metric: str
    prepare: Callable[[Any], Callable[[], object]]
    units: float = 1.0


class Monitor(Protocol):
    """What training tells while it runs. Returning True asks it to stop after this step."""

    def __call__(self, step: int, loss: float) -> bool | None: ...


class Problem(abc.ABC):
    """What methods are compared on: real data, a split, metrics, and how each kind of method becomes the subject under test.

    Constructor arguments are its settings. Its card names metrics (unit, direction, margin) and the baseline. The engine
    owns seeds, tuning, timing and the test split.
    """

    accepts: ClassVar[Mapping[type, str]]
    """Interface -> name of the method of this class that lifts it: `lift(build, data, seed) -> subject`."""

    tokens_per_step: int
    """Units of training data a step consumes (budgets such as `5Mtok` are divided by it)."""

    @abc.abstractmethod
    def load(self, seed: int) -> Data:
        """The data; the seed matters only to generated data. Raises DataError when there is none or too little."""

    @abc.abstractmethod
    def fit(
        self, subject: Any, train: Any, *, steps: int, seed: int, monitor: Monitor | None = None, checkpoint: Path | None = None
    ) -> None:
        """Train in place for exactly `steps` steps; data order is a function of (seed, step) alone.

        With `checkpoint`, progress is saved there and taken up again to the bit.
        """

    @abc.abstractmethod
    def evaluate(self, subject: Any, split: Any) -> dict[str, Items]:
        """Every item of the split, scored: metric id -> items, in a fixed order at any batch size."""

    def costs(self, subject: Any) -> dict[str, float]:
        """Deterministic costs by metric id: FLOPs, bytes, parameters. Equal on every machine."""
        return {}

    def workloads(self) -> Iterable[Workload]:
        """What the exclusive timing pass measures."""
        return ()
