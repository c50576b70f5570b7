"""Decoding with `transformers`: our attention function and ragged cache against its own attention, one prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar.data import pretrained
from instar.doors import hf_decode
from instar.errors import ModelError, ShapeError
from instar.kernels import decode_attention as kernel
from instar.kernels.quantised_rows import dequantise_rows, quantise_rows

transformers = pytest.importorskip("transformers")

from instar.doors import hf_ragged  # noqa: E402 - imports transformers
from instar.doors.hf_causal_lm import InstarConfig, InstarForCausalLM  # noqa: E402
from instar.doors.hf_ragged_cache import RaggedCache, RaggedLayer  # noqa: E402

CACHE = hf_ragged.CACHE
SIZES = {
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LENGTHS = [3, 40, 1, 17]


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.3, **settings)).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randint(1, 97, (length,), generator=g) for length in LENGTHS]


def padded() -> dict[str, torch.Tensor]:
    """The prompts in one batch, padding on the left."""
    width = max(LENGTHS)
    ids, mask = torch.zeros(2, len(LENGTHS), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts()):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(model: Any, count: int) -> list[torch.Tensor]:
    """What transformers says to each prompt alone."""
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    return [model.generate(prompt[None], **settings)[0, len(prompt) :] for prompt in prompts()]


@pytest.fixture(params=["torch", "compiled"])
def either(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled":
        request.getfixturevalue("compiled")
    return request.param


def test_generation_without_padding_says_what_each_prompt_alone_says(either: str) -> None:
    model = llama()
    found = hf_ragged.generate(model, prompts(), max_new_tokens=12)
    for got, wanted in zip(found, alone(model, 12), strict=True):
        assert torch.equal(got, wanted)
    assert model.config._attn_implementation == "sdpa"


def test_the_attention_function_serves_a_padded_batch(either: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    settings = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    wanted = model.generate(**padded(), **settings)
    made: list[Any] = []
    of = kernel.DecodePlan.of.__func__
    monkeypatch.setattr(kernel.DecodePlan, "of", classmethod(lambda cls, *a, **k: made.append(a) or of(cls, *a, **k)))
    model.set_attn_implementation(hf_decode.register())
    found = model.generate(**padded(), **settings)
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), rtol=1e-4, atol=1e-4)
    assert len(made) == 11  # one plan a token, for both layers; the first token comes from the prompts


@pytest.mark.parametrize("window", [None, 8])
def test_masks_that_are_runs_and_masks_that_are_not(either: str, window: int | None) -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SIZES, sliding_window=window, initializer_range=0.3)
    model = transformers.MistralForCausalLM(config).eval()
    tokens = padded()["input_ids"]
    mask = torch.ones_like(tokens)
    mask[0, :30] = 0
    mask[1, 12:20] = 0  # a hole
    logits = []
    for name in ("sdpa", hf_decode.register()):
        model.set_attn_implementation(name)
        with torch.no_grad():
            said = model(tokens[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
            cache = getattr(said, CACHE)
            logits.append(model(tokens[:, -1:], attention_mask=mask, **{CACHE: cache}).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_a_ragged_cache_grows_moves_its_rows_and_is_never_read_beyond_them(either: str) -> None:
    model, given = llama(), prompts()
    model.set_attn_implementation(hf_decode.register())
    wanted = torch.stack(alone(model, 3))
    cache = RaggedCache(len(given), 2, capacity=2)
    with torch.no_grad():
        first = []
        for row, prompt in enumerate(given):
            with cache.filling(row):
                for part in prompt.split(15):  # a prompt may come in parts
                    said = model(part[None], **{CACHE: cache}).logits[0, -1]
            first.append(said.argmax())
        assert cache.lengths.tolist() == LENGTHS
        for layer in cache.layers:
            for row, length in enumerate(LENGTHS):
                layer.keys[row, :, length:] = torch.nan
                layer.values[row, :, length:] = torch.nan
        assert torch.equal(torch.stack(first), wanted[:, 0])
        order = torch.tensor([2, 0, 1])
        cache.reorder_cache(order)
        tokens = wanted[order, :1]
        for step in (1, 2):
            said = model(tokens, attention_mask=cache.mask(), position_ids=cache.positions(), **{CACHE: cache})
            tokens = said.logits[:, -1:].argmax(-1)
            assert torch.equal(tokens[:, 0], wanted[order, step])


class Rounded(RaggedLayer):
    """Floats that are what integers stand for."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return super().update(*(dequantise_rows(*quantise_rows(part)) for part in (key_states, value_states)))


def test_a_cache_of_integers_is_one_of_the_numbers_they_stand_for(either: str) -> None:
    model, given = llama(), prompts()
    model.set_attn_implementation(hf_decode.register())
    integers, rounded = RaggedCache(len(given), 2, capacity=2, quantised=True), RaggedCache(len(given), 2, capacity=2)
    rounded.layers = [Rounded(len(given), 2) for _ in range(2)]
    said: list[list[torch.Tensor]] = [[], []]
    holes = torch.tensor([1, 3, 0, 2])
    with torch.no_grad():
        for cache, found in zip((integers, rounded), said, strict=True):
            for row, prompt in enumerate(given):
                with cache.filling(row):
                    found += [model(part[None], **{CACHE: cache}).logits[0, -1] for part in prompt.split(15)]
            cache.reorder_cache(holes)
            for layer in cache.layers:
                for row, length in enumerate(layer.lengths):  # anything may stand there
                    for part in layer._parts()[2 if layer.quantised else 0 :]:
                        part[row, :, length:] = torch.nan
            for step in range(3):
                mask = cache.mask()
                if step == 2:
                    mask[:, 0] = torch.tensor([1, 0, 1, 0])
                    mask[0, 5] = 0  # a hole: SDPA
                tokens = torch.full((len(given), 1), 5 + step)
                found.append(model(tokens, attention_mask=mask, position_ids=cache.positions(), **{CACHE: cache}).logits)
    for one, other in zip(*said, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)
    layer = integers.layers[0]
    assert (layer.keys.dtype, layer.values.dtype, layer.key_scale.dtype) == (torch.int8, torch.int8, torch.float32)


