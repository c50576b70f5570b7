"""Blockwise compression of real models: file, undo, overrides, refusals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from instar.checks.transform_models import Encoder, answers, conv1d, encoder
from instar.compression import load, pipeline, quantize_, save, saved, whole, whole_attention
from instar.compression.blockwise import Blockwise
from instar.compression.int8 import Int8
from instar.compression.int8_linear import Int8Linear
from instar.compression.stored import StoredEmbedding, StoredLinear
from instar.errors import CheckpointError, InstarError, MissingExtraError, ShapeError, TransformError, UnknownNameError
from instar.receipt import fingerprint


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, Any]:
    from instar.data import pretrained

    pytest.importorskip("transformers")
    try:
        return pretrained.load("all-MiniLM-L6-v2")
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_minilm_in_four_bits_is_a_seventh_as_large_and_comes_back_to_the_bit(minilm: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = minilm
    before = fingerprint(model)
    rows = tokenizer(["what is the weather in Paris", "book a table"], return_tensors="pt", padding=True)
    with torch.no_grad():
        plain = model(**rows).last_hidden_state
        receipt = quantize_(model, Blockwise(bits=4, block=32, scale="power_mse", activations="none"))
        found = model(**rows).last_hidden_state
    save(model, tmp_path / "model", steps=[receipt], tokenizer=tokenizer)
    parameters = 22_713_216
    bits = 8 * saved.nbytes(tmp_path / "model") / parameters
    assert 4.25 < bits < 4.35  # 4 bits, an exponent of 8 for each 32, biases and norms in full
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    other = load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(other(**rows).last_hidden_state, found)
    assert 0.9 < float(torch.cosine_similarity(plain.flatten(), found.flatten(), 0)) < 0.999
    receipt.undo()
    assert fingerprint(model) == before


def test_a_tied_head_is_stored_once() -> None:
    model = encoder()
    quantize_(model, Blockwise(bits=4, block=16))
    assert isinstance(model.embedding, StoredEmbedding)
    assert isinstance(model.head, StoredLinear)
    assert model.head.codes is model.embedding.codes
    assert "head.codes" not in dict(model.named_buffers())


def test_what_the_filter_or_keep_leaves_out_stays(tmp_path: Path) -> None:
    model = encoder()
    weight = model.down.weight
    receipt = quantize_(model, Blockwise(), lambda module, name: name == "up")
    assert {name.rpartition(".")[0] for name in (c.name for c in receipt.changes)} == {"up"}
    receipt.undo()
    Blockwise(keep=["embedding|head", "do.*"]).apply(model)
    assert isinstance(model.down, nn.Linear)
    assert model.down.weight is weight
    assert isinstance(model.up, StoredLinear)
    assert isinstance(model.head, nn.Linear)
    loaded = load(save(model, tmp_path / "part"), encoder)
    assert torch.equal(answers(loaded), answers(model))


def test_overrides_mix_bits_by_layer() -> None:
    model = encoder()
    Blockwise(bits=4, block=16, overrides={"up|down": {"bits": 8}, "embedding": {"block": 8, "scale": "float16"}}).apply(model)
    assert model.up.format.bits == 8
    assert model.up.format.rows == 64
    assert (model.embedding.format.bits, model.embedding.format.block, model.embedding.format.scale) == (4, 8, "float16")


def test_sixteen_bits_change_almost_nothing_and_errors_halve_with_each_bit() -> None:
    plain = answers(encoder())
    errors = []
    for bits in (4, 5, 6, 7, 8, 16):
        model = encoder()
        Blockwise(bits=bits, rows=1, block=16, activations="none").apply(model)
        errors.append(float((answers(model) - plain).norm() / plain.norm()))
    assert errors[-1] < 1e-3
    assert all(1.5 < a / b < 2.7 for a, b in itertools.pairwise(errors[:5]))


def test_gradients_pass_straight_through_rounded_inputs() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    Blockwise(block=8).apply(model)
    x = torch.randn(3, 16, requires_grad=True)
    model(x).sum().backward()
    expected = (torch.ones(3, 4) @ model[1].weight) @ model[0].weight
    assert x.grad is not None
    assert torch.allclose(x.grad, expected, atol=1e-5)


def hurt(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / saved.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format="other"), "describes no compressed model"),
        (lambda m: m.pop("layers"), "describes no compressed model"),
        (lambda m: m.update(layers=3), "'layers' expects dict"),
        (lambda m: m["layers"]["up"].update(kind="os:system"), "kind of layer"),
        (lambda m: m["layers"]["up"]["format"].update(kind="pickle"), "names the format"),
        (lambda m: m["layers"]["up"].update(shape=[1 << 30, 1 << 30]), "shape"),
        (lambda m: m["layers"]["up"].update(shape=[8, 8]), "shape"),
        (lambda m: m["layers"]["up"]["format"].update(bits=5), "up.codes"),
        (lambda m: m["layers"]["up"]["format"].update(block=8), "up.scale"),
        (lambda m: m["layers"].pop("up"), "missing"),
        (lambda m: m["layers"].update(nowhere=m["layers"]["up"]), "cannot|does not describe"),
        (lambda m: m.update(fingerprint="0" * 64), "altered"),
        (lambda m: m.update(shared={"head.codes": "nowhere"}), "does not"),
    ],
)
def test_a_damaged_manifest_is_refused(change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path) -> None:
    model = encoder()
    Blockwise(bits=4).apply(model)
    folder = save(model, tmp_path / "model")
    hurt(folder, change)
    with pytest.raises(InstarError, match=words):
        load(folder, encoder)


def test_a_flipped_byte_a_half_file_and_a_taken_folder(tmp_path: Path) -> None:
    model = encoder()
    Blockwise(bits=4).apply(model)
    folder = save(model, tmp_path / "model")
    weights = folder / saved.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="altered"):
        load(folder, encoder)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        load(folder, encoder)
    with pytest.raises(InstarError, match="does not exist yet"):
        save(model, folder)
    weights.write_bytes(whole)
    with pytest.raises(CheckpointError, match="build"):
        load(folder)
    assert torch.equal(answers(load(folder, encoder)), answers(model))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_models_that_cannot_be_taken() -> None:
    model = encoder()
    Blockwise().apply(model)
    before = fingerprint(model)
    with pytest.raises(TransformError, match="compressed already"):
        Blockwise().apply(model)
    assert fingerprint(model) == before
    with pytest.raises(TransformError, match="single"):
        Blockwise().apply(nn.Linear(2, 2))
    with torch.device("meta"):
        empty = Encoder()
    with pytest.raises(InstarError):
        Blockwise().apply(empty)
    scaled = nn.Sequential(nn.Embedding(4, 4, max_norm=1.0))
    with pytest.raises(TransformError, match="max_norm"):
        Blockwise().apply(scaled)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"bits": 2}, ShapeError, "bits of 3 to 8"),
        ({"block": 0}, ShapeError, "block"),
        ({"activations": "some"}, UnknownNameError, "level of activations"),
        ({"keep": ["("]}, ShapeError, "regular expression"),
        ({"overrides": {"x": {"colour": 1}}}, UnknownNameError, "argument of an override"),
        ({"overrides": {"x": {"bits": 1}}}, ShapeError, "bits"),
    ],
)
def test_settings_that_make_no_sense(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Blockwise(**arguments)


def test_conv1d_is_stored_as_out_by_in() -> None:
    model = conv1d()
    if model is None:
        pytest.skip("transformers is not installed")
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().clone()  # type: ignore[union-attr]
    Blockwise(bits=16, activations="none").apply(model)
    found = model.transformer.h[0].mlp.c_fc  # type: ignore[union-attr]
    assert found.shape == (128, 32)
    assert torch.allclose(found.weight, weight.T, atol=1e-4)


@pytest.mark.parametrize("activations", ["none", "all"])
def test_a_llama_with_a_tied_head_and_grouped_keys_loads_without_its_original(activations: Any, tmp_path: Path) -> None:
    """Its rotary frequencies are buffers that no checkpoint of transformers holds."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    before = answers(model)
    receipt = Blockwise(block=16, activations=activations).apply(model)
    found = answers(model)
    assert 0.98 < float(torch.cosine_similarity(before.flatten(), found.flatten(), 0)) < 1
    loaded = load(save(model, tmp_path / "model", steps=[receipt]))
    assert torch.equal(answers(loaded), found)
    assert loaded.lm_head.codes is loaded.model.embed_tokens.codes
    assert not any(
        tensor.is_meta for module in loaded.modules() for tensor in vars(module).values() if isinstance(tensor, torch.Tensor)
    )
    manifest = json.loads((tmp_path / "model" / saved.MANIFEST).read_text())
    assert [step["method"] for step in manifest["steps"]] == ["blockwise"]
    receipt.undo()
    assert torch.equal(answers(model), before)


