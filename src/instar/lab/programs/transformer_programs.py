"""Transformer Programs (Friedman, Wettig and Chen 2023, arXiv 2306.01128): trained like networks, read like programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from instar.errors import DataError, ShapeError
from instar.interfaces import Examples, Labeller, Monitor
from instar.lab.programs.discretise import discretise
from instar.lab.programs.network import ProgramNetwork, Shape
from instar.lab.programs.program import Program
from instar.lab.programs.sampling import COLD, HOT, How, temperature
from instar.lab.programs.training import Logits, Try, answers, learn
from instar.lab.programs.vocabulary import Vocabulary


class TransformerPrograms(Labeller):
    r"""A transformer of discrete variables, whose heads are predicates and whose feed-forward parts are lookup tables.

    Every choice (which variable is read, which key a query looks for, where a head attends, what a table puts out) is a
    Gumbel-softmax whose temperature falls geometrically from `hot` to `cold`; then it is the argmax, and `program()` says the
    same in Python. `predict` is the program's answer, never that of the sampler.

    Args:
        k: values of a variable, no fewer than tokens (where they are not embedded) and places; None takes what is needed.
        layers: L. cat_heads, num_heads: of a layer, categorical and numerical. cat_mlps, num_mlps: its lookup tables.
        reads: variables that a table reads. hidden: width of its network. embedded: learnt variables of a token; 0 reads the
        token itself. lr: of Adam. hot, cold: temperatures. sampling: gumbel, gumbel_hard (straight-through) or softmax.
        restarts: beginnings that share the steps; the best of validation is kept (`tries` has all).
        rare: see `Vocabulary.of`.

    Raises ShapeError. Cost: O(L (N² H + N H k²)) a sequence; conversion enumerates k^reads inputs for each table.
    """

    def __init__(
        self,
        *,
        k: int | None = None,
        layers: int = 2,
        cat_heads: int = 2,
        num_heads: int = 2,
        cat_mlps: int = 1,
        num_mlps: int = 1,
        reads: int = 2,
        hidden: int = 64,
        embedded: int = 0,
        lr: float = 0.05,
        hot: float = HOT,
        cold: float = COLD,
        sampling: How = "gumbel",
        restarts: int = 1,
        rare: int = 0,
    ) -> None:
        if not 0 < cold <= hot or sampling not in ("gumbel", "gumbel_hard", "softmax") or restarts < 1 or rare < 0:
            raise ShapeError(
                "Transformer Programs expect 0 < cold ≤ hot, sampling gumbel, gumbel_hard or softmax, restarts ≥ 1 and rare ≥ 0; "
                f"received {cold}, {hot}, {sampling}, {restarts}, {rare}."
            )
        self.k, self.layers, self.cat_heads, self.num_heads = k, layers, cat_heads, num_heads
        self.cat_mlps, self.num_mlps, self.reads, self.hidden, self.embedded = cat_mlps, num_mlps, reads, hidden, embedded
        self.lr, self.hot, self.cold, self.sampling, self.restarts, self.rare = lr, hot, cold, sampling, restarts, rare
        self.network: ProgramNetwork | None = None
        self.vocabulary: Vocabulary | None = None
        self.tries: list[Try] = []
        self._program: Program | None = None

    def fit(
        self,
        train: Examples,
        valid: Examples,
        *,
        steps: int,
        batch: int = 512,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """See `Labeller.fit`. Each beginning has its share of the steps, over which its temperature falls."""
        vocabulary = Vocabulary.of(train, valid, self.rare)
        shape = self.shape(vocabulary, train.causal)

        def loss(network: nn.Module, ids: Tensor, mask: Tensor, step: int, count: int) -> Tensor:
            logits: Tensor = network(ids, mask, temperature(step, count, self.hot, self.cold), self.sampling)
            return logits

        self.network, self.tries = learn(
            lambda: ProgramNetwork(shape),
            loss,
            final,
            vocabulary,
            train,
            valid,
            lr=self.lr,
            steps=steps,
            batch=batch,
            restarts=self.restarts,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )
        self.vocabulary, self._program = vocabulary, None

    def shape(self, vocabulary: Vocabulary, causal: bool) -> Shape:
        """What the network is built from. Raises ShapeError where k is too small."""
        needed = max(vocabulary.length, 0 if self.embedded else len(vocabulary.tokens))
        return Shape(
            tokens=len(vocabulary.tokens),
            classes=len(vocabulary.labels),
            length=vocabulary.length,
            k=needed if self.k is None else self.k,
            layers=self.layers,
            cat_heads=self.cat_heads,
            num_heads=self.num_heads,
            cat_mlps=self.cat_mlps,
            num_mlps=self.num_mlps,
            reads=self.reads,
            hidden=self.hidden,
            embedded=self.embedded,
            causal=causal,
            pooled=vocabulary.pooled,
        )

    def predict(self, sequences: Sequence[Sequence[str]]) -> list[list[str]]:
        """What the program says, computed by the network with every choice made."""
        network, vocabulary = self._learnt()
        return answers(final(network), vocabulary, sequences)

    def program(self) -> Program:
        """What was learnt, as plain data that equals `predict` on every input; see `discretise`."""
        network, vocabulary = self._learnt()
        if self._program is None:
            self._program = discretise(network, vocabulary.tokens, vocabulary.labels, vocabulary.unknown)
        return self._program

    def parameters(self) -> int:
        """Numbers of the network."""
        return 0 if self.network is None else sum(p.numel() for p in self.network.parameters())

    def _learnt(self) -> tuple[ProgramNetwork, Vocabulary]:
        if self.network is None or self.vocabulary is None:
            raise DataError("Nothing was learnt yet: call fit first.")
        return self.network, self.vocabulary


def final(network: ProgramNetwork) -> Logits:
    """The network with every choice made."""
    return lambda ids, mask: network(ids, mask, 1.0, "argmax")
