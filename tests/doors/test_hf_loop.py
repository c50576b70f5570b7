"""Looped layers of real architectures: once is the model, twice is the unrolled model, and the model comes back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from instar.doors import hf_loop
from instar.errors import ModelError, ShapeError

transformers: Any = pytest.importorskip("transformers")
SMALL = {"num_attention_heads": 2, "num_hidden_layers": 4, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 40}
SMALL["num_key_value_heads"] = 2
KINDS = ["full_attention", "sliding_attention"] * 2


def made(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=4, n_head=2, n_embd=16, vocab_size=40, n_positions=32)
        return transformers.GPT2LMHeadModel(config).eval()
    if kind == "qwen2":  # every other layer sees three tokens
        config = transformers.Qwen2Config(
            **SMALL, initializer_range=0.3, layer_types=KINDS, use_sliding_window=True, sliding_window=3
        )
        return transformers.Qwen2ForCausalLM(config).eval()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, initializer_range=0.3)).eval()


IDS = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0


def logits(model: Any) -> torch.Tensor:
    return model(IDS, attention_mask=MASK, use_cache=False).logits


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_looped_layers_are_the_unrolled_model(kind: str) -> None:
    model = made(kind)
    plain = logits(model)
    unrolled = copy.deepcopy(model)
    body = unrolled.transformer if kind == "gpt2" else unrolled.model
    layers = body.h if kind == "gpt2" else body.layers
    order = [0, 1, 2, 1, 2, 3]
    again = torch.nn.ModuleList(copy.deepcopy(layers[i]) for i in order)
    if kind == "gpt2":
        body.h = again
    else:
        body.layers, body.config.num_hidden_layers = again, len(order)
    if kind == "qwen2":
        body.config.layer_types = [KINDS[i] for i in order]
    with hf_loop.loop(model, first=1, last=2, loops=2) as looped:
        found = logits(model)
        assert torch.allclose(found, logits(unrolled), atol=1e-5)
        assert not torch.allclose(found, plain, atol=1e-4)
        assert looped.taken is not None
        assert looped.taken.tolist() == [2, 2, 2]
        looped.loops = 1
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain)
    assert not any(key for key in model.state_dict() if "loop" in key)


def test_rows_stop_by_themselves_and_gradients_pass_all_loops() -> None:
    model = made("llama")
    with hf_loop.loop(model, first=0, last=1, loops=40, tolerance=0.12) as looped:
        found = logits(model)
        taken = looped.taken
        assert taken is not None
        assert int(taken.min()) < 40
        for row, loops in enumerate(taken.tolist()):
            looped.tolerance, looped.loops = 0.0, loops
            assert torch.allclose(logits(model)[row, 3:], found[row, 3:], atol=1e-4)
        looped.tolerance, looped.loops = 0.0, 3
        logits(model).square().mean().backward()
        three = model.model.layers[0].mlp.up_proj.weight.grad.clone()
        model.zero_grad()
        looped.loops = 1
        logits(model).square().mean().backward()
        assert not torch.allclose(three, model.model.layers[0].mlp.up_proj.weight.grad)


def test_generation_needs_no_cache_and_says_so() -> None:
    model = made("llama")
    with hf_loop.loop(model, first=1, last=1, loops=3, inject=0.1):
        with pytest.raises(ModelError, match="use_cache=False"):
            model.generate(IDS, attention_mask=MASK, max_new_tokens=2, do_sample=False)
        out = model.generate(IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False, use_cache=False, pad_token_id=0)
        assert out.shape == (3, 12)


def test_layers_that_do_not_exist() -> None:
    model = made("gpt2")
    for wrong in ({"first": 2, "last": 1}, {"first": 0, "last": 4}, {"first": 0, "last": 1, "loops": 0}):
        with pytest.raises(ShapeError):
            hf_loop.loop(model, **wrong)
    with pytest.raises(ModelError):
        hf_loop.loop(torch.nn.Linear(2, 2), first=0, last=0)
