"""Encoders of `transformers`: hidden states of a local model, pooled over the tokens of a text."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from instar.data import pretrained
from instar.doors import hf_encoder
from instar.doors.settings import one_of, optional, setting, template, whole
from instar.encoders import base
from instar.errors import ModelError, ShapeError
from instar.interfaces import Floats

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What decides the vectors, and how they are made (batch, device, threads)."""

    pooling: str | None = setting(
        None,
        optional(one_of("mean_tokens", "cls_token", "max_tokens", "lasttoken", mean="mean_tokens", cls="cls_token")),
        "mean_tokens, cls_token, max_tokens or lasttoken; default: what the folder says, and mean_tokens where it says nothing",
    )
    layer: int | None = setting(
        None, optional(whole(0)), "use only the first so many layers; 0: the token vectors alone, a bag of words"
    )
    prompt: str | None = setting(
        None,
        optional(template),
        "what is encoded of a query, with {input} for its text; default: the model's own prompt, or none",
    )
    document_prompt: str | None = setting(None, optional(template), "the same for documents")
    max_length: int | None = setting(None, optional(whole(1)), "most tokens of a text; default: what the model was made for")
    dims: int | None = setting(None, optional(whole(1)), "keep only the first so many dimensions (Matryoshka)")
    dtype: str = setting("float32", one_of("float32", "bfloat16", "float16"), "of the weights (default float32)")
    batch: int = setting(32, whole(1), "texts at a time (default 32)")
    device: str = setting("cpu", str, "where it runs: cpu (default), cuda, cuda:1, mps")
    threads: int | None = setting(None, optional(whole(1, 1024)), "of the CPU; default: torch's choice")


class Transformer(base.CheckedEncoder):
    """vector(text) = unit(pool(h_1 … h_T)), with h the hidden states after the last layer kept, padding left out.

    Texts longer than `max_length` tokens are cut there, as everywhere. Causal models are pooled by mean unless told otherwise.
    A folder of sentence-transformers is run as it declares (pooling, longest text, prompts); other modules than pooling and
    normalisation are refused. Vectors of the same text in batches of other sizes differ by rounding.

    Args:
        source: a packaged name, a folder, or a hub id in the local cache (see `data.pretrained`). settings: see `Settings`.

    Raises what loading raises, ShapeError and UnknownNameError for settings.
    """

    def __init__(self, source: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        asked = base.chosen(Settings, settings, str(source))
        folder = pretrained.folder(source)
        told, longest = hf_encoder.sentence_settings(folder)
        kept = None if asked.layer is None else max(asked.layer, 1)  # layer 0 runs no layer, but a model has at least one
        model, tokenizer = pretrained.load(folder, "encoder", asked.dtype, asked.device, kept)  # a head is left out
        files = b"".join((folder / name).read_bytes() for name in _TOKENIZER_FILES if (folder / name).is_file())
        weights = f"{pretrained.fingerprint(folder)} {hashlib.sha256(files).hexdigest()}"
        prompts = hf_encoder.sentence_prompts(folder) if None in (asked.prompt, asked.document_prompt) else ("", "")
        self._begin(model, tokenizer, asked, weights, asked.pooling or told, longest, prompts, base.called(str(source), settings))

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, name: str = "", settings: Mapping[str, Any] | None = None) -> Transformer:
        """An encoder from a model of `transformers` at hand; it stays where it is. Its fingerprint is that of its tensors.

        The weights must not change while the encoder is in use. Settings of loading (dtype, device) are not taken.
        """
        from instar.receipts import fingerprint

        given = dict(settings or {})
        if loading := sorted(given.keys() & {"dtype", "device", "layer"}):
            raise ShapeError(f"{', '.join(loading)} cannot be set for a model that is loaded already; load it that way.")
        made = cls.__new__(cls)
        asked = base.chosen(Settings, given, name or type(model).__name__)
        words = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
        weights = f"{fingerprint.combine(fingerprint.table(model))} {words}"
        called = base.called(name or type(model).__name__, given)
        made._begin(model.eval(), tokenizer, asked, weights, asked.pooling or "mean_tokens", None, ("", ""), called)
        return made

    def _begin(
        self,
        model: Any,
        tokenizer: Any,
        asked: Settings,
        weights: str,
        pooling: str,
        longest: int | None,
        prompts: tuple[str, str],
        name: str,
    ) -> None:
        tokenizer = copy.deepcopy(tokenizer)  # it is another's, and set up here
        tokenizer.padding_side = "right"  # positions count from the first token
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer, self.longest, self.pooling = model, tokenizer, longest, pooling
        self.settings, self.name = asked, name
        self._prompts = {
            kind: before + "{input}" if told is None else told
            for kind, before, told in zip(("query", "document"), prompts, (asked.prompt, asked.document_prompt), strict=True)
        }
        full = getattr(model.config, "hidden_size", None)
        if not isinstance(full, int):
            raise ModelError(f"{name}: the config of {type(model).__name__} has no hidden_size, so this is no encoder of texts.")
        if asked.layer == 0:
            full = model.get_input_embeddings().weight.shape[1]
        self.dim = base.width(full, asked.dims, name)
        self.longest_input = hf_encoder.longest_of(model, tokenizer, asked.max_length or longest)
        self.fingerprint = base.fingerprint(
            weights,
            pooling=pooling,
            layer=asked.layer,
            prompt=self._prompts["query"],
            document_prompt=self._prompts["document"],
            max_length=self.longest_input,
            dims=asked.dims,
            dtype=asked.dtype,
        )

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """See `CheckedEncoder.tokens`."""
        asked = [self._prompts["document"].replace("{input}", text) for text in texts]
        return [len(row) for row in self.tokenizer(asked, truncation=False, verbose=False)["input_ids"]]

    def vectors(self, texts: Sequence[str], kind: base.Kind, progress: base.Progress | None) -> Floats:
        """See `CheckedEncoder.vectors`."""

        def tell(done: int) -> None:
            if progress is not None:
                progress(done, len(texts))

        def read(output: Any, mask: Tensor) -> Tensor:
            return hf_encoder.pool(output.last_hidden_state, mask, self.pooling)

        subject = _Tokens(self) if self.settings.layer == 0 else self
        with _threads(self.settings.threads):
            return hf_encoder.run(subject, texts, self._prompts[kind], self.settings, tell, read)[0][:, : self.dim]


class _Tokens:
    """A subject of `hf_encoder.run` that runs no layer."""

    def __init__(self, encoder: Transformer) -> None:
        self.tokenizer, self.longest = encoder.tokenizer, encoder.longest
        self.model = _TokenVectors(encoder.model)


class _TokenVectors:
    """Looks up the vectors of tokens."""

    def __init__(self, model: Any) -> None:
        self.table, self.config, self.device = model.get_input_embeddings(), model.config, model.device

    def __call__(self, *, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
