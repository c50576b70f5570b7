"""Attention replaced by mixers: softmax for softmax is the oracle; padding, caches, beams, undo, distillation, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instar.checks.receipt import check_receipts
from instar.doors.replacing import replace_attention, trained
from instar.doors.swap_report import swap_report
from instar.errors import CheckpointError, DataError, ModelError, ShapeError, UnknownNameError
from instar.mixers.ecoformer import Ecoformer
from instar.models.decoder import Decoder
from instar.models.refitting import refitting
from instar.receipt import fingerprint

transformers = pytest.importorskip("transformers")

TAKEN = ["gla", "gla:no_gate", "linear_attention", "softmax1", "sinks", "clipped_softmax", "gated_softmax", "ecoformer"]
TOKENS = torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[0, :4] = MASK[1, :1] = MASK[2, :2] = 0  # one column is padding in every row


def livelier(model: nn.Module) -> Any:
    """With attention that is far from uniform, and biases that are not 0."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("attn", "mixer")):
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def rotary(family: str, attention: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **settings}, attn_implementation=attention)
    return livelier(getattr(transformers, f"{family}ForCausalLM")(config))


def llama(attention: str = "sdpa", **settings: Any) -> Any:
    return rotary("Llama", attention, **settings)


def gpt2(attention: str = "sdpa", **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    return livelier(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **settings}, attn_implementation=attention)))


def mistral(attention: str = "sdpa", **settings: Any) -> Any:
    return rotary("Mistral", attention, sliding_window=None, **settings)


def qwen2(attention: str = "sdpa", **settings: Any) -> Any:
    return rotary("Qwen2", attention, **settings)


def decoder(mixer: str = "softmax", **arguments: Any) -> Any:
    torch.manual_seed(0)
    return livelier(Decoder(50, 32, 2, mixer, heads=4, mixer_arguments=arguments))


def generated(model: Any, **settings: Any) -> Tensor:
    return model.generate(
        input_ids=TOKENS, attention_mask=MASK, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **settings
    )


@pytest.mark.parametrize("layers", [None, [0], [1]])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("build", [llama, mistral, qwen2, gpt2])
@torch.no_grad()
def test_softmax_for_softmax_changes_nothing(build: Any, attention: str, layers: list[int] | None) -> None:
    model = build(attention)
    plain, padded = model(TOKENS).logits, model(input_ids=TOKENS, attention_mask=MASK).logits
    greedy, beams = generated(model), generated(model, num_beams=3)
    receipt = replace_attention(model, "softmax", layers=layers)
    torch.testing.assert_close(model(TOKENS).logits, plain, rtol=0, atol=1e-5)
    real = MASK.bool()
    torch.testing.assert_close(model(input_ids=TOKENS, attention_mask=MASK).logits[real], padded[real], rtol=0, atol=1e-5)
    assert torch.equal(generated(model), greedy)
    assert torch.equal(generated(model, num_beams=3), beams)
    receipt.undo()
    assert torch.equal(model(TOKENS).logits, plain)


@torch.no_grad()
def test_biases_and_other_wavelengths_are_kept() -> None:
    for settings in ({"attention_bias": True}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}):
        model = llama(**settings)
        want = model(TOKENS).logits
        replace_attention(model, "softmax")
        torch.testing.assert_close(model(TOKENS).logits, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [llama, gpt2, decoder])
