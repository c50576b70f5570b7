"""Our own decoder checkpoints as versions: bytes in, bytes out, asked as any other model that continues text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from instar.data.pretrained import fingerprint
from instar.doors import process
from instar.doors.local import Settings, Subject
from instar.doors.settings import meanings
from instar.doors.speaking import Speaker
from instar.errors import ModelError
from instar.growth import saved
from instar.models import pretrained
from instar.models.decoder import Decoder
from instar.problems.text import BOS, VOCABULARY


class DecoderModel(process.LocalModel):
    """A folder that `Decoder` or `TokenFormer` wrote, of a decoder over bytes (257 tokens; 256 begins and ends a text).

    Tasks, settings and costs are those of causal models of `transformers`; see `TransformersModel`.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = meanings(Settings, without=("quantize", "layers", "chat", "document_prompt", "k"))

    def find(self) -> str:
        """The folder."""
        return str(Path(self.source).expanduser())

    @staticmethod
    def open(folder: str, settings: Settings) -> tuple[Subject, dict[str, Any]]:
        """In the fresh process: load, and say what it is. Raises CheckpointError."""
        path = Path(folder)
        return prepared(saved.load_any(path), path, settings)


def recognised(folder: Path) -> bool:
    """Whether a folder says that it is one of our checkpoints."""
    try:
        config = json.loads((folder / pretrained.CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and str(config.get("format", "")).startswith(("instar-decoder-", "instar-tokenformer-"))


class Bytes(Speaker):
    """A decoder over bytes."""

    def __init__(self, model: Decoder) -> None:
        if model.vocabulary != VOCABULARY:
            raise ModelError(f"A decoder over bytes has {VOCABULARY} tokens; this one has {model.vocabulary}.")
        self.model = model
        self.start, self.longest = [BOS], None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")

    def logits(self, tokens: Tensor, keep: Tensor, after: Any = None) -> Tensor:
        return self.model(tokens)[0][:, keep]  # padding is on the right, where a causal model needs no mask

    def generate(self, rows: list[list[int]], most: int, finished: Callable[[str], bool]) -> list[list[int]]:
        width = max(map(len, rows))
        device = self.model.embedding.weight.device
        prompts = torch.tensor([[BOS] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
        found: list[list[int]] = [[] for _ in rows]
        open_rows = set(range(len(rows)))
        for token in self.model.stream(prompts, max_new_tokens=most, mask=mask):
            for i, value in enumerate(token.tolist()):
                if i in open_rows and value != BOS:
                    found[i].append(value)
                if value == BOS or (i in open_rows and finished(self.decode(found[i]))):
                    open_rows.discard(i)
            if not open_rows:
                break
        return found


def prepared(model: Decoder, folder: Path, settings: Settings) -> tuple[Subject, dict[str, Any]]:
    """A loaded model where and as it is asked for, and what it is."""
    facts = {
        "settings": settings.facts(DecoderModel.SETTINGS),
        "weights_sha256": fingerprint(folder),
        "mixer": (model.config or {}).get("mixer"),
    }
    return Bytes(model.to(settings.device, getattr(torch, settings.dtype))), facts
