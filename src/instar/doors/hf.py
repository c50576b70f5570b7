"""Models of `transformers`, in a fresh process or live: text classes, choices, generation, retrieval and numbers."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from instar.data import pretrained
from instar.doors import process
from instar.doors.local import LOADING, Settings, Subject
from instar.doors.settings import meanings, read
from instar.doors.version import Progress, Version, require_task
from instar.errors import ShapeError
from instar.gate.predictions import Cases, Predictions

if TYPE_CHECKING:
    from instar.receipt import Receipt

_ASKING = meanings(Settings, without=LOADING)


class TransformersModel(process.LocalModel):
    """A model of `transformers` from this machine: `SmolLM2-135M-Instruct`, a folder, or a hub id in the local cache.

    Loaded from safetensors only, without network and without code of the folder. The vectors of encoders come as `embeddings`.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = meanings(Settings)
    PRELOAD: ClassVar[tuple[str, ...]] = (
        "transformers.modeling_utils",
        "transformers.generation",
        "transformers.tokenization_utils_tokenizers",
    )

    def __init__(self, source: str, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(source, settings)
        chosen = self._chosen
        if chosen.quantize == "int8" and (chosen.dtype != "float32" or not chosen.device.startswith("cpu")):
            raise ShapeError(f"quantize=int8 works with dtype=float32 on the CPU; received {chosen.dtype} and {chosen.device}.")

    def find(self) -> str:
        """The folder. Raises UnknownNameError, MissingExtraError, ModelError."""
        return str(pretrained.folder(self.source))

    @staticmethod
    def open(folder: str, settings: Settings) -> tuple[Subject, dict[str, Any]]:
        """In the fresh process: load, quantise, and say what it is."""
        path = Path(folder)
        model, tokenizer = pretrained.load(path, dtype=settings.dtype, device=settings.device, layers=settings.layers)
        return prepared(model, tokenizer, path, settings)


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
        self._chosen = read(Settings, self.settings)

    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """See `Version.run`. The model answers in evaluation mode and is left in the mode that it had."""
        require_task(task)
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        started, cpu = time.perf_counter(), time.process_time()
        try:
            answers = subject(self.model, self.tokenizer).answer(
                cases, task, self._chosen, lambda done: progress(done, len(cases)) if progress is not None else None
            )
        finally:
            for module, training in modes.items():
                module.training = training
        costs = {
            "size_bytes": float(process.size(self.model)),
            "wall_seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
        }
        facts = {"source": "a live model", "class": type(self.model).__name__, "task": task, "torch": torch.__version__}
        return answers.predictions(self.name, cases, costs, {**facts, "settings": self._chosen.facts(_ASKING)})


def before_and_after(
    model: nn.Module, tokenizer: Any, receipt: Receipt, cases: Cases, task: str, settings: Mapping[str, Any] | None = None
) -> tuple[Predictions, Predictions]:
    """What an updated model says, without and with the update of `receipt`; it is left updated. Raises as `Live.run`."""
    with receipt.reverted(model):
        before = Live(model, tokenizer, "before", settings).run(cases, task)
    return before, Live(model, tokenizer, "after", settings).run(cases, task)


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


def prepared(model: nn.Module, tokenizer: Any, folder: Path, settings: Settings) -> tuple[Subject, dict[str, Any]]:
    """A loaded model, quantised if that is asked for, and what it is."""
    if settings.quantize == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces a successor, which is another package
            model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    facts = {
        "settings": settings.facts(TransformersModel.SETTINGS),
        "weights_sha256": pretrained.fingerprint(folder),
        "transformers": importlib.metadata.version("transformers"),
    }
    return subject(model, tokenizer, folder), facts
