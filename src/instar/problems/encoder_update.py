"""Search through a change of encoder: what a compatible head finds among rows that the old encoder made, and afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from instar import catalogue, formula
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.compat import chain
from instar.compat import pairs as pairing
from instar.compat.mapping import Map
from instar.data.collecting import open_collection
from instar.errors import DataError, ShapeError
from instar.interfaces import CompatibleHead, Data, Items, Monitor, Pairs, Problem, Workload
from instar.problems import encoder_search, encoder_world
from instar.problems.encoder_search import Search
from instar.problems.encoder_world import World
from instar.problems.kept import digest
from instar.problems.language import evaluating

Kind = Literal["family", "fine_tune", "bow", "lsa", "decoder", "classes"]
_PROJECTED = 1024


class Subject:
    """A head with what it is fitted on."""

    def __init__(self, build: Build, pairs: Pairs) -> None:
        self.build = build
        self.pairs = self.reads(pairs)
        self.head: CompatibleHead = self.fresh()

    def reads(self, pairs: Pairs) -> Pairs:
        """The pairs as this head reads them: a map reads the new vectors."""
        return dataclasses.replace(pairs, inputs=None) if issubclass(self.build.cls, Map) else pairs

    def fresh(self) -> CompatibleHead:
        """A head that has learnt nothing."""
        pairs = self.pairs
        made = self.build(pairs.new.shape[1], old_dim=pairs.old.shape[1], input_dim=pairs.x.shape[1])
        assert isinstance(made, CompatibleHead)
        return made


class EncoderUpdateProblem(Problem):
    """What a query of the new encoder finds among rows of the old one, rows of both, and rows of its own.

    Args:
        upgrade: of MiniLM's own family: fine_tune (MiniLM → MiniLM after 100 steps on SQuAD), family (its layer 3 → its
            last), bow (its token vectors without layers → its last); unrelated: lsa (TF-IDF with SVD → MiniLM), decoder
            (SmolLM2, mean-pooled → MiniLM); and classes, the experiment of the BT² paper: an old model that saw `old_classes`
            of the 150 intents of CLINC150, a new one that saw all.
        data: what `instar encoder report --data` takes (`squad:test`, `xquad`, a file); None for the text inside Python. The
            upgrade `classes` has its own.
        old_classes: see above. pairs: most items under both encoders that a head learns from, drawn by the seed. documents: most
            documents, of which half teach, an eighth choose settings and the rest are searched. queries: most queries of a part.

    Documents that teach are not searched. Heads see classes only where the data have them. Scores are cosines, ranks are exact
    and ties share the middle rank. Raises DataError, ShapeError, and what opening data and models raises.
    """

    accepts: ClassVar = {CompatibleHead: "subject"}
    tokens_per_step = 128

    def __init__(
        self,
        *,
        data: str | None = None,
        upgrade: Kind = "family",
        old_classes: int = 75,
        pairs: int = 4000,
        documents: int = 4000,
        queries: int = 2500,
    ) -> None:
        if upgrade not in get_args(Kind) or min(old_classes, pairs, documents, queries) < 2:
            raise ShapeError(
                f"encoder_update expects an upgrade among {', '.join(get_args(Kind))} and sizes of 2 or more; received "
                f"{upgrade!r}, old_classes={old_classes}, pairs={pairs}, documents={documents}, queries={queries}."
            )
        if upgrade == "classes" and data is not None:
            raise DataError(f"The upgrade classes is an experiment on CLINC150 and takes no other data; received {data!r}.")
        if upgrade == "fine_tune" and data in ("squad", "squad:dev", "xquad"):
            raise DataError(f"The fine-tune learns from questions of squad:dev, which {data} holds too. Take squad:test.")
        self.data, self.upgrade, self.old_classes = data, upgrade, old_classes
        self.pairs, self.documents, self.queries = pairs, documents, queries

    def load(self, seed: int) -> Data:
        """The same documents and queries for every seed; it draws pairs, the order of re-encoding, the models of `classes`."""
        if self.upgrade == "classes":
            world = encoder_world.classes(self.old_classes, seed)
        else:
            collection = open_collection(self.data, sample=self.documents, seed=0)
            world = encoder_world.texts_in_parts(collection, self.upgrade)
        train = self._pairs(world, seed)
        valid, test = (encoder_search.search_in(world, part, self.queries, seed) for part in (world.valid, world.test))
        known = world.collection
        parts = [digest(part) for part in (known.ids, known.texts or (), known.queries or (), known.relevant or ())]
        facts = {
            "name": known.name,
            "item": "class" if known.labels is not None and test.asked.itself else "queries about neighbouring documents",
            "train_items": len(train.new),
            "valid_items": int(valid.block.max()) + 1,
            "test_items": int(test.block.max()) + 1,
            "test_queries": len(test.asked.queries),
            "test_documents": len(test.gallery.order),
            "old_width": world.old.dim,
            "new_width": world.new.dim,
        }
        return Data(train, valid, test, digest([*parts, *map(str, known.labels or ())]), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The head, for the widths of both encoders."""
        return Subject(build, data.train)

    def fit(
        self,
        subject: Subject,
        train: Pairs,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """As the head does it. One that is a formula ignores steps; its loss is 1 − the mean cosine with the old vectors.

        Nothing is saved on the way: an interrupted fit begins again, and ends the same.
        """
        told = 0

        def tell(step: int, loss: float) -> bool | None:
            nonlocal told
            told += 1
            return None if monitor is None else monitor(step, loss)

        pairs = subject.reads(train)
        subject.head.fit(pairs, steps=steps, seed=seed, monitor=tell)
        if not told:
            with torch.no_grad():
                found = nn.functional.cosine_similarity(subject.head.compatible(pairs.x), pairs.old)
            for step in sorted({max(1, steps - 1), steps}):  # twice, so that calibration sees a step that takes no time
                tell(step, float(1 - found.mean()))

    def evaluate(self, subject: Subject, split: Search) -> dict[str, Items]:
        """See `encoder_search.measure`."""
        with evaluating(subject.head):
            return encoder_search.measure(subject.head, split)

    def costs(self, subject: Subject) -> dict[str, float]:
        """Of the head alone."""
        head, card = subject.head, subject.build.card
        numbers = sum(t.numel() for t in head.state_dict().values())
        figures = {"parameters": float(numbers), "head_bytes": float(chain.nbytes(head)), "row_bytes": 4.0 * head.full_dim}
        if card.cost is not None:
            known = catalogue.variables(
                subject.build.cls, subject.build.arguments, D=head.new_dim, O=head.old_dim, I=head.input_dim
            )
            figures["query_flops"] = formula.evaluate(card.cost.flops, known)
        return figures

    def workloads(self) -> Iterator[Workload]:
        """A fit of as many steps as suit the pairs, and the projection of queries."""
        yield Workload("fit_seconds", _fitting)
        yield Workload("project_seconds", _projecting, units=_PROJECTED)

    def _pairs(self, world: World, seed: int) -> Pairs:
        """Documents of the fitting part, and the queries that concern only them."""
        collection = world.collection
        old, new = (side.documents[world.fit] for side in (world.old, world.new))
        labels = collection.labels
        if collection.relevant is not None and world.old.queries is not None and world.new.queries is not None:
            about = world.about(world.fit)
            old, new = (np.concatenate(both) for both in ((old, world.old.queries[about]), (new, world.new.queries[about])))
            labels = None  # queries have none
        drawn = np.sort(torch.randperm(len(old), generator=stream(seed, "pairs")).numpy()[: self.pairs])
        labels = None if labels is None else [labels[world.fit[i]] for i in drawn]
        inputs = None if world.inputs is None else world.inputs[world.fit[drawn]]
        return pairing.of(old[drawn], new[drawn], labels, inputs)


def _fitting(subject: Subject) -> Callable[[], object]:
    def call() -> None:
        subject.fresh().fit(subject.pairs)

    return call


def _projecting(subject: Subject) -> Callable[[], object]:
    head = subject.fresh()
    head.fit(subject.pairs, steps=1)  # one that has learnt nothing may give no direction at all
    head.eval()
    x: Tensor = subject.pairs.x[torch.arange(_PROJECTED) % len(subject.pairs.x)]

    @torch.no_grad()
    def call() -> None:
        head.project(x, head.newest - 1)

    return call
