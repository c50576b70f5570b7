"""Models of `transformers`, in a fresh process or live: text classes, choices, generation, retrieval and numbers."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from instar.data import pretrained
from instar.doors import process
from instar.doors.answers import Subject
from instar.doors.settings import ASKING, CHATTING, LOADING, SEARCHING, SPEAKING, Settings
from instar.doors.version import TASKS, Progress, Version
from instar.errors import ModelError, UnknownNameError
from instar.gate.predictions import Cases, Predictions

LIBRARY = ("transformers.modeling_utils", "transformers.generation", "transformers.tokenization_utils_tokenizers")
_ASKING = {**ASKING, **CHATTING, **SPEAKING, **SEARCHING}


class Reversible(Protocol):
    """A receipt: inside `with receipt.reverted(model)` the model is what it was before the update."""

    def reverted(self, model: nn.Module) -> Any: ...


class TransformersModel(Version):
    """A model of `transformers` from this machine: `SmolLM2-135M-Instruct`, a folder, or a hub id in the local cache.

    Every run loads it in a fresh process, from safetensors only, without network and without code of the folder. The vectors of
    encoders come as `embeddings`.

    Costs: `size_bytes` of parameters and buffers; `peak_bytes`, by which the process grew beyond what it took before loading (on
    CUDA: most bytes of tensors); `wall_seconds` and `cpu_seconds` of the answers, without loading.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = {**LOADING, **_ASKING}

    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """See `Version.run`. Also raises UnknownNameError (task, model) and MissingExtraError."""
        settings = Settings.of(self.settings)
        check(task)
        if settings.quantize == "int8" and (settings.dtype != "float32" or settings.device != "cpu"):
            raise ModelError(
                f"quantize=int8 works with dtype=float32 on the CPU; received {settings.dtype} and {settings.device}."
            )
        folder = pretrained.folder(self.source)  # here, so that a conversion is no cost of the run
        return process.run(process.Request(self.name, self.source, str(folder), opened, settings, cases, task, LIBRARY), progress)


class Live(Version):
    """A model in this process, as it stands at each run: to be judged before and after an update.

    Args:
        model, tokenizer: of `transformers`, or a `Decoder` and None.
        name: how it is called. settings: those of asking, not those of loading.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = _ASKING

    def __init__(self, model: nn.Module, tokenizer: Any, name: str = "model", settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, settings)
        self.model, self.tokenizer = model, tokenizer

    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """See `Version.run`. The model answers in evaluation mode and is left in the mode that it had."""
        check(task)
        settings = Settings.of(self.settings)
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        started, cpu = time.perf_counter(), time.process_time()
        try:
            answers = subject(self.model, self.tokenizer).answer(
                cases, task, settings, lambda done: progress(done, len(cases)) if progress is not None else None
            )
        finally:
            for module, training in modes.items():
                module.training = training
        costs = {
            "size_bytes": float(process.size(self.model)),
            "wall_seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
        }
        facts = {"source": "a live model", "class": type(self.model).__name__, "task": task, "settings": settings.facts(_ASKING)}
        return answers.predictions(self.name, cases, costs, {**facts, "torch": torch.__version__})


def before_and_after(
    model: nn.Module, tokenizer: Any, receipt: Reversible, cases: Cases, task: str, settings: Mapping[str, Any] | None = None
) -> tuple[Predictions, Predictions]:
    """What an updated model says, without and with the update of `receipt`; it is left updated. Raises as `Live.run`."""
    with receipt.reverted(model):
        before = Live(model, tokenizer, "before", settings).run(cases, task)
    return before, Live(model, tokenizer, "after", settings).run(cases, task)


def check(task: str) -> None:
    """Raise UnknownNameError for what is no task."""
    if task not in TASKS:
        raise UnknownNameError.among("task", task, TASKS)


def subject(model: Any, tokenizer: Any, folder: Path | None = None) -> Subject:
    """What a model can answer, by its class; `folder` says how an encoder of sentence-transformers pools."""
    from instar.doors import decoder, hf_causal, hf_encoder
    from instar.models.decoder import Decoder

    if isinstance(model, Decoder):
        return decoder.Bytes(model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT wraps
    name = type(inner).__name__
    if name.endswith("ForSequenceClassification"):
        return hf_encoder.Classifier(model, tokenizer)
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return hf_causal.Causal(model, tokenizer)
    return hf_encoder.Encoder(model, tokenizer, *(hf_encoder.sentence_settings(folder) if folder is not None else ()))


def opened(folder: str, settings: Settings, prepare: Callable[[nn.Module], None] | None = None) -> tuple[Subject, dict[str, Any]]:
    """In the fresh process: load, `prepare` (undo updates), quantise, and say what it is."""
    path = Path(folder)
    model, tokenizer = pretrained.load(path, dtype=settings.dtype, device=settings.device, layers=settings.layers)
    if prepare is not None:
        prepare(model)
    if settings.quantize == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces a successor, which is another package
            model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    facts = {
        "settings": settings.facts(TransformersModel.SETTINGS),
        "weights_sha256": pretrained.fingerprint(path),
        "transformers": importlib.metadata.version("transformers"),
    }
    return subject(model, tokenizer, path), facts
