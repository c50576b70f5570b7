"""What editors share that find states by gradient and write them into weights in closed form."""

from __future__ import annotations

import abc
import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from torch import nn

from instar.editing import prefixes as contexts
from instar.editing import statistics, targets, tracing, writing
from instar.editing.facts import check
from instar.editing.layout import Layer, Layers, Layout, Part, Parts, layout
from instar.editing.running import resting
from instar.editing.spread import Spread
from instar.editing.targets import Objective
from instar.errors import EditError, ShapeError
from instar.interfaces import Editor, Fact, Monitor
from instar.receipt import Receipt, updating


class Located(Editor):
    """An editor of chosen layers. What a method is, its own file says."""

    slug: ClassVar[str]
    layers: Layers
    texts: Sequence[str] | None
    parts: Parts | None
    seed: int
    moments: statistics.Moments | None = None
    """C of the layers, where `fit_statistics` has been called; else it is gathered at each edit, and kept on disk."""

    def edit(self, model: nn.Module, tokenizer: Any, facts: Sequence[Fact], *, monitor: Monitor | None = None) -> Receipt:
        """Write the facts; see `interfaces.Editor`. monitor: (step of the search for states, mean loss)."""
        facts = check(facts)
        where = layout(model, self.parts)
        chosen = self.chosen(model, tokenizer, where, facts)
        names = [name for layer in chosen for name in self.written(layer)]
        with updating(model, method=self.slug, settings=self.settings(facts, chosen), changes=names if facts else []) as update:
            if facts:
                self.carry_out(model, tokenizer, where, chosen, facts, monitor)
        return update.receipt

    def fit_statistics(
        self,
        model: nn.Module,
        tokenizer: Any,
        texts: Iterable[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Gather C once, and use it for every edit from now on: for edits in sequence, as of the model before the first.

        Raises EditError for layers="traced": each edit may choose others.
        """
        if self.layers == "traced":
            raise EditError(
                'With layers="traced" each edit chooses its layers by its own facts, so C cannot be gathered before. Give '
                "numbers: editing.tracing.trace(model, tokenizer, facts).layers() finds them."
            )
        chosen = self.chosen(model, tokenizer, layout(model, self.parts), [])
        self.moments = self.gathered(model, tokenizer, chosen, self.texts if texts is None else texts, progress)

    def settings(self, facts: Sequence[Fact], chosen: Sequence[Layer]) -> dict[str, Any]:
        """For the receipt: arguments, and what was written where."""
        said = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        if self.texts is not None:
            said["texts"] = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()
        said["parts"] = None if self.parts is None else "given"
        if not isinstance(self.layers, str):
            said["layers"] = list(self.layers)
        return {
            "arguments": said,
            "edited_layers": [layer.index for layer in chosen],
            "facts": [{"prompt": f.prompt, "subject": f.subject, "target": f.target} for f in facts],
        }

    def chosen(self, model: nn.Module, tokenizer: Any, where: Layout, facts: Sequence[Fact]) -> list[Layer]:
        """The layers that are written, ascending."""
        if self.layers == "auto":
            return where.chosen(where.usual(getattr(getattr(model, "config", None), "model_type", "")))
        if self.layers == "traced":
            # Without facts nothing is written, and there is nothing to trace.
            return where.chosen(tracing.trace(model, tokenizer, facts, parts=self.parts).layers()) if facts else []
        if isinstance(self.layers, str):
            raise ShapeError(f"layers expects auto, traced or numbers; received {self.layers!r}.")
        return where.chosen(self.layers)

    def written(self, layer: Layer) -> list[str]:
        """Names of the tensors of a layer that are written."""
        return [layer.ffn.parameter_name]

    def gathered(
        self,
        model: nn.Module,
        tokenizer: Any,
        chosen: Sequence[Layer],
        texts: Iterable[str] | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> statistics.Moments:
        """C of what is written."""
        with resting(model):
            return statistics.gather(model, tokenizer, chosen, ("ffn",), texts=texts, progress=progress)

    @abc.abstractmethod
    def carry_out(
        self,
        model: nn.Module,
        tokenizer: Any,
        where: Layout,
        chosen: Sequence[Layer],
        facts: Sequence[Fact],
        monitor: Monitor | None,
    ) -> None:
        """Change the weights."""


class Spreading(Located):
    """MEMIT and its kin: all facts at once, spread over several layers."""

    objective: Objective
    into: dict[Part, Part]
    """Part whose shift is kept -> what is written for it."""
    prefixes: int
    penalty: float | None
    ratio: ClassVar[float]
    """λ over the width of what is read, where no penalty is given."""
    spread: Spread
    batch: int

    def written(self, layer: Layer) -> list[str]:
        return [layer.linear(part).parameter_name for part in self.into.values()]

    def gathered(
        self,
        model: nn.Module,
        tokenizer: Any,
        chosen: Sequence[Layer],
        texts: Iterable[str] | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> statistics.Moments:
        with resting(model):
            return statistics.gather(model, tokenizer, chosen, list(self.into.values()), texts=texts, progress=progress)

    def carry_out(
        self,
        model: nn.Module,
        tokenizer: Any,
        where: Layout,
        chosen: Sequence[Layer],
        facts: Sequence[Fact],
        monitor: Monitor | None,
    ) -> None:
        moments = self.moments or self.gathered(model, tokenizer, chosen, self.texts)
        with resting(model):
            before = contexts.sample(model, tokenizer, self.prefixes, self.seed)
        found = targets.find(
            model, where, tokenizer, facts, before, chosen[-1].index, self.objective, batch=self.batch, monitor=monitor
        )
        goals = {part: found.before[part] + found.shift[part] for part in self.into}
        subjects = writing.Subjects(model, where, tokenizer, facts, before, chosen[0].index)
        writing.write(subjects, chosen, goals, self.into, moments, self.penalty, self.ratio, self.spread)
