"""Run a suite: costs by length, then each part as a comparison of its own, resumable; what is recorded already is taken over."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from instar import catalogue, files
from instar.bench import curves, record
from instar.bench.claims import results_folder
from instar.bench.compare import Listener, Silence, compare
from instar.bench.curves import Curve, Layer
from instar.bench.plan import Plan, Request
from instar.bench.record import SCHEMA, Store
from instar.bench.suites import How, Part, Suite, suite
from instar.bench.summary import Group, summarise
from instar.errors import PlanError, RecordError

SHORTEST = 256
FILE = "suite.json"


@dataclass(frozen=True)
class Question:
    """What the user must live with.

    length: N, tokens of an input. memory: bytes that reading it may take. latency: seconds that reading it may take. causal: no
    token may read a later one. how: trained from scratch, or swapped into a trained model. layers, width, heads: of the model
    whose mixers are counted.
    """

    length: int = 4096
    memory: float = math.inf
    latency: float = math.inf
    causal: bool = True
    how: How = "scratch"
    layers: int = 12
    width: int = 128
    heads: int = 4

    @property
    def layer(self) -> Layer:
        """The one layer whose costs are measured."""
        return Layer(self.width, self.heads)

    def lengths(self) -> list[int]:
        """Doublings from 256 to N, and N."""
        found = [SHORTEST * 2**i for i in range(20) if SHORTEST * 2**i < self.length]
        return [*found, self.length]


@dataclass(frozen=True)
class Findings:
    """What a suite's folder holds for its question, and nothing that was asked before."""

    suite: Suite
    question: Question
    curves: list[Curve]
    groups: dict[str, Group]
    """By the id of the part; a part without records has none."""

    @property
    def baseline(self) -> str:
        return self.suite.against(causal=self.question.causal)

    @property
    def parts(self) -> list[Part]:
        """The parts that answer the question and have records."""
        chosen = self.suite.chosen(causal=self.question.causal, how=self.question.how)
        return [part for part in chosen if part.id in self.groups]


def run(
    slug: str,
    question: Question,
    out: Path,
    *,
    methods: Sequence[str] = (),
    seeds: int = 3,
    jobs: int | None = None,
    only: Sequence[str] = (),
    listener: Listener | None = None,
) -> Findings:
    """Answer a question; call it again with the same folder and only what is missing runs.

    methods: instead of the suite's own. only: these parts. Records under `results/` with the same identity are copied.
    Raises PlanError, UnknownNameError, and what `compare` raises.
    """
    chosen, listener = suite(slug), listener or Silence()
    if question.length < 1 or min(question.layers, question.width, question.heads) < 1:
        raise PlanError(f"A question needs positive numbers; received {question}.")
    if min(question.memory, question.latency) <= 0:
        raise PlanError(f"Memory and latency must be positive; received {question.memory:g} and {question.latency:g}.")
    baseline = chosen.against(causal=question.causal)
    named = _named(chosen, question, methods)
    parts = chosen.chosen(causal=question.causal, how=question.how)
    if not parts:
        raise PlanError(f"No part of the suite {slug} is two-sided and swapped into a trained model: ask for one of the two.")
    if unknown := set(only) - {part.id for part in parts}:
        raise PlanError(
            f"No part {', '.join(sorted(unknown))} answers this question; there are {', '.join(p.id for p in parts)}."
        )
    files.folder(out)
    files.write_json(out / FILE, {"schema": SCHEMA, "suite": slug, "question": _plain(question), "methods": named})
    curves.measure([baseline, *named], out / "costs", lengths=question.lengths(), layer=question.layer, listener=listener)
    for part in parts:
        if not only or part.id in only:
            _compare(part, baseline, named, _folder(out, part, chosen, baseline), seeds, jobs, listener)
    return load(out)


def load(out: Path) -> Findings:
    """What stands in the folder of a suite for the question that was asked last. Raises RecordError.

    The folder also holds records of other methods, layers and parts: those of earlier questions.
    """
    try:
        said = json.loads((out / FILE).read_text("utf-8"))
        asked: dict[str, Any] = {k: math.inf if v is None else v for k, v in said["question"].items()}
        chosen, question, named = suite(said["suite"]), Question(**asked), list(said["methods"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{out / FILE} is no complete record of a suite ({error}). Run `instar suite` again.") from error
    baseline = chosen.against(causal=question.causal)
    shown = [baseline, *named]
    groups = {}
    for part in chosen.chosen(causal=question.causal, how=question.how):
        of_part = summarise(list(Store(_folder(out, part, chosen, baseline)).all()))
        if of_part:
            groups[part.id] = replace(of_part[0], rows=[row for row in of_part[0].rows if row.address in shown])
    found = [curve for curve in curves.load(list(Store(out / "costs").all()), question.layer) if curve.address in shown]
    return Findings(chosen, question, sorted(found, key=lambda curve: shown.index(curve.address)), groups)


def _folder(out: Path, part: Part, chosen: Suite, baseline: str) -> Path:
    """Where the records of a part stand: a comparison has one baseline, so those against another one have a folder beside."""
    return out / (part.id if baseline == chosen.baseline else f"{part.id}-two-sided")


def _named(chosen: Suite, question: Question, methods: Sequence[str]) -> list[str]:
    """The methods to compare; the baseline apart. Raises PlanError for those that the question excludes."""
    named = [str(catalogue.parse(a)) for a in methods]
    if not named:
        named = list(chosen.causal) + ([] if question.causal or question.how == "swapped" else list(chosen.bidirectional))
    for address in named:
        card = catalogue.parse(address).card
        if card.interface != "Mixer":
            raise PlanError(f"{address} is a {card.interface or card.kind}; the suite {chosen.slug} compares mixers.")
        if question.causal and card.capability("bidirectional"):
            raise PlanError(f"{address} reads later tokens: ask with --no-causal, or leave it out.")
    return [address for address in dict.fromkeys(named) if address != chosen.against(causal=question.causal)]


def _compare(
    part: Part, baseline: str, methods: Sequence[str], out: Path, seeds: int, jobs: int | None, listener: Listener
) -> None:
    request = Request(part.problem, tuple(methods), settings=part.settings, seeds=seeds, budget=part.budget, baseline=baseline)
    planned = compare(request, out, jobs=jobs, timed=False, dry_run=True).plan
    files.folder(out)
    planned.save(out / "plan.json")
    _take_over(planned, Store(out))
    compare(request, out, jobs=jobs, timed=False, listener=listener)


def _take_over(plan: Plan, store: Store) -> None:
    """Copy the records of these runs that stand under `results/`: a run is known by what decides its outcome.

    By what name, against which baseline and of which budget is said anew. A failure, as for want of time or memory, is not one of
    this machine: the run is made here.
    """
    for task in plan.tasks(store.root):
        if not store.has(task.id):
            found = map(record.load, results_folder().glob(f"*/runs/{task.id}.json"))
            if (one := next((one for one in found if one["status"] == "ok"), None)) is not None:
                store.put({**one, "address": task.address, "baseline": task.baseline, "budget": task.budget})


def _plain(question: Question) -> dict[str, Any]:
    """JSON knows no infinity."""
    return {k: None if v == math.inf else v for k, v in asdict(question).items()}
