"""Weights, vocabulary and configuration of a learner in one file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from instar.bench.seeds import initialising
from instar.errors import CheckpointError, DataError, ShapeError
from instar.lab.programs.network import ProgramNetwork, Shape
from instar.lab.programs.training import Try
from instar.lab.programs.transformer_programs import TransformerPrograms
from instar.lab.programs.vocabulary import Vocabulary
from instar.models import checkpoint
from instar.models.blank import without_memory

_ARGUMENTS = (
    *("k", "layers", "cat_heads", "num_heads", "cat_mlps", "num_mlps", "reads", "hidden"),
    *("embedded", "lr", "hot", "cold", "sampling", "restarts", "rare"),
)
_VOCABULARY = ("tokens", "labels", "length", "pooled", "unknown")


def save(learner: TransformerPrograms, path: str | Path) -> None:
    """One safetensors file, replaced at once. Raises DataError where nothing was learnt, OutputError."""
    if learner.network is None or learner.vocabulary is None:
        raise DataError("Nothing was learnt yet: call fit first.")
    facts = {
        "arguments": {name: getattr(learner, name) for name in _ARGUMENTS},
        "vocabulary": {name: getattr(learner.vocabulary, name) for name in _VOCABULARY},
        "shape": asdict(learner.network.shape),
        "tries": [asdict(one) for one in learner.tries],
    }
    checkpoint.write(Path(path), learner.network.state_dict(), {"transformer_programs": json.dumps(facts)})


def load(path: str | Path) -> TransformerPrograms:
    """A learner that answers, and prints, as the saved one did. Raises CheckpointError, before anything of its size is built."""
    path = Path(path)
    tensors, metadata = checkpoint.read(path)
    try:
        facts = json.loads(metadata["transformer_programs"])
        learner = TransformerPrograms(**facts["arguments"])
        shape = Shape(**facts["shape"])
        said = facts["vocabulary"]
        learner.vocabulary = Vocabulary(**{**said, "tokens": tuple(said["tokens"]), "labels": tuple(said["labels"])})
        learner.tries = [Try(**one) for one in facts["tries"]]
        _agree(learner, learner.vocabulary, shape)
        with without_memory(len(tensors), f"{path} describes a larger program than it holds. Nothing was loaded."):
            blank = ProgramNetwork(shape)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, ShapeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} holds no Transformer Program, or a damaged one ({error}). Nothing was loaded.") from error
    checkpoint.compare(path, tensors, blank.state_dict())
    with initialising(0):
        learner.network = ProgramNetwork(shape)
    learner.network.load_state_dict(tensors)
    return learner


def _agree(learner: TransformerPrograms, vocabulary: Vocabulary, shape: Shape) -> None:
    """Raise ValueError unless the parts of a file say the same: `predict` trusts that they do."""
    for texts in (vocabulary.tokens, vocabulary.labels):
        if not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
            raise ValueError("its tokens or labels are no different texts")
    if vocabulary.unknown not in (None, *vocabulary.tokens):
        raise ValueError("what stands for unknown tokens is none of its tokens")
    if learner.shape(vocabulary, shape.causal) != shape:
        raise ValueError("its arguments and its vocabulary do not make its shape")
