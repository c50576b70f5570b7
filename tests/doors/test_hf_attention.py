"""Attention functions for transformers: against its own eager ones, with padding, caches, shared heads and sliding windows."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from instar.compression.outliers import outlier_report
from instar.doors import hf_attention
from instar.errors import ModelError

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOKENS = torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def registered() -> None:
    hf_attention.register()


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **settings)).double().eval()


def gpt_oss() -> Any:
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=5)
    model = transformers.GptOssForCausalLM(config).float().eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return model


@torch.no_grad()
def logits(model: Any, name: str, **given: Any) -> torch.Tensor:
    model.set_attn_implementation(name)
    return model(input_ids=TOKENS, **given).logits


def test_clipping_without_stretch_is_the_eager_softmax() -> None:
    model = llama(clipped_softmax={"alpha": 0.0})
    torch.testing.assert_close(logits(model, "instar_clipped_softmax"), logits(model, "eager"), rtol=0, atol=1e-6)  # its angles
    model.config.clipped_softmax = {"alpha": 8.0, "length": 12}
    assert not torch.allclose(logits(model, "instar_clipped_softmax"), logits(model, "eager"))


def test_its_settings_are_saved_with_the_model(tmp_path: Any) -> None:
    model = llama(clipped_softmax={"alpha": 2.0, "length": 20})
    want = logits(model, "instar_clipped_softmax")
    model.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, attn_implementation="instar_clipped_softmax", dtype=torch.float64
    )
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=TOKENS).logits, want)


def test_sinks_of_gpt_oss_run_on_sdpa() -> None:
    model = gpt_oss()
    want = logits(model, "eager")
    torch.testing.assert_close(logits(model, "instar_sinks"), want, rtol=0, atol=2e-5)
    mask = torch.ones_like(TOKENS)
    mask[0, :4] = 0
    real = mask.bool()
    got = logits(model, "instar_sinks", attention_mask=mask)
    torch.testing.assert_close(got[real], logits(model, "eager", attention_mask=mask)[real], rtol=0, atol=2e-5)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.sinks)
    torch.testing.assert_close(logits(model, "instar_softmax1"), logits(model, "eager"), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["instar_clipped_softmax", "instar_softmax1"])
def test_a_cache_padding_and_written_out_weights_change_nothing(name: str) -> None:
    model = llama(clipped_softmax={"length": 12})
    want = logits(model, name)
    with torch.no_grad():
        told = model(input_ids=TOKENS, output_attentions=True)
        torch.testing.assert_close(told.logits, want)
        assert (told.attentions[0].sum(-1) < 1).any()
        first = model(input_ids=TOKENS[:, :7], use_cache=True)
        cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # its name changed
        state = {cache: first[cache]}
        parts = [first.logits] + [model(input_ids=t, **state).logits for t in TOKENS[:, 7:].split(1, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), want)
        mask = torch.ones(3, 15, dtype=torch.int64)
        mask[:, :3] = 0
        padded = torch.cat([torch.zeros_like(TOKENS[:, :3]), TOKENS], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits
        assert found.isfinite().all()
        torch.testing.assert_close(found[:, 3:], want)


def test_training_with_dropout() -> None:
    model = llama(attention_dropout=0.5).train()
    model.set_attn_implementation("instar_softmax1")
    torch.manual_seed(1)
    a, b = model(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits
    assert not torch.allclose(a, b)
    a.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_encoders_see_both_ways() -> None:
    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    model = transformers.BertModel(transformers.BertConfig(**sizes, clipped_softmax={"alpha": 0.0})).double().eval()
    mask = torch.ones_like(TOKENS)
    mask[1, 8:] = 0
    found = []
    with torch.no_grad():
        for name in ("eager", "instar_clipped_softmax"):
            model.set_attn_implementation(name)
            found.append(model(input_ids=TOKENS, attention_mask=mask).last_hidden_state[mask.bool()])
    torch.testing.assert_close(found[1], found[0])


def test_the_outlier_report_keeps_the_attention_of_the_model() -> None:
    model = llama(clipped_softmax={"alpha": 8.0, "length": 12})
    model.set_attn_implementation("instar_clipped_softmax")
    seen: list[torch.Tensor] = []
    hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    with torch.no_grad():
        model(input_ids=TOKENS)
    report = outlier_report(model, [{"input_ids": TOKENS, "output_attentions": True}])
    hook.remove()
    assert torch.equal(seen[0], seen[1])
    assert model.config._attn_implementation == "instar_clipped_softmax"
    assert set(report.sink_mass) == {"layer 0", "layer 1"}


def test_what_is_not_known_is_refused() -> None:
    model = llama()
    with pytest.raises(ModelError, match="no parameter `sinks`"):
        logits(model, "instar_sinks")
    model.config.clipped_softmax = {"zeta": 0.5}
    with pytest.raises(ModelError, match=r"received 4\.0, 0\.5 and 64"):
        logits(model, "instar_clipped_softmax")
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ModelError, match="biases"):
        hf_attention.attend("softmax1", model, q, q, q, torch.full((1, 1, 3, 3), 0.5))
    with pytest.raises(ModelError, match="caps or shifts"):
        hf_attention.attend("softmax1", model, q, q, q, None, softcap=30.0)