@torch.no_grad()
def test_the_same_swap_takes_the_saved_tensors(build: Any) -> None:
    model, again = build(), build()
    replace_attention(model, "gla", layers=[1])
    replace_attention(again, "gla", layers=[1])
    again.load_state_dict(model.state_dict())
    outputs = [one(TOKENS)[0] for one in (model, again)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("mixer", TAKEN)
@pytest.mark.parametrize("build", [llama, gpt2])
@torch.no_grad()
def test_padding_and_caches_change_nothing_in_a_swapped_model(build: Any, mixer: str) -> None:
    model = build()
    before = model(TOKENS).logits
    replace_attention(model, mixer, layers=[0])
    whole = model(TOKENS).logits
    assert not torch.allclose(whole, before, atol=1e-4)
    first = model(TOKENS[:, :5], use_cache=True)
    second = model(TOKENS[:, 5:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, rtol=0, atol=1e-5)
    found = generated(model)
    for i, row in enumerate(TOKENS):
        alone = model.generate(row[MASK[i].bool()][None], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert torch.equal(found[i, -6:], alone[0, -6:])
    assert torch.equal(generated(model, use_cache=False), found)
    with pytest.raises(ValueError, match="stateful"):
        model.generate(TOKENS[:1], assistant_model=build(), max_new_tokens=2, do_sample=False)


@torch.no_grad()
def test_shared_keys_are_repeated_where_the_mixer_has_none() -> None:
    shared, own = llama(), llama(num_key_value_heads=4)
    for block, other in zip(shared.model.layers, own.model.layers, strict=True):
        for key in ("k_proj", "v_proj"):
            rows = getattr(block.self_attn, key).weight.unflatten(0, (2, 8))
            getattr(other.self_attn, key).weight.copy_(rows.repeat_interleave(2, 0).flatten(0, 1))
    rest = {key: value for key, value in shared.state_dict().items() if "k_proj" not in key and "v_proj" not in key}
    own.load_state_dict(rest, strict=False)
    replace_attention(shared, "linear_attention")
    replace_attention(own, "linear_attention")
    torch.testing.assert_close(shared(TOKENS).logits, own(TOKENS).logits)


@torch.no_grad()
def test_positions_that_differ_only_beyond_a_length_change_nothing_within_it() -> None:
    model = llama()
    plain, greedy = model(TOKENS).logits, generated(model)
    for name, knobs in (("streaming_llm", {"window": 16}), ("scaled_rope:yarn", {"trained": 18})):
        with replace_attention(model, name, **knobs):
            torch.testing.assert_close(model(TOKENS).logits, plain, rtol=0, atol=1e-5)
            assert torch.equal(generated(model), greedy)
    with replace_attention(model, "streaming_llm", window=4, sinks=1):
        assert not torch.allclose(model(TOKENS).logits, plain, atol=1e-3)


@torch.no_grad()
def test_positions_are_squeezed_beyond_the_longest_input_of_the_model() -> None:
    tokens = TOKENS.repeat(1, 30)
    for longest, changed in ((512, False), (300, True)):
        model = llama(max_position_embeddings=longest)
        plain = model(tokens).logits
        replace_attention(model, "scaled_rope:yarn")
        torch.testing.assert_close(model(tokens[:, :300]).logits, plain[:, :300], rtol=0, atol=1e-5)
        assert (float((model(tokens).logits - plain)[:, 300:].abs().max()) > 1e-2) == changed


@torch.no_grad()
def test_what_always_rotates_takes_over_rotation_and_no_other_attention() -> None:
    for knobs in ({"window": 16}, {"window": 16, "rope_base": 500.0}):
        model = decoder("streaming_llm", **knobs)
        plain = model(TOKENS)[0]
        for name in ("softmax", "scaled_rope", "local_window"):
            with replace_attention(model, name):
                torch.testing.assert_close(model(TOKENS)[0], plain, rtol=0, atol=1e-5)
    for model in (gpt2(), decoder(rope=False), decoder("alibi")):
        for name in ("streaming_llm", "scaled_rope:ntk"):
            with pytest.raises(ModelError, match=f"does not rotate.*'{name}' always does"):
                replace_attention(model, name)


@pytest.mark.parametrize("build", [llama, gpt2, decoder])
def test_queries_that_are_keys_take_the_trained_queries(build: Any) -> None:
    """EcoFormer: W_q for both, and hash functions that are fitted to what the layer reads, by hand or by the distillation."""
    model, swapped = build(), build()
    base = fingerprint(model)
    (weight, bias), knobs = trained(model)[0].projections["q_proj"], {"iterations": 5, "support": 12}
    replace_attention(swapped, "ecoformer", layers=[0], **knobs)
    layer = next(module for module in swapped.modules() if isinstance(module, Ecoformer))
    assert torch.equal(layer.qk_proj.weight, weight)
    assert layer.qk_proj.bias is bias is None or torch.equal(layer.qk_proj.bias, bias)
    anchors, before = layer.anchors.clone(), swapped(TOKENS)[0]
    with refitting(swapped):
        swapped(TOKENS)
    assert not torch.equal(layer.anchors, anchors)
    assert not torch.equal(swapped(TOKENS)[0], before)
    draws = torch.randint(1, 50, (8, 3, 12), generator=torch.Generator().manual_seed(1))
    report = swap_report(model, "ecoformer", [{"input_ids": tokens} for tokens in draws], steps=40, lr=5e-3, layers=[0], **knobs)
    assert report.layers[0].after < report.layers[0].before
    assert fingerprint(model) == base
    (mixer,) = report.mixers.values()
    assert not torch.equal(mixer.anchors, anchors)


@torch.no_grad()
def test_our_decoder(tmp_path: Any) -> None:
    for arguments in ({}, {"kv_heads": 2, "bias": True}, {"rope": False}, {"rope_base": 500.0}):
        model = decoder(**arguments)
        mask = MASK.bool()
        plain, padded = model(TOKENS)[0], model(TOKENS, mask=mask)[0]
        receipt = replace_attention(model, "softmax")
        torch.testing.assert_close(model(TOKENS)[0], plain, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(TOKENS, mask=mask)[0][mask], padded[mask], rtol=0, atol=1e-5)
        with pytest.raises(CheckpointError):
            model.save_pretrained(tmp_path)
        receipt.undo()
        assert torch.equal(model(TOKENS)[0], plain)
        model.save_pretrained(tmp_path)
    model = decoder("linear_attention")
    replace_attention(model, "gla", layers=[1])
    assert model.generate(TOKENS, max_new_tokens=3).shape == (3, 3)
    with pytest.raises(ModelError, match="GRU, has no q_proj"):
        replace_attention(decoder("gru"), "softmax")


@pytest.mark.parametrize("build", [llama, gpt2, decoder])
def test_the_receipt_keeps_its_contract(build: Any) -> None:
    def update(model: nn.Module) -> Any:
        torch.manual_seed(1)
        return replace_attention(model, "gated_softmax", layers=[1])

    bad = [outcome for outcome in check_receipts(build, update) if outcome.status != "passed"]
    assert not bad, bad


@pytest.mark.parametrize("build", [llama, gpt2, decoder])
def test_a_swap_report_leaves_the_model_alone(build: Any) -> None:
    model = build().train()
    base = fingerprint(model)
    draws = torch.randint(1, 50, (12, 3, 12), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": tokens, "attention_mask": MASK} for tokens in draws]
    same = swap_report(model, "softmax", batches, steps=0)
    assert len(same.layers) == 2
    assert all(one.before < 1e-5 and one.after == one.before for one in same.layers)
    assert same.loss_before == pytest.approx(same.loss, abs=1e-5)
    torch.manual_seed(2)
    report = swap_report(model, "gla", batches, steps=60, lr=5e-3, layers=[1])
    (only,) = report.layers
    assert only.after < 0.95 * only.before
    assert report.loss == same.loss != report.loss_before != report.loss_after
    assert fingerprint(model) == base
    assert all(module.training for module in model.modules())
    assert f"{only.after:.3g}" in str(report)
    receipt = report.place(model)
    assert model.get_submodule(only.path).training
    receipt.undo()
    assert fingerprint(model) == base


def test_the_error_of_a_layer_is_that_of_its_output() -> None:
    model = llama()
    report = swap_report(model, "softmax1", [{"input_ids": TOKENS}] * 2, steps=0, layers=[0])
    seen: list[Tensor] = []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda module, given, found: seen.append(found[0]))
    with torch.no_grad():
        model(TOKENS)
        swapped = copy.deepcopy(model)
        replace_attention(swapped, "softmax1", layers=[0])
        swapped.model.layers[0].self_attn.register_forward_hook(lambda module, given, found: seen.append(found[0]))
        swapped(TOKENS)
    hook.remove()
    want = (seen[1] - seen[0]).norm() / seen[0].norm()
    assert report.layers[0].before == pytest.approx(float(want), rel=1e-4)


@torch.no_grad()
def test_what_cannot_be_mapped_is_refused() -> None:
    model = llama()
    for name, knobs, error, said in (
        ("gru", {}, ModelError, "no linear layer q_proj.*q_proj, k_proj, v_proj, o_proj"),
        ("aaren", {}, ModelError, "no linear layer q_proj"),
        ("gla", {"expand_k": 0.5}, ModelError, r"\[16, 32\].*\[32, 32\].*choose knobs"),
        ("gla", {"nothing": 1}, UnknownNameError, "knob of gla"),
        ("lora", {}, ModelError, "no causal mixer"),
        ("glaa", {}, UnknownNameError, "gla"),
        ("gla", {"layers": [2]}, UnknownNameError, "layer"),
    ):
        with pytest.raises(error, match=said):
            replace_attention(model, name, **knobs)
    with pytest.raises(ModelError, match="scores by"):
        trained(gpt2(scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(ModelError, match="64 wide together and the model 32"):
        trained(llama(head_dim=16))
    with pytest.raises(ModelError, match="type 'linear'"):
        trained(llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}))
    with pytest.raises(ModelError, match="is a Qwen3Attention"):
        trained(rotary("Qwen3", "sdpa", head_dim=8))
    with pytest.raises(ModelError, match="reads the last 6 tokens alone"):
        trained(rotary("Mistral", "sdpa", sliding_window=6))
    windowed = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}
    with pytest.raises(ModelError, match="reads the last 7 tokens alone"):
        trained(qwen2(**windowed))
    cache = model(TOKENS[:, :4], use_cache=True).cache
    replace_attention(model, "gla")
    with pytest.raises(ModelError, match="replaced already"):
        replace_attention(model, "softmax")
    with pytest.raises(ModelError, match="holds keys and values"):
        model(TOKENS[:, 4:], cache=cache)
    with pytest.raises(ModelError, match=r"is a StaticLayer.* empty DynamicLayer"):
        generated(model, cache_implementation="static")
    packed = torch.cat([torch.arange(6), torch.arange(6)]).expand(3, -1)
    with pytest.raises(ModelError, match="packed rows"):
        model(input_ids=TOKENS, position_ids=packed, use_cache=False)
    with pytest.raises(ModelError, match="start again"):
        model(input_ids=TOKENS, position_ids=packed)
    with pytest.raises(DataError, match="received 1"):
        swap_report(llama(), "gla", [{"input_ids": TOKENS}])
    with pytest.raises(ShapeError, match="steps"):
        swap_report(llama(), "gla", [{"input_ids": TOKENS}] * 2, steps=-1)
