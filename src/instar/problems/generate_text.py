"""Writing what a prompt asks for with a pretrained language model and an adapter: what is learnt, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.data import datasets, pretrained
from instar.data.e2e import Asked, prompts
from instar.errors import DataError, ShapeError
from instar.interfaces import Adapter, Data, Items, Monitor, Problem
from instar.problems import adapting
from instar.problems.adapting import Subject
from instar.problems.bleu import bleu
from instar.problems.kept import digest
from instar.problems.language import evaluating

IGNORED = -100
_SCORED = 16
_WRITTEN = 25
"""Prompts at a time, scored and written."""
_WINDOW = 512

Row = tuple[list[int], list[int]]
"""Tokens of a prompt, tokens of what follows."""


class Writer:
    """Texts as tokens. Prompt and target are tokenised apart, so that no token lies across the boundary."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.end: int = tokenizer.eos_token_id
        self.fill: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def asked(self, prompt: str) -> list[int]:
        """Tokens of a prompt and a line break."""
        found: list[int] = self.tokenizer(prompt + "\n", add_special_tokens=False)["input_ids"]
        return found

    def row(self, prompt: str, target: str) -> Row:
        """A prompt and its target with the end sign, cut at the longest length; the prompt loses its beginning first."""
        answer = [*self.tokenizer(target, add_special_tokens=False)["input_ids"], self.end][: self.length - 1]
        return self.asked(prompt)[-(self.length - len(answer)) :], answer

    def batch(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and targets [B, T], padded on the right; only what follows the prompt is a target."""
        T = max(len(asked) + len(answer) for asked, answer in rows)
        ids = torch.full((len(rows), T), self.fill)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for place, (asked, answer) in enumerate(rows):
            end = len(asked) + len(answer)
            ids[place, :end] = torch.tensor([*asked, *answer])
            mask[place, :end] = 1
            targets[place, len(asked) : end] = torch.tensor(answer)
        return ids, mask, targets


class GenerateTextProblem(Problem):
    """−log p of what should follow a prompt, BLEU of what does, and how well other text is still predicted.

    Args:
        data: e2e, or a JSONL file of objects with prompt and target. model: a causal model, as `data.pretrained` takes it.
        where: layers, as `Adapter.attach`; None leaves it to the method. batch: pairs a step. length: most tokens of a pair.
        test_items: most prompts of the validation and the test part. written: of these, how many are answered (greedily, at most
        `new_tokens` tokens). retained: tokens of WikiText-2 (test) in windows of 512 for the retention.

    A prompt is the item; its first target is scored, BLEU (mean over sentences) takes all of them. Raises DataError, ShapeError,
    and what opening data and models raises.
    """

    accepts: ClassVar = {Adapter: "adapted"}

    def __init__(
        self,
        *,
        data: str = "e2e",
        model: str = "SmolLM2-135M-Instruct",
        where: str | None = None,
        batch: int = 8,
        length: int = 128,
        test_items: int = 200,
        written: int = 50,
        new_tokens: int = 64,
        retained: int = 4096,
    ) -> None:
        if min(batch, test_items, written, new_tokens) < 1 or length < 8 or retained < 2:
            raise ShapeError(
                "generate_text expects positive sizes, length of 8 or more and retained of 2 or more; received "
                f"batch={batch}, test_items={test_items}, written={written}, new_tokens={new_tokens}, {length}, {retained}."
            )
        self.data, self.model, self.where, self.batch, self.length = data, model, where, batch, length
        self.test_items, self.written, self.new_tokens, self.retained = test_items, written, new_tokens, retained
        self.tokens_per_step = batch * length

    def load(self, seed: int) -> Data:
        """The same for every seed."""
        found = prompts(self.data)
        valid, test = (_evenly(part, self.test_items) for part in (found.valid, found.test))
        self._text = datasets.locate("wikitext2")[1].read_text("utf-8")
        facts = {
            "name": found.name,
            "item": "prompt",
            "train_items": sum(len(one.targets) for one in found.train),
            "valid_items": len(valid),
            "test_items": len(test),
            "retention": "WikiText-2 (test)",
        }
        parts = [text for part in (found.train, valid, test) for one in part for text in (one.prompt, *one.targets)]
        return Data(found.train, valid, test, digest([*parts, self._text]), facts)

    def adapted(self, build: Build, data: Data, seed: int) -> Subject:
        """The pretrained model with the adapter attached; what is not adapted is frozen."""
        model, tokenizer = pretrained.load(self.model, "causal")
        self._writer = Writer(tokenizer, self.length)
        build.cls(**build.arguments).attach(model, self.where)
        return Subject(model)

    def fit(
        self,
        subject: Subject,
        train: Sequence[Asked],
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Cross-entropy of the targets' tokens over minibatches drawn without replacement in an epoch.

        Nothing is saved on the way: an interrupted run begins again, and ends the same.
        """
        pairs = [(one.prompt, target) for one in train for target in one.targets]
        size = min(self.batch, len(pairs))
        if not size:
            raise DataError("There are no pairs to train on.")

        def batch(index: int) -> tuple[Tensor, Tensor, Tensor]:
            epoch, place = divmod(index, len(pairs) // size)
            order = torch.randperm(len(pairs), generator=stream(seed, f"epoch/{epoch}"))
            return self._writer.batch([self._writer.row(*pairs[i]) for i in order[place * size : (place + 1) * size].tolist()])

        def loss(model: nn.Module, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            ids, mask, targets = rows
            logits = model(input_ids=ids, attention_mask=mask).logits
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)

        adapting.train(subject.model, batch, loss, steps=steps, seed=seed, monitor=monitor)

    def evaluate(self, subject: Subject, split: Sequence[Asked]) -> dict[str, Items]:
        """Prompt by prompt; the retention window by window."""
        with evaluating(subject.model):
            rows = [self._writer.row(one.prompt, one.targets[0]) for one in split]
            scored = [_nll(subject.model, *self._writer.batch(rows[i : i + _SCORED])) for i in range(0, len(rows), _SCORED)]
            written = [bleu(text, one.targets) for one, text in zip(split, self._written(subject.model, split), strict=False)]
            kept = [_nll(subject.model, *part) for part in self._windows()]
        return {
            "nll": _items(scored),
            "bleu": Items(written, [1.0] * len(written)),
            "wikitext_nll": _items(kept),
        }

    def costs(self, subject: Subject) -> dict[str, float]:
        """See `problems.adapting.costs`."""
        return adapting.costs(subject.model)

    def _written(self, model: Any, split: Sequence[Asked]) -> list[str]:
        """The first line of what the model writes after each of the first prompts."""
        asked = [self._writer.asked(one.prompt)[-self.length :] for one in split[: self.written]]
        texts: list[str] = []
        for start in range(0, len(asked), _WRITTEN):
            part = asked[start : start + _WRITTEN]
            T = max(map(len, part))
            ids = torch.tensor([[self._writer.fill] * (T - len(one)) + one for one in part])
            mask = torch.tensor([[0] * (T - len(one)) + [1] * len(one) for one in part])
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=self.new_tokens,
                pad_token_id=self._writer.fill,
                eos_token_id=self._writer.end,
            )
            lines = self._writer.tokenizer.batch_decode(found[:, T:], skip_special_tokens=True)
            texts += [line.strip().split("\n")[0] for line in lines]
        return texts

    def _windows(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        ids = self._writer.tokenizer(self._text[: 8 * self.retained], add_special_tokens=False)["input_ids"][: self.retained]
        rows = [torch.tensor([ids[i : i + _WINDOW]]) for i in range(0, len(ids), _WINDOW) if len(ids[i : i + _WINDOW]) > 1]
        return [(row, torch.ones_like(row), row) for row in rows]


def _nll(model: Any, ids: Tensor, mask: Tensor, targets: Tensor) -> tuple[list[float], list[float]]:
    """Nats and number of target tokens, by row."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    wanted = targets[:, 1:]
    nats = F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none").double().sum(1)
    return nats.tolist(), (wanted != IGNORED).sum(1).double().tolist()


def _items(parts: Sequence[tuple[list[float], list[float]]]) -> Items:
    return Items([nats for part, _ in parts for nats in part], [count for _, part in parts for count in part])


def _evenly(rows: Sequence[Asked], most: int) -> list[Asked]:
    """At most so many, spread over the whole."""
    return list(rows) if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]
