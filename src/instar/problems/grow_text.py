"""A small language model that grows twice while it learns a text, then learns another: what growing gains, keeps and costs."""

from __future__ import annotations

import copy
import email
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from instar.bench.costs import peak_of_steps
from instar.bench.fit import adamw, descend
from instar.bench.seeds import initialising, stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.growth import plan as planning
from instar.growth.continued_base import ContinuedBase
from instar.growth.from_scratch import FromScratch
from instar.growth.tokenformer_decoder import TokenFormer
from instar.interfaces import Data, Growth, Items, Monitor, Plan, Problem, Workload
from instar.models.decoder import Decoder
from instar.problems.kept import digest
from instar.problems.language import evaluating
from instar.problems.text import VOCABULARY, TextProblem
from instar.problems.train_text import Texts

_PROBES = 4
"""Batches on which the loss is taken before and after a growth."""
_DECAY = 0.1
_LAST = 0.1
"""The rate on the second text, as a part of the first rate."""


@dataclass
class Subject:
    """A model with the growth under test. No module itself: its size changes."""

    method: Growth
    model: Decoder
    make: Callable[[], Decoder]
    """The base from its start."""
    spikes: list[float] = field(default_factory=list)
    """Bits per byte of training text that each growth added."""
    after_base: Decoder | None = None
    after_growth: Decoder | None = None


