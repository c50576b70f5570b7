"""Encoders of `transformers`: sentences as vectors, classes by nearest centroid or by a head, numbers, and search."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.doors.local import Answers, Settings, Subject, Tell, batches
from instar.doors.nearest import nearest
from instar.errors import DataError, ModelError
from instar.gate.predictions import Cases, Json

_POOLINGS = ("mean_tokens", "cls_token", "max_tokens", "lasttoken")
_RENAMED = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
"""How sentence-transformers 6 writes what it wrote as `pooling_mode_…: true` before."""
_ENDLESS = 10**7
"""Tokens from which on a longest input is a way to say that there is none."""


class Encoder(Subject):
    """An encoder without a head: unit vectors by pooling the last hidden states.

    Args:
        pooling: mean_tokens, cls_token, max_tokens or lasttoken. longest: most tokens it was made for.
    """

    def __init__(self, model: Any, tokenizer: Any, pooling: str = "mean_tokens", longest: int | None = None) -> None:
        self.model, self.tokenizer, self.pooling, self.longest = model, tokenizer, pooling, longest

    def answer(self, cases: Cases, task: str, settings: Settings, tell: Tell) -> Answers:
        """classification: the class whose examples' mean vector has the largest cosine. retrieval: documents by cosine."""
        if task == "classification":
            return self._nearest(cases, settings, tell)
        if task == "retrieval":
            return self._search(cases, settings, tell)
        raise self.refuse(task, "an encoder without a head does classification (from examples) and retrieval.")

    def embed(
        self, texts: Sequence[str], template: str, settings: Settings, tell: Tell | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Unit vectors [N, D], and for each the seconds of its batch."""
        return run(self, texts, template, settings, tell, lambda output, mask: pool(output.last_hidden_state, mask, self.pooling))

    def _nearest(self, cases: Cases, settings: Settings, tell: Tell) -> Answers:
        if not cases.examples:
            raise DataError(
                f"{type(self.model).__name__} has no classification head and {cases.name} holds no examples. Give labelled "
                "examples, from which the classes are learnt, or a model with a head (…ForSequenceClassification)."
            )
        known, _ = self.embed([text for text, _ in cases.examples], settings.prompt, settings)
        groups: dict[str, list[int]] = {}
        for place, (_, label) in enumerate(cases.examples):
            groups.setdefault(json.dumps(label, sort_keys=True), []).append(place)
        centroids = unit(np.stack([known[places].mean(0) for places in groups.values()]))
        vectors, seconds = self.embed(cases.inputs, settings.prompt, settings, tell)
        labels = [json.loads(key) for key in groups]
        scores = vectors @ centroids.T
        best = scores.argmax(1)  # of equals the first
        facts = {"pooling": self.pooling, "classes": len(labels), "examples": len(cases.examples), "rule": "nearest centroid"}
        return checked(Answers([labels[i] for i in best], seconds, embeddings=vectors, facts=facts), scores)

    def _search(self, cases: Cases, settings: Settings, tell: Tell) -> Answers:
        if not cases.documents:
            raise DataError(f"Retrieval searches documents; {cases.name} holds none.")
        names = [name for name, _ in cases.documents]
        documents, _ = self.embed([text for _, text in cases.documents], settings.document_prompt, settings)
        vectors, seconds = self.embed(cases.inputs, settings.prompt, settings, tell)
        if not np.isfinite(documents).all():
            raise ModelError(f"{type(self.model).__name__} gives documents vectors that are NaN or infinite.")
        found: list[Json] = [*nearest(vectors, documents, names, settings.k)]
        facts = {"pooling": self.pooling, "documents": len(names)}
        return checked(Answers(found, seconds, embeddings=vectors, facts=facts), vectors)


class Classifier(Subject):
    """A model with a head of `transformers`: a class, or one or several numbers."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.longest = model, tokenizer, None

    def answer(self, cases: Cases, task: str, settings: Settings, tell: Tell) -> Answers:
        """classification: the name of the class with the largest logit. regression: the logits themselves."""
        if task not in ("classification", "regression"):
            raise self.refuse(task, "a classification head does classification and regression.")
        outputs = self.model.config.num_labels

        def both(output: Any, mask: Tensor) -> Tensor:
            return torch.cat([output.logits.float(), pool(output.hidden_states[-1], mask, "mean_tokens")], 1)

        found, seconds = run(self, cases.inputs, settings.prompt, settings, tell, both, output_hidden_states=True)
        logits, vectors = found[:, :outputs], found[:, outputs:]
        if task == "regression":
            values: list[Json] = logits[:, 0].tolist() if outputs == 1 else logits.tolist()
        else:
            names = self._names(cases)
            values = [names[i] for i in logits.argmax(1)]
        return checked(Answers(values, seconds, embeddings=vectors, facts={"rule": "head"}), logits)

    def _names(self, cases: Cases) -> list[Json]:
        names = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(names))
        if unnamed and cases.labels and all(type(label) is int for label in cases.labels):
            return list(range(len(names)))  # a head whose classes nobody named answers numbers
        return names