def test_a_pipeline_is_one_file_and_all_or_nothing(tmp_path: Path) -> None:
    model = encoder()
    before = fingerprint(model)
    receipts = pipeline(model, [Int8(keep=["head", "embedding", "down"]), Blockwise(bits=4, block=16, activations="none")])
    assert isinstance(model.up, Int8Linear)
    assert isinstance(model.down, StoredLinear)
    loaded = load(save(model, tmp_path / "model", steps=receipts), encoder)
    assert torch.equal(answers(loaded), answers(model))
    manifest = json.loads((tmp_path / "model" / saved.MANIFEST).read_text())
    assert [step["method"] for step in manifest["steps"]] == ["int8", "blockwise"]
    for receipt in reversed(receipts):
        receipt.undo()
    assert fingerprint(model) == before
    with pytest.raises(TransformError, match="compressed already"):
        pipeline(model, [Blockwise(), Blockwise()])
    assert fingerprint(model) == before


def test_norms_are_told_by_what_they_do() -> None:
    class T5LayerNorm(nn.Module):
        """Of the root mean square, whatever its name."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.rand(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * nn.functional.rms_norm(x, (8,), eps=self.variance_epsilon)

    class SomeRMSNorm(T5LayerNorm):
        """Multiplies by 1 + weight."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.rms_norm(x, (8,), eps=self.variance_epsilon) + super().forward(x)

    class CenteredLayerNorm(T5LayerNorm):
        """Takes the mean away, and has no shift that would tell."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(-1, keepdim=True))

    class ChannelsFirstLayerNorm(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert whole.norm_of(nn.LayerNorm(8, bias=False))[3] is True  # type: ignore[index]
    assert whole.norm_of(nn.LayerNorm(8, dtype=torch.bfloat16)) is not None
    assert whole.norm_of(T5LayerNorm())[3] is False  # type: ignore[index]
    for other in (SomeRMSNorm(), CenteredLayerNorm(), ChannelsFirstLayerNorm(8)):
        assert whole.norm_of(other) is None
        assert not Blockwise(activations="all").takes(other)


@pytest.mark.parametrize("change", ["softcap", "s_aux", "position_bias"])
def test_scores_that_are_changed_are_refused(change: str) -> None:
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(TransformError, match="changes its scores"):
        whole_attention.forward("simulate", nn.Identity(), q, q, q, None, **{change: torch.ones(())})  # type: ignore[arg-type]
