"""Two versions of a small GPT-2, for experiments on updates of a model that end in minutes.

    python -m instar.problems.update_model_gpt FOLDER        train both (5 minutes of one free core), FOLDER/old and FOLDER/new

The old one read articles of Wikipedia for 900 steps, the new one other articles for 1200, from other start weights; they share a
tokenizer, as versions of a model do. They stand in the package, beside the problem that uses them, so that
whoever installs the package can train them again. What is written are plain folders of `transformers`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar import extras
from instar.bench.fit import fit
from instar.bench.seeds import initialising, stream
from instar.data import datasets
from instar.problems.edit_facts_gpt import write
from instar.problems.small_gpt2 import small_gpt2

VOCABULARY, LENGTH, END = 1024, 128, "<|endoftext|>"
WIDTH, DEPTH, HEADS = 128, 4, 4
BATCH, LR = 8, 3e-3


@dataclass(frozen=True)
class Recipe:
    """How a version is made: its name, what it reads (data set, place of the file), how long, and from which start."""

    name: str
    texts: Sequence[tuple[str, int]]
    steps: int
    seed: int


OLD = Recipe("old", (("wikitext2", 0),), 900, 1)
NEW = Recipe("new", (("wikitext2", 1),), 1200, 2)
TOKENIZED = (("tinyshakespeare", 0), ("wikitext2", 0), ("wikitext2", 1))
"""What the tokenizer of both learnt from."""


def train(recipe: Recipe, folder: Path, *, say: Callable[[str], None] = lambda text: None) -> float:
    """Train a version and write it to folder/name (float16). Returns nats a token of the last step.

    Raises OutputError, and what `datasets.locate` raises.
    """
    tokenizer = make_tokenizer(TOKENIZED)
    with initialising(recipe.seed):
        model = make_model(tokenizer)
    ids = torch.tensor(tokenizer(_read(recipe.texts), verbose=False)["input_ids"])
    last = float("nan")

    def batch(number: int) -> Tensor:
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=stream(recipe.seed, f"rows/{number}"))
        return torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])

    def nll(model: nn.Module, rows: Tensor) -> Tensor:
        logits = model(input_ids=rows).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())

    def monitor(step: int, loss: float) -> None:
        nonlocal last
        last = loss
        if step % 50 == 0:
            say(f"{recipe.name}, step {step} of {recipe.steps}: {loss:.3f} nats")

    fit(model, batch, nll, steps=recipe.steps, lr=LR, weight_decay=0.05, seed=recipe.seed, monitor=monitor)
    write(model, tokenizer, folder / recipe.name)
    return last


def make_tokenizer(texts: Sequence[tuple[str, int]]) -> Any:
    """Byte-level BPE learnt from texts; a text ends with the token <|endoftext|>."""
    tokenizers, transformers = extras.require("tokenizers", "models"), extras.require("transformers", "models")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_read(texts).splitlines(keepends=True), trainer)
    special = {"bos_token": END, "eos_token": END, "pad_token": END, "unk_token": END}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special, model_max_length=LENGTH)


def make_model(tokenizer: Any) -> nn.Module:
    """A GPT-2 of random weights for a tokenizer: 4 layers of width 128."""
    return small_gpt2(len(tokenizer), tokenizer.eos_token_id, length=LENGTH, width=WIDTH, depth=DEPTH, heads=HEADS)


def _read(texts: Sequence[tuple[str, int]]) -> str:
    return "\n".join(datasets.locate(name)[place].read_text("utf-8") for name, place in texts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m instar.problems.update_model_gpt FOLDER")
    for one in (OLD, NEW):
        nats = train(one, Path(sys.argv[1]), say=lambda text: print(text, flush=True))  # noqa: T201
        print(f"{one.name}: {nats:.4f} nats a token")  # noqa: T201
