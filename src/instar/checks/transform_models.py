"""Small models of real architectures, the same at every call: what the checks of a transform change."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 64


class Encoder(nn.Module):
    """A pre-norm residual network on tokens, with a head that is its embedding; plain torch, in one file."""

    def __init__(self, width: int = 32, hidden: int = 64, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(x + self.down(self.activation(self.up(self.norm(x)))))


def encoder(**sizes: int) -> nn.Module:
    """An `Encoder` with fixed random weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Encoder(**sizes).eval()


def conv1d() -> nn.Module | None:
    """A small GPT-2, whose layers are Conv1D and store [in, out]; None where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=VOCABULARY, n_positions=32, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # away from zeros and ones, among which mistakes hide
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def classifier(kind: str, **sizes: int) -> nn.Module:
    """A small classifier of `transformers`, with two blocks of two heads, away from zeros and ones."""
    import transformers

    tokens = {"vocab_size": VOCABULARY + 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": VOCABULARY}
    config = transformers.AutoConfig.for_model(kind, num_labels=3, **tokens, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model: nn.Module = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def structured_models() -> dict[str, Any]:
    """Name -> what builds a transformer whose parts are known: post-norm with `nn.Linear`, pre-norm with Conv1D."""
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 512, "n_positions": 32}
    return {"BERT": lambda: classifier("bert", **bert), "GPT-2": lambda: classifier("gpt2", **gpt2)}


def labelled() -> list[dict[str, Tensor]]:
    """A batch of tokens with classes that have nothing to do with them."""
    ids = torch.arange(1, 97).view(8, 12) * 7 % (VOCABULARY - 1) + 1
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(8) % 3}]


def models() -> dict[str, Any]:
    """Name -> what builds the model."""
    found: dict[str, Any] = {"torch.nn.Linear": encoder}
    return found if conv1d() is None else {**found, "Conv1D": conv1d}


def answers(model: nn.Module) -> Tensor:
    """The logits of some fixed tokens."""
    ids = torch.arange(24).view(2, 12) * 7 % VOCABULARY
    with torch.no_grad():
        found = model(ids)
    logits = found if isinstance(found, Tensor) else found.logits
    assert isinstance(logits, Tensor)
    return logits
