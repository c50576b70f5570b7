"""What is cut out computes as what is switched off, in every architecture; files, undo, and weights of zeros."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from axformer_models import DECODERS, ENCODERS, SOFT, WITHOUT_HEADS, batch, logits, made

from instar.compression import load, quantize_, save
from instar.compression.blockwise import Blockwise
from instar.compression.int8 import Int8
from instar.compression.pruning import Element, Removed, cut, hard_attention, masked, zeroed
from instar.compression.pruning.absent import Absent, NoAttention
from instar.compression.pruning.hard_attention import hard
from instar.compression.pruning.layout import layout
from instar.errors import CheckpointError, ModelError, TransformError
from instar.receipt import fingerprint

SIZE = 16


def removed(*elements: tuple[Any, ...], top_k: int = 0, renormalise: bool = False) -> Removed:
    return Removed(tuple(Element(*e) for e in elements), top_k, renormalise, SIZE)


def every_head(model: nn.Module, layer: int) -> list[tuple[Any, ...]]:
    return [("heads", layer, i) for i in range(layout(model, SIZE).heads[layer])]


def every_group(model: nn.Module, layer: int) -> list[tuple[Any, ...]]:
    return [("groups", layer, i) for i in range(layout(model, SIZE).groups[layer])]


CASES = {
    "fine": [("groups", 0, 1), ("groups", 0, 3), ("heads", 0, 1), ("groups", 1, 0), ("heads", 1, 0)],
    "blocks": [("ffn", 1), ("attention", 0), ("groups", 0, 2)],
    "both": [("ffn", 0), ("heads", 0, 0), ("attention", 1), ("heads", 1, 1), ("groups", 1, 1)],
    "layer": [("ffn", 0), ("attention", 0), ("ffn", 1), ("attention", 1)],
}


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_cut_equals_masked(kind: str) -> None:
    model = made(kind)
    rows = batch(model)
    whole = logits(model, rows)
    assert all((count == 0) == (kind in WITHOUT_HEADS) for count in layout(model, SIZE).heads)
    for name, elements in CASES.items():
        wanted = removed(*(e for e in elements if e[0] != "heads" or kind not in WITHOUT_HEADS))
        with masked(model, wanted):
            expected = logits(model, rows)
        assert not torch.allclose(expected, whole, atol=1e-3), name
        share = layout(model, SIZE).share(wanted)
        size = sum(p.numel() for p in model.parameters())
        with cut(model, wanted):
            torch.testing.assert_close(logits(model, rows), expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            assert sum(p.numel() for p in model.parameters()) < size
            assert 0 <= share < 1
        assert torch.equal(logits(model, rows), whole)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_all_parts_of_a_block_leave_its_bias_and_the_block_leaves_nothing(kind: str) -> None:
    more = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    model = made(kind, **more)
    rows = batch(model)
    for parts, block in ((every_head(model, 0), "attention"), (every_group(model, 0), "ffn")):
        found = []
        for wanted in (removed(*parts), removed((block, 0))):
            with masked(model, wanted):
                expected = logits(model, rows)
            with cut(model, wanted):
                torch.testing.assert_close(logits(model, rows), expected, rtol=1e-5, atol=1e-5)
            found.append(expected)
        assert not torch.allclose(*found, atol=1e-3)


def test_nothing_removed_changes_no_bit() -> None:
    model = made("bert")
    before, answers = fingerprint(model), logits(model, batch(model))
    with masked(model, removed()):
        assert torch.equal(logits(model, batch(model)), answers)
    receipt = cut(model, removed())
    assert receipt.changes == ()
    assert fingerprint(model) == before
    assert torch.equal(logits(model, batch(model)), answers)


def test_a_dropped_block_keeps_residual_and_norm() -> None:
    """Post-norm: the output is LayerNorm(x)."""
    model = made("bert")
    inner = model.bert.encoder.layer[1]
    cut(model, removed(("ffn", 1), ("attention", 1)))
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = inner.output.LayerNorm(inner.attention.output.LayerNorm(x))
        torch.testing.assert_close(inner(x), expected)
    assert [type(m) for m in (inner.attention.self, inner.attention.output.dense)] == [NoAttention, Absent]


@pytest.mark.parametrize("kind", [k for k in (*ENCODERS, *DECODERS) if k not in SOFT])
def test_hard_attention(kind: str) -> None:
    model = made(kind)
    rows = batch(model)
    soft = logits(model, rows)
    layers = [("hard", 0), ("hard", 1)]
    implementation = model.config._attn_implementation
    with masked(model, removed(*layers, top_k=9)):
        assert torch.equal(logits(model, rows), soft)  # K ≥ T is the identity
    with masked(model, removed(*layers, top_k=3)):
        three = logits(model, rows)
    assert not torch.allclose(three, soft, atol=1e-3)
    assert model.config._attn_implementation == implementation
    with cut(model, removed(*layers, top_k=3)):
        torch.testing.assert_close(logits(model, rows), three)
    assert torch.equal(logits(model, rows), soft)


def test_of_a_row_of_probabilities_the_largest_are_kept() -> None:
    p = torch.rand(2, 3, 5, 7).softmax(-1)
    for k in (1, 3, 6):
        found = hard(p, k)
        assert bool(((found != 0).sum(-1) == k).all())
        assert torch.equal(found[found != 0], p[found != 0])
        assert bool((found.sum(-1) < 1).all())
        torch.testing.assert_close(hard(p, k, renormalise=True).sum(-1), torch.ones(2, 3, 5))
    assert torch.equal(hard(p, 7), p)
    values = torch.randn(2, 3, 7, 4)
    largest, places = p.max(-1)
    one = largest[..., None] * values.gather(2, places[..., None].expand(-1, -1, -1, 4))
    torch.testing.assert_close(hard(p, 1) @ values, one)  # one value times its probability


def test_models_that_cannot_attend_hard_say_so() -> None:
    with pytest.raises(TransformError, match="top_k=0"), masked(made("gpt_neo"), removed(("hard", 0), top_k=2)):
        pass


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_generation_with_a_cache_equals_generation_without(kind: str) -> None:
    """Positions come from the cache of the first layer, of which nothing may be left."""
    model = made(kind)
    cut(model, removed(("attention", 0), ("heads", 1, 1), ("ffn", 1), ("hard", 1), top_k=3))
    ids = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(3))
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    found = [model.generate(ids, use_cache=cached, **settings) for cached in (True, False)]
    assert torch.equal(*found)
    assert found[0].shape == (2, 12)


def test_flops_are_those_that_are_counted() -> None:
    model = made("llama")
    rows = {"input_ids": batch(model)["input_ids"]}
    parts, wanted = layout(model, SIZE), removed(("groups", 0, 1), ("groups", 1, 2), ("ffn", 1))

    def counted() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**rows)
        return int(counter.get_total_flops())

    promised, whole = (parts.flops(r) for r in (wanted, removed()))
    before = counted()
    cut(model, wanted)
    assert before - counted() == (whole - promised) * rows["input_ids"].numel()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_zeros_in_the_old_shapes_are_the_same_function_for_plain_transformers(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    rows, wanted = batch(model), removed(*CASES["both"])
    before = fingerprint(model)
    with masked(model, wanted):
        expected = logits(model, rows)
    plain = made(kind)
    plain.load_state_dict(zeroed(model, wanted))
    assert fingerprint(model) == before
    torch.testing.assert_close(logits(plain, rows), expected, rtol=1e-5, atol=1e-5)
    plain.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(type(plain).from_pretrained(tmp_path).eval(), rows), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(TransformError, match="no matter of weights"):
        zeroed(model, removed(("hard", 0), top_k=3))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "gpt_neox", "modernbert"])
def test_saved_and_loaded_without_the_original(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    rows = batch(model)
    receipt = cut(model, removed(*CASES["fine"], ("hard", 1), ("ffn", 1), top_k=3))
    expected = logits(model, rows)
    found = load(save(model, tmp_path / "model", steps=[receipt]))
    assert fingerprint(found) == fingerprint(model)
    assert torch.equal(logits(found, rows), expected)
    again = load(save(found, tmp_path / "again"))
    assert torch.equal(logits(again, rows), expected)
    with pytest.raises(TransformError, match="cut out already"):
        cut(found, removed(("ffn", 0)))


def test_pruned_then_quantised_is_saved_and_undone(tmp_path: Path) -> None:
    model = made("bert")
    rows, before = batch(model), fingerprint(model)
    first = cut(model, removed(("ffn", 0), ("groups", 1, 1), *every_head(model, 1)))
    second = quantize_(model, Int8())
    found = load(save(model, tmp_path / "model", steps=[first, second]))
    assert torch.equal(logits(found, rows), logits(model, rows))
    second.undo()
    first.undo()
    assert fingerprint(model) == before


def test_what_is_left_can_be_trained() -> None:
    model = made("bert").train()
    cut(model, removed(*CASES["both"], *every_head(model, 1)[2:], ("heads", 0, 2), ("hard", 0), top_k=3))
    model(**batch(model)).loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_hard_attention_refuses_scores_that_are_capped() -> None:
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(TransformError, match="caps or shifts its scores"):
        hard_attention.forward(nn.Identity(), x, x, x, None, softcap=50.0)


def test_hard_attention_is_not_lost_to_integers() -> None:
    model = made("bert")
    cut(model, removed(("hard", 0), top_k=3))
    before = fingerprint(model)
    with pytest.raises(TransformError, match="attends hard"):
        Blockwise(activations="all").apply(model)
    assert fingerprint(model) == before
    plain = made("bert")
    Blockwise(activations="all").apply(plain)
    with pytest.raises(TransformError, match="block integers"):
        hard_attention.install(plain)


def test_hostile_manifests_are_refused(tmp_path: Path) -> None:
    model = made("bert")
    cut(model, removed(*CASES["fine"]))
    path = save(model, tmp_path / "model") / "compression.json"
    manifest = json.loads(path.read_text())
    for key, value in (
        ("heads", {"0": [99]}),
        ("heads", {"0": [1, 1], "1": [0]}),
        ("heads", {"0": [-1]}),
        ("heads", [[0]]),
        ("heads", {"zero": [1]}),
        ("ffn", [10**9]),
        ("ffn", "01"),
        ("ffn", [True]),
        ("groups", {}),
        ("group_size", 0),
        ("group_size", 10**12),
        ("hard", [0]),
        ("renormalise", 1),
        ("unknown", 1),
    ):
        path.write_text(json.dumps({**manifest, "removed": {**manifest["removed"], key: value}}))
        with pytest.raises(CheckpointError):
            load(path.parent)
    for value in ("all", [], 7, {}):
        path.write_text(json.dumps({**manifest, "removed": value}))
        with pytest.raises(CheckpointError):
            load(path.parent)


def test_json_says_it_all() -> None:
    wanted = removed(*CASES["both"], ("hard", 1), top_k=4, renormalise=True)
    found = Removed.parse(json.loads(json.dumps(wanted.json())))
    assert found.json() == wanted.json()
    assert set(found.elements) == set(wanted.elements)


def test_what_cannot_be_cut_is_named() -> None:
    with pytest.raises(TransformError, match=r"no part 'heads 0\.9'"):
        cut(made("bert"), removed(("heads", 0, 9)))
    with pytest.raises(TransformError, match="no part 'ffn 7'"):
        zeroed(made("bert"), removed(("ffn", 7)))
    with pytest.raises(TransformError, match="listed twice"):
        cut(made("bert"), removed(("ffn", 1), ("ffn", 1)))
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(n_layer=2, hidden_size=32, n_head=4, vocab_size=50))
    with pytest.raises(ModelError, match="residual itself"):
        layout(bloom)
    with pytest.raises(ModelError, match="no list of blocks"):
        cut(nn.Sequential(nn.Linear(3, 3)), removed())
