"""Causal models of `transformers` as speakers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instar import extras
from instar.doors.speaking import Speaker
from instar.errors import ModelError


class Causal(Speaker):
    """A model with a language head and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        first = tokenizer("a")["input_ids"][:1]
        self.start = first if first and first[0] == tokenizer.bos_token_id else []
        self.longest = getattr(model.config, "max_position_embeddings", None)
        taken = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in taken
        self._memory = next((name for name in ("cache", "past_key_values") if name in taken), "")  # its name changed
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = tokenizer.eos_token_id if ends is None else ends
        self.ends: list[int] = [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def chat(self, text: str) -> str:
        if not self.tokenizer.chat_template:
            return super().chat(text)
        said = [{"role": "user", "content": text}]
        try:
            found = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a small program and may raise anything
            raise ModelError(f"The chat template of this model fails: {error}") from error
        # The template writes the start mark itself; it is set before every row.
        return found.removeprefix(self.tokenizer.bos_token) if self.start else found

    def logits(self, tokens: Tensor, keep: Tensor, after: Any = None) -> Tensor:
        memory: dict[str, Any] = {"use_cache": False}
        if after is not None:
            own = copy.deepcopy(after)
            own.batch_repeat_interleave(len(tokens))
            memory = {"use_cache": True, self._memory: own}
        if self._keeps:  # most models can spare the head, by far their largest output, the places that nobody asks for
            return self.model(input_ids=tokens, logits_to_keep=keep, **memory).logits
        return self.model(input_ids=tokens, **memory).logits[:, keep]

    def remember(self, tokens: Tensor) -> Any:
        if not self._memory:
            return None
        only_last = {"logits_to_keep": 1} if self._keeps else {}
        found = self.model(input_ids=tokens, use_cache=True, **only_last).get(self._memory)
        # Plain keys and values alone: windows and recurrent states know no padding on the right.
        plain = all(type(layer).__name__ == "DynamicLayer" for layer in getattr(found, "layers", [None]))
        return found if plain else None

    @torch.no_grad()
    def generate(self, rows: list[list[int]], most: int, finished: Callable[[str], bool]) -> list[list[int]]:
        transformers = extras.require("transformers", "models")
        width, pad = max(map(len, rows)), self.ends[0] if self.ends else 0
        tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])

        def stop(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            return torch.tensor([finished(self.decode(row[width:])) for row in ids.tolist()], device=ids.device)

        asked = {"do_sample": False, "max_new_tokens": most, "eos_token_id": self.ends or None, "pad_token_id": pad}
        stored, self.model.generation_config = self.model.generation_config, transformers.GenerationConfig()
        try:  # what the folder says of generation would fill up all that is not asked for: this is plain greedy decoding
            found = self.model.generate(
                input_ids=tokens.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=transformers.GenerationConfig(**asked),
                stopping_criteria=[stop],
            )
        finally:
            self.model.generation_config = stored
        return [self._until_end(row[width:]) for row in found.tolist()]

    def _until_end(self, tokens: list[int]) -> list[int]:
        return tokens[: min((tokens.index(end) for end in self.ends if end in tokens), default=len(tokens))]
