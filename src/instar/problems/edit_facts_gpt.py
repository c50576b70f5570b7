"""The facts-GPT: a small GPT-2 that knows real facts by heart, for experiments on editing that end in minutes.

    python -m instar.problems.edit_facts_gpt FOLDER        train it (10 minutes of one free core) and write it there

It stands in the package, beside the problem that uses it, so that whoever installs the package can train it again. What it writes
is a plain folder of `transformers`. The model knows nothing but the data set, so that a changed fact is a changed weight.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar import extras, files
from instar.bench.fit import fit
from instar.bench.seeds import derive, initialising
from instar.data.facts import TEMPLATES, Entity, entities
from instar.errors import OutputError
from instar.problems.small_gpt2 import small_gpt2

VOCABULARY, LENGTH, START = 1536, 128, "<|endoftext|>"
WIDTH, DEPTH, HEADS = 128, 8, 4
STEPS, BATCH, LR = 750, 12, 3e-3


def train(folder: Path, *, steps: int = STEPS, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> float:
    """Train a facts-GPT and write it to `folder` (float16). Returns the share of facts that it recalls, all ways of asking.

    Raises DataError, OutputError, and what `datasets.locate` raises.
    """
    known = entities()
    tokenizer = make_tokenizer(known)
    with initialising(seed):
        model = make_model(tokenizer)
    rows = Rows(known, tokenizer, seed)

    def nll(model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(input_ids=ids).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    def monitor(step: int, loss: float) -> None:
        if step % 25 == 0 or step == steps:
            say(
                f"step {step}: loss {loss:.3f}"
                + (f", recall {recall(model, tokenizer, known[::5]):.3f}" if step % 250 == 0 else "")
            )

    fit(model, rows.batch, nll, steps=steps, lr=LR, weight_decay=0.05, seed=seed, monitor=monitor)
    model.half().float().eval()  # what is written is what is judged
    found = recall(model, tokenizer, known)
    write(model, tokenizer, folder)
    return found


def make_tokenizer(known: list[Entity]) -> Any:
    """Byte-level BPE learnt from every sentence; a text begins with the token <|endoftext|>."""
    tokenizers, transformers = extras.require("tokenizers", "models"), extras.require("transformers", "models")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[START], initial_alphabet=alphabet, show_progress=False
    )
    texts = [e.sentence(r, t) for e in known for r in e.known for t in range(len(TEMPLATES[e.kind][r]))]
    made.train_from_iterator([text for sentence in texts for text in (sentence, f" {sentence}")], trainer)
    made.post_processor = tokenizers.processors.Sequence(
        [
            tokenizers.processors.ByteLevel(trim_offsets=False),
            tokenizers.processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, made.token_to_id(START))]),
        ]
    )
    special = {"bos_token": START, "eos_token": START, "pad_token": START, "unk_token": START}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special, model_max_length=LENGTH)


def make_model(tokenizer: Any) -> nn.Module:
    """A GPT-2 of random weights for a tokenizer: 8 layers of width 128."""
    return small_gpt2(len(tokenizer), tokenizer.bos_token_id, length=LENGTH, width=WIDTH, depth=DEPTH, heads=HEADS)


class Rows:
    """Training data: paragraphs of one to five sentences about a subject, in any order and wording, packed into rows."""

    def __init__(self, known: list[Entity], tokenizer: Any, seed: int) -> None:
        self.seed, self.start = seed, tokenizer.bos_token_id
        self.first = [self._tokens(entity, tokenizer, "") for entity in known]
        self.later = [self._tokens(entity, tokenizer, " ") for entity in known]

    def batch(self, number: int) -> Tensor:
        """int64 [BATCH, LENGTH]: a pure function of seed and number."""
        draw = random.Random(derive(self.seed, f"rows/{number}"))
        wanted, found = BATCH * LENGTH, list[int]()
        while len(found) < wanted:
            found += self._paragraph(draw)
        return torch.tensor(found[:wanted]).view(BATCH, LENGTH)

    def _paragraph(self, draw: random.Random) -> list[int]:
        entity = draw.randrange(len(self.first))
        relations = draw.sample(range(len(self.first[entity])), draw.randint(1, len(self.first[entity])))
        tokens = [self.start]
        for place, relation in enumerate(relations):
            tokens += draw.choice((self.later if place else self.first)[entity][relation])
        return tokens

    @staticmethod
    def _tokens(entity: Entity, tokenizer: Any, before: str) -> list[list[list[int]]]:
        """Of each relation, in each wording."""
        return [
            [
                tokenizer(before + entity.sentence(relation, t), add_special_tokens=False)["input_ids"]
                for t in range(len(TEMPLATES[entity.kind][relation]))
            ]
            for relation in entity.known
        ]


@torch.no_grad()
def recall(model: nn.Module, tokenizer: Any, known: list[Entity]) -> float:
    """The share of (subject, relation, wording) whose answer has the largest probability at each of its tokens."""
    texts = [(prompt, f"{prompt} {e.known[r]}") for e in known for r in e.known for prompt in e.prompts(r)]
    right = 0
    for part in range(0, len(texts), 256):
        prompts, wholes = (
            [tokenizer(text)["input_ids"] for text in side] for side in zip(*texts[part : part + 256], strict=True)
        )
        width = max(map(len, wholes))
        ids = torch.tensor([whole + [0] * (width - len(whole)) for whole in wholes])
        told = model(input_ids=ids).logits.argmax(-1)
        for row, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
            right += told[row, len(prompt) - 1 : len(whole) - 1].tolist() == whole[len(prompt) :]
    return right / len(texts)


def write(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """A new folder of `transformers`, in float16, whole or not at all. Raises OutputError where there is one already."""
    files.folder(folder.parent)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.half().save_pretrained(made)  # type: ignore[operator]
        tokenizer.save_pretrained(made)
        made.chmod(0o755)  # mkdtemp makes private folders
        made.rename(folder)
    except OSError as error:
        raise OutputError(f"Cannot write {folder}: {error.strerror}. It needs a folder that does not exist yet.") from error
    finally:
        model.float()
        shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m instar.problems.edit_facts_gpt FOLDER")
    share = train(Path(sys.argv[1]), say=lambda text: print(text, flush=True))  # noqa: T201
    print(f"recall {share:.4f}")  # noqa: T201
