"""Small transformers of many architectures, and one that has learnt a task, for the tests of pruning."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_inner": 64, "vocab_size": 50}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50},
    "modernbert": {**SMALL, "cls_token_id": 1, "sep_token_id": 2},
    "mpnet": SMALL,
}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gptj": {**GPT2, "rotary_dim": 4},
    "gpt_neox": SMALL,
    "gpt_neo": {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "attention_types": [[["global"], 2]], "vocab_size": 50},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma3_text": {**GROUPED, "head_dim": 8},
    "olmo2": SMALL,
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": SMALL,
    "phi3": SMALL,
    "falcon": SMALL,
}
WITHOUT_HEADS = ("mpnet", "olmo2", "phi3", "falcon")
"""Where heads cannot be taken out alone."""
SOFT = ("mpnet", "gpt_neo", "falcon")
"""Which cannot attend hard."""


def made(kind: str, **more: Any) -> Any:
    """A model with fixed random weights away from zeros and ones: encoders classify, decoders are language models."""
    import transformers

    settings = {**(ENCODERS.get(kind) or DECODERS[kind]), **more}
    config = transformers.AutoConfig.for_model(kind, **settings, **SPECIAL)
    auto = transformers.AutoModelForSequenceClassification if kind in ENCODERS else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(model: Any, rows: int = 6, tokens: int = 9) -> dict[str, Tensor]:
    """Tokens, one row of which is padded, and labels."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (rows, tokens), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    labels = ids.masked_fill(mask == 0, -100) if causal else torch.arange(rows) % 2
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def logits(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """Of the real tokens."""
    with torch.no_grad():
        found: Tensor = model(**{name: value for name, value in rows.items() if name != "labels"}).logits
    return found if found.dim() == 2 else found[rows["attention_mask"].bool()]


def seen(rows: int, seed: int) -> dict[str, Tensor]:
    """The task: whether token 7 is there, which only attention can bring to the first place."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, 50, (rows, 10), generator=draw)
    ids[:, 0] = 1
    there = torch.rand(rows, generator=draw) < 0.5
    ids[there.nonzero().view(-1), torch.randint(1, 10, (int(there.sum()),), generator=draw)] = 7
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": there.long()}


@functools.cache
def weights() -> dict[str, Tensor]:
    model = made("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(250):
        rows = seen(32, step)
        F.cross_entropy(model(rows["input_ids"]).logits, rows["labels"]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.state_dict()


def trained() -> Any:
    """A BERT that has learnt `seen`."""
    model = made("bert")
    model.load_state_dict(weights())
    return model


def validation(rows: int = 48, parts: int = 3) -> list[dict[str, Tensor]]:
    """Batches of `seen` that it was not trained on."""
    return [seen(rows // parts, 10_000 + part) for part in range(parts)]
