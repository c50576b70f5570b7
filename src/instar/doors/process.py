"""A local model in a process of its own: its memory, threads and seed are its own, and its death is a reason, not a crash."""

from __future__ import annotations

import abc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from instar import extras
from instar.bench.executor import Job, LocalExecutor, Outcome
from instar.bench.run import peak_rss
from instar.doors import settings as reading
from instar.doors.local import Settings, Subject
from instar.doors.version import Progress, Version, require_task
from instar.errors import InstarError, ModelError
from instar.gate.predictions import Cases, Predictions

Opener = Callable[[str, Settings], tuple[Subject, dict[str, Any]]]
"""`opener(folder, settings)` loads a subject and says what it is; importable by name."""


@dataclass(frozen=True)
class Request:
    """What a fresh process is asked: open `folder` and answer `cases`."""

    name: str
    source: str
    folder: str
    opener: Opener
    settings: Settings
    cases: Cases
    task: str
    preload: tuple[str, ...] = ()
    """Modules imported before memory is counted: what a library takes is no cost of a model."""


class LocalModel(Version):
    """A folder on this machine that is loaded in a fresh process at every run.

    Costs: `size_bytes` of parameters and buffers; `peak_bytes`, by which the process grew beyond what it took before loading (on
    CUDA: most bytes of tensors); `wall_seconds` and `cpu_seconds` of the answers, without loading.

    Raises ShapeError for a setting that makes no sense, and what finding the folder raises.
    """

    PRELOAD: ClassVar[tuple[str, ...]] = ()

    def __init__(self, source: str, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(source, settings)
        self._chosen = reading.read(Settings, self.settings)
        self._folder = self.find()

    @abc.abstractmethod
    def find(self) -> str:
        """What `open` is given. A conversion happens here, where it is no cost of a run."""

    @staticmethod
    @abc.abstractmethod
    def open(folder: str, settings: Settings) -> tuple[Subject, dict[str, Any]]:
        """In the fresh process: load, and say what it is."""

    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """See `Version.run`. Also raises UnknownNameError (task), and ModelError when the process dies or takes too long."""
        require_task(task)
        asked = Request(self.name, self.source, self._folder, type(self).open, self._chosen, cases, task, self.PRELOAD)
        return run(asked, progress)


def run(request: Request, progress: Progress | None) -> Predictions:
    """Answer in a fresh process. Raises what the work raises on purpose, and ModelError when the process dies or is stopped."""
    total = len(request.cases)
    outcomes: list[Outcome] = []

    def told(_: str, done: int, __: float) -> None:
        if progress is not None:
            progress(done, total)

    LocalExecutor().run([Job(request.name, work, (request,), request.settings.timeout)], outcomes.append, told)
    outcome = outcomes[0]
    if outcome.status != "ok":
        raise ModelError(f"{request.name} gave no answers: {outcome.reason}.")
    if isinstance(outcome.value, InstarError):
        raise outcome.value
    if progress is not None:
        progress(total, total)
    return outcome.value


def work(request: Request, report: Callable[[int, float], None]) -> Predictions | InstarError:
    """In the fresh process. An InstarError is returned, so that it keeps its type on its way."""
    settings = request.settings
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # before transformers is imported
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    try:
        for module in request.preload:
            extras.require(module, "models")
        device = _device(settings.device)
        before, started = peak_rss(), time.perf_counter()
        subject, facts = request.opener(request.folder, settings)
        loaded, cpu = time.perf_counter(), time.process_time()
        answers = subject.answer(request.cases, request.task, settings, lambda done: report(done, 0.0))
    except InstarError as error:
        return error
    costs = {
        "size_bytes": float(size(subject.model)),
        "peak_bytes": float(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss() - before),
        "wall_seconds": time.perf_counter() - loaded,
        "cpu_seconds": time.process_time() - cpu,
    }
    facts = {
        "source": request.source,
        **facts,
        "class": type(subject.model).__name__,
        "task": request.task,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_seconds": round(loaded - started, 3),
    }
    return answers.predictions(request.name, request.cases, costs, facts)


def size(model: nn.Module) -> int:
    """Bytes of parameters and buffers; of 8-bit linear layers, which keep their weights elsewhere, those of the weights too."""
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    for module in model.modules():
        if type(module).__name__ == "LinearPackedParams":
            weight, bias = module._weight_bias()  # type: ignore[operator]
            held += weight.numel() * weight.element_size() + (0 if bias is None else bias.numel() * bias.element_size())
    return held


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"The device '{name}' is not to be had: {str(error).splitlines()[0]}") from error
    return device