class Batching(Protocol):
    """The settings that say how texts become batches."""

    @property
    def batch(self) -> int: ...
    @property
    def max_length(self) -> int | None: ...


@torch.no_grad()
def run(
    subject: Any,
    texts: Sequence[str],
    template: str,
    settings: Batching,
    tell: Tell | None,
    read: Callable[[Any, Tensor], Tensor],
    **arguments: Any,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """`read(output, mask)` [N, D] of the model for every text, in batches, and the seconds of each text's batch."""
    model, tokenizer = subject.model, subject.tokenizer
    asked = [template.replace("{input}", text) for text in texts]
    longest = longest_of(model, tokenizer, settings.max_length or subject.longest)
    vectors: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(asked)
    seconds, done = np.full(len(asked), np.nan), 0
    for part in batches([len(text) for text in asked], settings.batch):
        started = time.perf_counter()
        rows = tokenizer(
            [asked[i] for i in part], padding=True, truncation=longest is not None, max_length=longest, return_tensors="pt"
        ).to(model.device)
        found = read(model(**rows, **arguments), rows["attention_mask"]).float().cpu().numpy()
        for place, vector in zip(part, found, strict=True):
            vectors[place] = vector
        seconds[part] = time.perf_counter() - started
        done += len(part)
        if tell is not None:
            tell(done)
    return np.stack(vectors), seconds


def longest_of(model: Any, tokenizer: Any, asked: int | None) -> int | None:
    """Tokens after which a text is cut: as many as asked for, and no more than model and tokenizer take; None for no end."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    told = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from behind that of padding, and their table holds those before it too.
    before = [m.padding_idx + 1 for name, m in modules.items() if name.endswith("position_embeddings") and _pads(m)]
    taken = told - before[0] if told and before else told
    if asked and any("rotary" in name for name in modules):
        taken = None  # turned by their angle, positions have no table that ends
    longest = min(n for n in (asked, taken, tokenizer.model_max_length) if n)
    return longest if longest < _ENDLESS else None


def _pads(table: nn.Module) -> bool:
    return getattr(table, "padding_idx", None) is not None


def checked(answers: Answers, numbers: NDArray[np.float32]) -> Answers:
    """The answers without those of items whose `numbers` [N, D] are not all finite: the largest of them means nothing."""
    for place in np.flatnonzero(~np.isfinite(numbers).all(1)):
        answers.outputs[place], answers.errors[int(place)] = None, "the model answered NaN or infinity"
    if answers.embeddings is not None:
        answers.embeddings = answers.embeddings if np.isfinite(answers.embeddings).all() else None
    return answers


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Hidden states [B, T, D] as unit vectors [B, D]; padding counts for nothing."""
    states, real = states.float(), mask.unsqueeze(-1).bool()
    if how == "cls_token":
        found = states[:, 0]
    elif how == "lasttoken":
        last = torch.where(mask.bool(), torch.arange(mask.shape[1], device=mask.device), 0).amax(1)
        found = states[torch.arange(len(states), device=mask.device), last]
    elif how == "max_tokens":
        found = states.masked_fill(~real, -torch.inf).amax(1)
    else:
        found = states.masked_fill(~real, 0).sum(1) / real.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(found, dim=1)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def sentence_settings(folder: Path) -> tuple[str, int | None]:
    """(pooling, longest input) that a folder of sentence-transformers declares; mean pooling elsewhere. Raises ModelError."""
    modules = _read(folder / "modules.json", [])
    unknown = [m["type"] for m in modules if m["type"].rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise ModelError(f"{folder} ends in {', '.join(unknown)}, which this door does not run. Use a function of your own.")
    longest = _read(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    told = _read(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    on = [key.removeprefix("pooling_mode_") for key, value in told.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(mode := told.get("pooling_mode"), str):
        on = [_RENAMED.get(mode, mode)]
    if len(on) != 1 or on[0] not in _POOLINGS:
        raise ModelError(f"{folder} pools by {' and '.join(on) or 'nothing known'}; this door knows {', '.join(_POOLINGS)}.")
    return on[0], longest


def sentence_prompts(folder: Path) -> tuple[str, str]:
    """What a folder of sentence-transformers puts before queries and before documents; nothing elsewhere. Raises ModelError."""
    facts = _read(folder / "config_sentence_transformers.json", {})
    prompts, default = facts.get("prompts"), facts.get("default_prompt_name")
    prompts = prompts if isinstance(prompts, dict) else {}
    found = [
        next((str(prompts[name]) for name in names if prompts.get(name) is not None), "")
        for names in (("query", default), ("document", "passage", "corpus", default))
    ]
    if any(found) and _read(folder / "1_Pooling" / "config.json", {}).get("include_prompt", True) is False:
        raise ModelError(f"{folder} leaves its prompts out of pooling, which this door does not. Use st:{folder}.")
    return found[0], found[1]


def _read(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    entries = isinstance(value, list) and all(isinstance(v, dict) and isinstance(v.get("type"), str) for v in value)
    if not (entries if isinstance(default, list) else isinstance(value, dict)):
        raise ModelError(f"{path} is not what sentence-transformers writes.")
    return value
