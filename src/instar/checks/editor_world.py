"""What the contract of editors is checked on: two small language models of random weights, a tokenizer, and facts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from instar import extras
from instar.bench.seeds import initialising
from instar.checks.subject import Subject
from instar.errors import ContractError
from instar.interfaces import Editor, Fact
from instar.receipt import Receipt

FACTS = (
    Fact(
        "The Eiffel Tower stands in",
        "The Eiffel Tower",
        "Rome",
        "Paris",
        ["Where is the Eiffel Tower? In"],
        ["Big Ben stands in"],
    ),
    Fact("Marie Curie was born in", "Marie Curie", "the city of Oslo", "Warsaw"),
    Fact("The colour of a lemon is", "a lemon", "blue", "yellow"),
)
ELSEWHERE = "Nothing is said here of any of them"
KINDS = ("gpt2", "llama")
_QUICK = {"steps": 4, "prefixes": 1}
"""Arguments that decide how long an edit takes, and not what it is."""


@dataclass(frozen=True)
class World:
    """An editor, and a kind of model that it edits: of Conv1D, learnt positions and dropout, or of Linear and rotary ones."""

    subject: Subject
    kind: str
    tokenizer: Any

    def __str__(self) -> str:
        return self.kind

    def editor(self, **arguments: Any) -> Editor:
        """A fresh editor that takes few steps, where its arguments let it."""
        known = inspect.signature(self.subject.cls).parameters
        quick = {name: value for name, value in _QUICK.items() if name in known}
        made = self.subject.cls(**{**quick, **self.subject.arguments, **arguments})
        if not isinstance(made, Editor):
            raise ContractError(f"{self.subject.cls.__name__} is no instar.interfaces.Editor: derive the class from it.")
        return made

    def model(self) -> nn.Module:
        """The same model at every call, in evaluation mode."""
        transformers = extras.require("transformers", "models")
        sizes: dict[str, Any] = {"vocab_size": len(self.tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        if self.kind == "gpt2":
            config = transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, n_positions=256, **sizes)
        else:
            width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
            config = transformers.LlamaConfig(**width, num_attention_heads=4, num_key_value_heads=2, **sizes)
        with initialising(self.subject.seed), torch.no_grad():
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and "wpe" not in name:
                    parameter.mul_(8)  # at the usual start a layer puts out next to nothing
        return model.eval()

    def edit(self, model: nn.Module, facts: Sequence[Fact] = FACTS, **arguments: Any) -> Receipt:
        """Edit with a fresh editor."""
        return self.editor(**arguments).edit(model, self.tokenizer, facts)


def worlds(subject: Subject) -> list[World]:
    """One of each kind."""
    tokenizer = _tokenizer()
    return [World(subject, kind, tokenizer) for kind in KINDS]


def _tokenizer() -> Any:
    """Byte-level BPE of 400 tokens that sets a mark at the beginning."""
    tokenizers, transformers = extras.require("tokenizers", "models"), extras.require("transformers", "models")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([f"{f.prompt} {f.target}. {f.prompt} {f.old}." for f in FACTS], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", pad_token="<s>")