class GrowTextProblem(Problem):
    """Bits per byte of one text after the base, after the last growth, and after another text; and the jump at a growth.

    Args:
        data: the first text, as of `text`. second: the other; None is the source of Python's own package `email`.
        stages: sizes of the model, the base counted. plan: of each growth, as in "hidden=2x,width=2x"; empty doubles n of a
            TokenFormer and hidden of a plain decoder. share: of the steps that go to the second text. base: of the others, those
            of the base; the growths share the rest. lr: peak rate of the base; growth_lr: that of later stages, relative to it.
        width, depth, heads, n, hidden: of the base; a TokenFormer has `hidden` pairs in its feed-forward layers, a plain decoder
            hidden units, so that both have equally many weights where n = width. length, batch, test_blocks: as of `text`.

    Every stage has warm-up and cosine decay of its own (AdamW, decay 0.1), with the optimiser of the one before. `continued_base`
    takes the same stages without growing, `from_scratch` one stage at the last size; how many steps they take says their budget.
    Raises ShapeError, DataError, TransformError.
    """

    accepts: ClassVar = {Growth: "subject"}
    timed_steps: ClassVar = 100  # a whole chain, beside whose steps the growths weigh little

    def __init__(
        self,
        *,
        data: str | list[str] | None = None,
        second: str | None = None,
        stages: int = 3,
        plan: str = "",
        share: float = 0.1,
        base: float = 0.6,
        lr: float = 2e-3,
        growth_lr: float = 0.5,
        length: int = 64,
        batch: int = 16,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
        n: int = 96,
        hidden: int = 384,
        test_blocks: int = 16,
    ) -> None:
        if stages < 1 or not 0 <= share < 1 or not 0 < base <= 1 or min(lr, growth_lr) <= 0 or min(n, hidden) < 1:
            raise ShapeError(
                "grow_text expects stages ≥ 1, 0 ≤ share < 1, 0 < base ≤ 1, positive rates and sizes; received "
                f"{stages}, {share}, {base}, {lr}, {growth_lr}, {n} and {hidden}."
            )
        sizes = {"length": length, "batch": batch, "width": width, "depth": depth, "heads": heads, "test_blocks": test_blocks}
        other = second or [str(path) for path in sorted(Path(email.__file__).parent.glob("*.py")) if path.stat().st_size]
        self.texts = TextProblem(data=data, **sizes), TextProblem(data=other, **sizes)  # type: ignore[arg-type]
        self.data, self.second, self.stages, self.plan, self.share, self.base = data, second, stages, plan, share, base
        self.lr, self.growth_lr, self.length, self.batch = lr, growth_lr, length, batch
        self.width, self.depth, self.heads, self.n, self.hidden = width, depth, heads, n, hidden
        self.tokens_per_step = batch * length

    def load(self, seed: int) -> Data:
        """The same splits for every seed."""
        one, two = (text.load(seed) for text in self.texts)
        facts = {**one.facts, "second": "email, Python's package" if self.second is None else two.facts["name"]}
        train, valid, test = (Texts(getattr(one, name), getattr(two, name)) for name in ("train", "valid", "test"))
        return Data(train, valid, test, digest([one.sha256, two.sha256]), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The base of the architecture that the method grows, its weights drawn by the seed."""
        method: Growth = build.cls(**build.arguments)

        def make() -> Decoder:
            return self._base(method, seed)

        return Subject(method, make(), make)

    def fit(
        self,
        subject: Subject,
        train: Texts,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """The base, the growths, the second text; the steps of all are told in one line."""
        told = _Telling(monitor)
        first, second = self.texts
        later = round(self.share * steps)
        stages = self._stages(subject.method, steps - later)
        if isinstance(subject.method, FromScratch):
            for number in range(1, self.stages):
                subject.method.grow(subject.model, self._plan(subject.method), seed=seed + number)
        optimiser = adamw(subject.model, lr=self.lr, weight_decay=_DECAY, betas=(0.9, 0.95))
        batches = first.windows(train.first, seed)
        subject.spikes.clear()
        for number, (count, factor) in enumerate(stages):
            if told.stopped:
                return
            if number:
                subject.after_base = subject.after_base or copy.deepcopy(subject.model)
                before = self._probe(subject.model, batches)
                subject.method.grow(subject.model, self._plan(subject.method), optimizer=optimiser, seed=seed + number)
                subject.spikes.append(self._probe(subject.model, batches) - before)
            _set_rate(optimiser, self.lr * factor)
            done = sum(earlier for earlier, _ in stages[:number])
            descend(
                subject.model, optimiser, lambda index, done=done: batches(done + index), first.loss, steps=count,  # type: ignore[misc]
                seed=seed + number, monitor=told.of(subject.model, done, count),
                checkpoint=None if checkpoint is None else checkpoint / f"stage{number}",
            )  # fmt: skip
        if told.stopped:
            return
        subject.after_growth = copy.deepcopy(subject.model)
        if later:
            _set_rate(optimiser, _LAST * self.lr)
            descend(
                subject.model, optimiser, second.windows(train.second, seed), second.loss, steps=later, seed=seed + self.stages,
                schedule="constant", monitor=told.of(subject.model, sum(count for count, _ in stages), later),
                checkpoint=None if checkpoint is None else checkpoint / "second",
            )  # fmt: skip

    def evaluate(self, subject: Subject, split: Texts) -> dict[str, Items]:
        """bits_per_byte@base and @grown of the first text, @second of the other and @kept of the first at the end; spike.

        What nothing was grown from, as `from_scratch`, has no @base.
        """
        text = self.texts[0]
        base = subject.after_base
        return {
            **({} if base is None else {"bits_per_byte@base": text.bits(base, split.first, self.length)}),  # type: ignore[arg-type]
            "bits_per_byte@grown": text.bits(subject.after_growth or subject.model, split.first, self.length),  # type: ignore[arg-type]
            "bits_per_byte@second": text.bits(subject.model, split.second, self.length),  # type: ignore[arg-type]
            "bits_per_byte@kept": text.bits(subject.model, split.first, self.length),  # type: ignore[arg-type]
            "spike": Items([max(subject.spikes, default=0.0)], [1.0]),
        }

    def costs(self, subject: Subject) -> dict[str, float]:
        """Parameters and FLOPs of a step at the last size, what AdamW keeps, and the most that is in memory during a step."""
        model = self._grown(subject)
        parameters = float(sum(p.numel() for p in model.parameters()))
        return {
            "parameters": parameters,
            "state_bytes": 8 * parameters,
            "peak_train_bytes": peak_of_steps(lambda: self._step(model), model),
            "step_flops": self._step_flops(model),
        }

    def workloads(self) -> Iterator[Workload]:
        """A training step at the last size."""
        yield Workload("step_seconds", lambda subject: self._step(self._grown(subject)))

    def _base(self, method: Growth, seed: int) -> Decoder:
        with initialising(seed):
            if method.architecture == "tokenformer":
                return TokenFormer(VOCABULARY, self.width, self.depth, heads=self.heads, n=self.n, feed=self.hidden)
            return Decoder(VOCABULARY, self.width, self.depth, "softmax", heads=self.heads, hidden=self.hidden)

    def _plan(self, method: Growth) -> Plan:
        if self.plan:
            return planning.parse(self.plan.split(","))
        return {"n" if method.architecture == "tokenformer" else "hidden": "2x"}

    def _stages(self, method: Growth, steps: int) -> list[tuple[int, float]]:
        """Steps and relative rate of each stage."""
        base = round(self.base * steps) if self.stages > 1 else steps
        rest = [(steps - base) * i // max(1, self.stages - 1) for i in range(self.stages)]
        counts = [base, *(b - a for a, b in itertools.pairwise(rest))]
        rates = [1.0] + [self.growth_lr] * (self.stages - 1)
        if isinstance(method, FromScratch | ContinuedBase):
            flops = self._flops(method)
            total = sum(count * each for count, each in zip(counts, flops, strict=True))
            if isinstance(method, FromScratch):
                whole = {"extra": steps - base, "steps": steps, "flops": round(total / flops[-1])}[method.budget]
                return [(whole, 1.0)]
            if method.budget == "flops":
                counts = [round(count * each / flops[0]) for count, each in zip(counts, flops, strict=True)]
        return list(zip(counts, rates, strict=True))

    def _flops(self, method: FromScratch | ContinuedBase) -> list[float]:
        """FLOPs of a step at each size of a model that grows."""
        growth = FromScratch(architecture=method.architecture)
        model = self._base(growth, 0)
        found = [self._step_flops(model)]
        for _ in range(1, self.stages):
            growth.grow(model, self._plan(growth))
            found.append(self._step_flops(model))
        return found

    def _step_flops(self, model: Decoder) -> float:
        """Matrix products of a training step, three times those forward; attention in full."""
        matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
        matrices -= 0 if model.tied else model.embedding.weight.numel()
        attention = 4 * model.depth * self.length * model.width
        return 3.0 * self.tokens_per_step * (2 * matrices + attention)

    def _grown(self, subject: Subject) -> Decoder:
        """A fresh base, grown to the last size."""
        model = subject.make()
        for number in range(1, self.stages):
            subject.method.grow(model, self._plan(subject.method), seed=number)
        return model

    def _probe(self, model: Decoder, batches: Callable[[int], Tensor]) -> float:
        """Bits per byte of training text that no step sees."""
        text = self.texts[0]
        with evaluating(model):
            found = [float(text.loss(model, batches(-1 - number))) for number in range(_PROBES)]
        return sum(found) / _PROBES / math.log(2)

    def _step(self, model: Decoder) -> Callable[[], object]:
        optimiser = adamw(model, lr=self.lr, weight_decay=_DECAY, betas=(0.9, 0.95))
        text = self.texts[0]
        targets = torch.randint(256, (self.batch, self.length), generator=stream(0, "timing"))

        def call() -> None:
            text.loss(model, targets).backward()
            optimiser.step()
            optimiser.zero_grad()

        return call


class _Telling:
    """A monitor of several stages, which remembers whether it was asked to stop, and moves τ where growth opened a way for it."""

    def __init__(self, monitor: Monitor | None) -> None:
        self.monitor, self.stopped = monitor, False

    def of(self, model: nn.Module, before: int, steps: int) -> Monitor:
        """The monitor of a stage of `steps`, after `before` of them."""
        warm = min(100, max(1, steps // 10))

        def tell(step: int, loss: float) -> bool:
            if isinstance(model, TokenFormer):
                model.anneal(step / warm)
            if self.monitor is not None and self.monitor(before + step, loss):
                self.stopped = True
            return self.stopped

        return tell


def _set_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