def test_rows_end_at_their_own_stop() -> None:
    model = llama()
    whole = alone(model, 8)
    stop = int(whole[1][2])
    found = hf_ragged.generate(model, prompts(), max_new_tokens=8, stop=stop)
    for got, wanted in zip(found, whole, strict=True):
        end = (wanted == stop).nonzero()
        assert torch.equal(got, wanted[: int(end[0]) + 1] if len(end) else wanted)
    assert [len(t) for t in hf_ragged.generate(model, prompts(), max_new_tokens=0)] == [0] * 4


def test_training_and_gradients_stay_with_sdpa() -> None:
    model = llama(attention_dropout=0.1).train()
    model.set_attn_implementation(hf_decode.register())
    batch = padded()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_learned_positions_end_and_rotations_do_not() -> None:
    size = {"vocab_size": 97, "bos_token_id": None, "eos_token_id": None}
    learned = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=16, n_embd=64, n_head=2, n_layer=1, **size)).eval()
    prompt = list(range(1, 13))
    assert len(hf_ragged.generate(learned, [prompt], max_new_tokens=5, stop=())[0]) == 5  # the fifth is not read
    with pytest.raises(ShapeError, match="learned 16 positions; the longest prompt and what follows it need 17"):
        hf_ragged.generate(learned, [prompt], max_new_tokens=6)
    assert len(hf_ragged.generate(llama(), [[1] * 255], max_new_tokens=5)[0]) == 5


def test_what_cannot_be_is_refused() -> None:
    model = llama()
    with pytest.raises(ShapeError, match="at least one token"):
        hf_ragged.generate(model, [[1], []], max_new_tokens=2)
    for wrong_prompts, words in (
        ([], "at least one prompt"),
        ([[1.5, 2.5]], "torch.float32"),  # was read as 1 and 2
        ([torch.ones(2, 5, dtype=torch.int64)], r"\(2, 5\)"),  # two texts were read as one
        ([[1, 97]], "from 0 to 96; a prompt has them from 1 to 97"),
        ([[-1, 3]], "from -1 to 3"),
    ):
        with pytest.raises(ShapeError, match=words):
            hf_ragged.generate(model, wrong_prompts, max_new_tokens=2)
    settings: tuple[dict[str, Any], ...] = (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"max_new_tokens": -1},
    )
    for wrong in settings:  # a temperature below 0 would draw the unlikeliest tokens
        with pytest.raises(ShapeError, match="temperature ≥ 0"):
            hf_ragged.generate(model, [[1]], **{"max_new_tokens": 2, "temperature": 1.0, **wrong})
    with pytest.raises(ShapeError, match="no row 3"), RaggedCache(3, 2).filling(3):
        pass
    with pytest.raises(ShapeError, match="received 2 rows of 3 tokens"):
        model(torch.ones(2, 3, dtype=torch.int64), **{CACHE: RaggedCache(2, 2)})
    with pytest.raises(ModelError, match="cropped"):
        RaggedCache(1, 1).layers[0].crop(1)
    q = torch.zeros(1, 2, 1, 32)
    with pytest.raises(ModelError, match="softcap"):
        hf_decode.attention(model, q, q, q, None, softcap=30.0)
    windowed = transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=8))
    with pytest.raises(ModelError, match="window"):
        hf_ragged.generate(windowed, [[1]], max_new_tokens=2)
    with pytest.raises(ModelError, match="InstarForCausalLM does not use that interface"):
        hf_ragged.generate(InstarForCausalLM(InstarConfig()), [[1]], max_new_tokens=2)


def test_a_real_model_says_what_transformers_says() -> None:
    model, tokenizer = pretrained.load("SmolLM2-135M-Instruct")
    texts = [
        "The capital of France is",
        "Water",
        "Once upon a time there was a little girl who lived in a village near the forest.",
    ]
    given = [tokenizer(text)["input_ids"] for text in texts]
    found = hf_ragged.generate(model, given, max_new_tokens=5, stop=())
    for got, ids in zip(found, given, strict=True):
        wanted = model.generate(torch.tensor([ids]), max_new_tokens=5, min_new_tokens=5, do_sample=False)[0, len(ids) :]
        assert torch.equal(got, wanted)
    assert tokenizer.decode(found[0]).startswith(" Paris")
    rounded = hf_ragged.generate(model, given, max_new_tokens=5, stop=(), quantised=True)
    assert tokenizer.decode(rounded[0]).startswith(" Paris")
    assert sum(int(torch.equal(*rows)) for rows in zip(rounded, found, strict=True)) >= 2
