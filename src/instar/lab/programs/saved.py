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
    """A learner that answers, and prints, as the saved one did. Raises CheckpointError."""
    path = Path(path)
    tensors, metadata = checkpoint.read(path)
    try:
        facts = json.loads(metadata["transformer_programs"])
        learner = TransformerPrograms(**facts["arguments"])
        shape = Shape(**facts["shape"])
        said = facts["vocabulary"]
        learner.vocabulary = Vocabulary(**{**said, "tokens": tuple(said["tokens"]), "labels": tuple(said["labels"])})
        learner.tries = [Try(**one) for one in facts["tries"]]
    except (KeyError, TypeError, ValueError, ShapeError) as error:
        raise CheckpointError(f"{path} holds no Transformer Program, or a damaged one ({error}). Nothing was loaded.") from error
    with initialising(0):
        learner.network = ProgramNetwork(shape)
    checkpoint.compare(path, tensors, learner.network.state_dict())
    learner.network.load_state_dict(tensors)
    return learner
