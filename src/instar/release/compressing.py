"""A stored model in a smaller form, as the next stored version: packed, and as the floats that it stands for."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instar.anatomy.linear import Linear, is_linear
from instar.compression import gguf_file, gguf_llama, int8_product, saved
from instar.compression.compressor import Aside, Compressor
from instar.compression.pruning import cutting
from instar.compression.pruning.layout import layout
from instar.compression.pruning.masking import zeros
from instar.data import pretrained
from instar.errors import CheckpointError, DataError, TransformError
from instar.gate.predictions import Cases
from instar.gate.result import Result
from instar.interfaces import Transform
from instar.receipts.facts import Facts
from instar.receipts.receipt import Receipt
from instar.release import cases as standing
from instar.release import gating, recording, writing
from instar.release import kept as keeping
from instar.release.aside import aside

_BATCH, _LONGEST = 32, 256
GGUF = "model.gguf"


@dataclass(frozen=True)
class Compressed:
    """What was made smaller, and what that did."""

    folder: Path
    """Plain weights, with receipt and gate."""
    small: Path
    """The compressed model: `instar.compression.load`, or wherever a model is named to `instar`."""
    gguf: Path | None
    """The same for llama.cpp, where it was asked for."""
    receipt: Facts
    bytes_before: int
    """Of the weights on disk."""
    bytes_after: int
    kept: dict[str, float]
    """See `kept.compared`."""
    gate: Result | None


def compress(
    name: str | Path,
    steps: Sequence[Transform],
    out: str | Path,
    *,
    data: Cases | None = None,
    cases: Cases | None = None,
    texts: Sequence[str] | None = None,
    gguf: bool = False,
    gated: bool = True,
    command: str = "",
    progress: Callable[[str], Any] = lambda name: None,
) -> Compressed:
    """Compress a stored model step by step, and write both forms of the result with the receipt and the gate.

    Args:
        name: as in `pretrained.floats`; it stays as it is, and is loaded in the type that it is stored in.
        data: labelled items, other ones than the model learnt and the gate asks, for steps that choose by them.
        cases: what both versions are asked; by default `cases.of`.
        texts: on which the compressed model is held to the one before; by default English inside Python.
        gguf: also write OUT/small/model.gguf, which llama.cpp runs (see `gguf_llama.place` for the models that it takes).

    OUT/small is the compressed model, and what the gate judges. OUT itself holds the weights that it stands for as plain floats,
    as large as before: for whoever reads it with `transformers` alone. What a method does to activations, or to attention (hard
    attention of axformer), is not in there.

    Memory, where the steps are `Compressor`s: a few copies of the largest layer in float32, however many layers there are. The
    rest are pages of files, which the system takes back when it needs them. A cut holds what is left of the weights.
    Raises TransformError, ModelError, DataError, OutputError; nothing is written then.
    """
    writing.vacant(Path(out))
    source = pretrained.floats(name)
    kind = pretrained.kind_of(source)
    if gated and cases is None:
        cases = standing.of(source, 300 if kind == "encoder" else 100)
    shown = list(texts or keeping.texts())
    model, tokenizer = pretrained.load(source, kind, "auto")
    if gguf:
        gguf_llama.place(model, tokenizer)  # what cannot be written is said before the work
    progress("looking at the model as it is")
    before = keeping.answers(model, tokenizer, kind, shown)
    progress("compressing")
    batches = None if data is None else _batches(model, tokenizer, kind, data)
    with writing.version(out, source) as folder:
        with aside(folder) as put:
            start = time.perf_counter()
            done = [_step(step, model, batches, put) for step in steps]
            seconds = time.perf_counter() - start
            small = saved.save(model, folder / writing.SMALL, steps=done)
            writing.accompany(source, small)
            if gguf:
                gguf_file.write(model, small / GGUF, tokenizer=tokenizer)
            progress("looking at the compressed model")
            with int8_product.unpacked():
                found = keeping.compared(before, keeping.answers(model, tokenizer, kind, shown), kind)
            del model
            gc.collect()
            progress("writing the plain weights")
            writing.weights(_plain(source, kind, small, put), folder)
        titles = [str(step["method"]) for step in done]
        settings = dict(done[0]["settings"]) if len(done) == 1 else {"steps": done}
        said = recording.record(
            source, folder, method=" + ".join(titles), title=" + ".join(titles), settings=settings, seconds=seconds
        )
    small = Path(out) / writing.SMALL
    judged = None
    if gated:
        assert cases is not None
        judged = gating.gate(name, small, cases, folder=Path(out), command=command, progress=progress)
    sizes = sum(path.stat().st_size for path in pretrained.weights(source)), saved.nbytes(small)
    return Compressed(Path(out), small, small / GGUF if gguf else None, said, *sizes, found, judged)


def _step(step: Transform, model: nn.Module, data: Any, put: Aside) -> dict[str, Any]:
    """One step without a way back in memory: the model before lies on disk. What was done, for the manifest."""
    if cutting.standing(model):
        raise TransformError(
            "Parts were cut out of the model, and a further step has no plain form then. Let the cut be the last step, or "
            "keep the shapes (axformer:form=zeroed,top_k=0)."
        )
    if isinstance(step, Compressor):
        step.consume(model, data, aside=put)
        return {"method": step.method, "settings": step.settings()}
    receipt: Receipt = step.apply(model, data)
    return {"method": receipt.facts.method, "settings": receipt.facts.settings}


def _batches(model: Any, tokenizer: Any, kind: str, data: Cases) -> list[dict[str, Any]]:
    """Items as a model of `transformers` is called with them. Raises DataError for labels that it does not know."""
    known = {} if kind != "classifier" else model.config.label2id
    labels: list[Any] = []
    for label in (data.labels or ()) if known else ():
        if label not in known and label not in known.values():
            raise DataError(f"{data.name} has the label {label!r}; the model knows {', '.join(map(str, list(known)[:8]))}.")
        labels.append(known.get(label, label))
    found = []
    for start in range(0, len(data.inputs), _BATCH):
        here = slice(start, start + _BATCH)
        batch = dict(tokenizer(data.inputs[here], padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"))
        if labels:
            batch["labels"] = torch.tensor(labels[here])
        elif kind == "causal":
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        found.append(batch)
    return found


@torch.no_grad()
def _plain(source: Path, kind: str, small: Path, put: Aside) -> Any:
    """The model before, with the weights that the compressed layers stand for in the places and types of its own."""
    model, _ = pretrained.load(source, kind, "auto")
    if removed := saved.removed(small):
        soft = replace(removed, elements=tuple(element for element in removed.elements if element.kind != "hard"))
        for name, value in zeros(layout(model, soft.group_size), soft).items():
            parameter = model.get_parameter(name)
            parameter.data = value
            put([parameter])
    tied = {id(model.get_input_embeddings().weight)} if getattr(model.config, "tie_word_embeddings", False) else set()
    for name, layer in saved.layers(small):
        module = model.get_submodule(name)
        stands: Any = getattr(layer, "plain", dict)  # an activation or the attention has no weights
        for own, value in stands().items():
            parameter = getattr(module, own)
            if id(parameter) in tied and not isinstance(module, nn.Embedding):
                continue  # a plain model has one table for both ends: that of the embedding
            turned = own == "weight" and is_linear(module) and Linear(name, module).transposed
            found = value.T if turned else value
            if parameter.shape != found.shape:
                raise CheckpointError(f"{name}.{own} is {tuple(found.shape)} in {small}, {tuple(parameter.shape)} in {source}.")
            parameter.data = found.to(parameter.dtype).contiguous()
            put([parameter])
    return model
