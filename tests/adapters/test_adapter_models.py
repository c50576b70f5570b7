"""Adapters in real architectures, and in the one real encoder: where they go, what is refused, what transformers loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from instar import adapters
from instar.adapters import HUT, IA3, BitFit, DoRA, Full, HeadOnly, LoRA, detach, load, merge, merge_and_unload, parameters, save
from instar.adapters.attached import own_layers
from instar.data import pretrained
from instar.errors import (
    AdapterError,
    CheckpointError,
    MissingExtraError,
    OutputError,
    ReceiptError,
    ShapeError,
    UnknownNameError,
)
from instar.receipt import fingerprint

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
IDS = torch.arange(12).reshape(2, 6)


def bert(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SMALL, **more)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(config).eval()


def llama(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2, **more)).eval()


def learn(model: nn.Module, name: str | None = None, size: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in parameters(model, name):
            parameter.add_(size * torch.randn_like(parameter))


def output(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def test_query_and_value_of_every_block_by_default() -> None:
    model = llama()
    HUT(r=4).attach(model)
    assert list(own_layers(model, "default")) == [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]
    widths = [layer.adapters["default"].hut_B.shape for layer in own_layers(model, "default").values()]
    assert widths == [(4, 32), (4, 16)] * 2  # fewer heads for values


def test_a_second_adapter_finds_its_layers_in_a_model_that_has_one() -> None:
    model = bert()
    LoRA().attach(model, name="one")
    HUT().attach(model, name="two")
    IA3().attach(model, name="three")
    assert list(own_layers(model, "one")) == list(own_layers(model, "two"))
    assert adapters.names(model) == ["one", "two", "three"]
    with pytest.raises(AdapterError, match="Did you mean"):
        adapters.switch(model, "ones")


@pytest.mark.parametrize("feedforward", ["down_proj", ["down_proj"], r"model\.layers\.\d\.mlp\.down_proj"])
def test_the_end_of_an_ffn_by_name(feedforward: Any) -> None:
    """One pattern is a pattern, as in `peft`, and not its letters."""
    model = llama()
    IA3(feedforward=feedforward).attach(model, ["v_proj", "down_proj"])
    scaled = {
        path.rsplit(".", 1)[-1]: layer.adapters["default"].feedforward for path, layer in own_layers(model, "default").items()
    }
    assert scaled == {"v_proj": False, "down_proj": True}
    with pytest.raises(ShapeError, match="feedforward"):
        IA3(feedforward="*.down_proj")


def test_a_fused_layer_is_refused_by_default_and_adapted_whole_by_name() -> None:
    model = gpt2()
    with pytest.raises(AdapterError, match=r"c_attn.*where='c_attn'"):
        LoRA().attach(model)
    before = output(model)
    HUT().attach(model, "c_attn")
    assert torch.equal(output(model), before)
    learn(model)
    wanted = output(model)
    merge_and_unload(model)
    torch.testing.assert_close(output(model), wanted, rtol=0, atol=1e-5)


def test_unknown_layers_and_models_say_what_is_expected() -> None:
    model = bert()
    with pytest.raises(AdapterError, match="Did you mean query"):
        LoRA().attach(model, "querry")
    with pytest.raises(AdapterError, match="where="):
        LoRA().attach(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(AdapterError, match="below itself"):
        LoRA().attach(nn.Linear(4, 4), ".*")
    with pytest.raises(AdapterError, match="no biases"):
        BitFit().attach(llama())
    with pytest.raises(AdapterError, match="no head"):
        HeadOnly().attach(model)


def test_a_merged_model_is_plain_transformers_on_disk(tmp_path: Path) -> None:
    for model in (bert(), llama()):
        HUT(r=4).attach(model)
        learn(model)
        wanted = output(model)
        merge_and_unload(model)
        model.save_pretrained(tmp_path / type(model).__name__)
        plain = type(model).from_pretrained(tmp_path / type(model).__name__).eval()
        torch.testing.assert_close(output(plain), wanted, rtol=0, atol=1e-5)
        assert fingerprint(plain) == fingerprint(model) == fingerprint(tmp_path / type(model).__name__)


def test_a_tied_head_can_be_adapted_and_not_merged_alone() -> None:
    model = llama(tie_word_embeddings=True)
    LoRA().attach(model, "lm_head")
    learn(model)
    before = fingerprint(model)
    with pytest.raises(AdapterError, match="one tensor"):
        merge(model)
    assert fingerprint(model) == before
    detach(model, "default")
    Full().attach(model)
    learn(model, size=0.01)
    wanted = output(model)
    merge_and_unload(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(output(model), wanted, rtol=0, atol=1e-6)


def test_code_that_reads_the_weight_sees_the_adapter() -> None:
    """`nn.MultiheadAttention` never calls its output projection: it reads weight and bias."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, batch_first=True)}).eval()
    x = torch.randn(2, 5, 16)
    before = model["attention"](x, x, x)[0]
    for method in (LoRA(r=2), HUT(r=2), DoRA(r=2)):
        method.attach(model, "out_proj")
        torch.testing.assert_close(model["attention"](x, x, x)[0], before, rtol=0, atol=1e-6)
        learn(model)
        found = model["attention"](x, x, x)[0]
        assert not torch.allclose(found, before, atol=1e-4)
        merge_and_unload(model)
        torch.testing.assert_close(model["attention"](x, x, x)[0], found, rtol=0, atol=1e-5)
        torch.manual_seed(0)
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, batch_first=True)}).eval()


def test_one_module_in_two_places_is_adapted_in_both() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.GELU(), nn.Sequential(shared))
    LoRA(r=2).attach(model, "0")
    assert model[0] is model[2][0]
    detach(model, "default")
    assert model[0] is shared
    assert model[2][0] is shared


def test_undo_of_attach_after_training_is_refused_and_detach_restores_flags() -> None:
    model = bert()
    model.embeddings.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    first, before = fingerprint(model), list(model.modules())
    receipt = LoRA().attach(model)
    learn(model)
    with pytest.raises(ReceiptError, match="changed since"):
        receipt.undo()
    detached = detach(model, "default")
    assert fingerprint(model) == first
    assert list(model.modules()) == before
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    detached.undo()
    assert adapters.active(model) == "default"


def test_receipts_of_two_adapters_are_undone_last_in_first_out_whichever_is_active() -> None:
    model = bert()
    before, plain = list(model.modules()), output(model)
    first = LoRA().attach(model, name="one")
    second = HUT().attach(model, "dense", name="two")
    adapters.switch(model, None)
    assert torch.equal(output(model), plain)
    with pytest.raises(ReceiptError, match="not the last"):
        first.undo()
    second.undo()
    assert adapters.names(model) == ["one"]
    first.undo()
    assert list(model.modules()) == before
    assert all(p.requires_grad for p in model.parameters())


def test_what_stands_merged_must_be_unmerged_first() -> None:
    model = bert()
    LoRA().attach(model)
    learn(model)
    merge(model)
    for action in (
        lambda: detach(model, "default"),
        lambda: adapters.switch(model, None),
        lambda: LoRA().attach(model, name="two"),
        lambda: merge_and_unload(model),
        lambda: adapters.off(model).__enter__(),
    ):
        with pytest.raises(AdapterError, match="unmerge"):
            action()


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "instar.json").write_text("{}"),
        lambda f: (f / "instar.json").write_text("[" * 100_000),
        lambda f: (f / "instar.json").write_text("not json"),
        lambda f: _edit(f, method="gla"),
        lambda f: _edit(f, method="nothing"),
        lambda f: _edit(f, method=["lora"]),
        lambda f: _edit(f, arguments={"r": 4, "system": "rm"}),
        lambda f: _edit(f, arguments={"r": 10**9}),
        lambda f: _edit(f, arguments={"r": 5}),
        lambda f: _edit(f, layers=["encoder.layer.9.attention.self.query"]),
        lambda f: _edit(f, layers=["encoder.layer.0.attention.self.query"]),
        lambda f: _edit(f, layers="query"),
        lambda f: _edit(f, base="0" * 64),
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\xff" * 100),
        lambda f: (f / "adapter_model.safetensors").unlink(),
    ],
)
def test_hostile_folders_are_refused_and_nothing_is_changed(damage: Any, tmp_path: Path) -> None:
    model = bert()
    LoRA(r=4).attach(model)
    learn(model)
    folder = save(model, tmp_path / "adapter")
    damage(folder)
    fresh = bert()
    before = (fingerprint(fresh), list(fresh.modules()))
    with pytest.raises((AdapterError, CheckpointError, UnknownNameError, MemoryError, RuntimeError)):
        load(fresh, folder)
    assert (fingerprint(fresh), list(fresh.modules())) == before


def _edit(folder: Path, **values: Any) -> None:
    path = folder / "instar.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_nan_in_a_saved_adapter_and_a_folder_that_is_taken_are_refused(tmp_path: Path) -> None:
    model = bert()
    LoRA(r=4).attach(model)
    with torch.no_grad():
        parameters(model)[0][0, 0] = torch.nan
    save(model, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="not finite"):
        load(bert(), tmp_path / "adapter")
    with pytest.raises(OutputError, match="does not exist yet"):
        save(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="attach one first"):
        save(bert(), tmp_path / "other")


def test_only_its_own_tensors_are_saved(tmp_path: Path) -> None:
    model = bert()
    LoRA(r=4).attach(model, name="one")
    HUT(r=4).attach(model, name="two")
    from safetensors import safe_open

    for name, words, count in (("one", {"lora_A", "lora_B"}, 8), ("two", {"hut_A", "hut_B", "hut_gamma", "hut_beta"}, 16)):
        with safe_open(save(model, tmp_path / name, name) / "adapter_model.safetensors", "pt") as file:
            keys = list(file.keys())
        assert len(keys) == count
        assert {key.removesuffix(".weight").rsplit(".", 1)[-1] for key in keys} == words


KILLED = """
import sys, torch, transformers
from pathlib import Path
from instar.adapters import Full, save
torch.manual_seed(0)
model = transformers.BertModel(transformers.BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4))
Full().attach(model)
print("ready", flush=True)
for number in range(1000):
    save(model, Path(sys.argv[1]) / str(number))
    print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_kill_during_save_leaves_whole_adapters_only(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout is not None
    try:
        assert child.stdout.readline().strip() == "ready"
        assert child.stdout.readline().strip() == "0"
        time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    whole = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert whole
    for path in whole:
        assert {p.name for p in path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "instar.json"}


def test_the_real_encoder_learns_and_comes_back(tmp_path: Path) -> None:
    try:
        model, tokenizer = pretrained.load("all-MiniLM-L6-v2")
    except MissingExtraError as error:
        pytest.skip(str(error))
    base = fingerprint(model)
    tokens = tokenizer(["Who was Galileo ?", "How far is it from Denver to Aspen ?"], padding=True, return_tensors="pt")
    before = model(**tokens).last_hidden_state.detach()
    HUT(impl="weight").attach(model)
    assert torch.equal(model(**tokens).last_hidden_state, before)
    assert sum(p.numel() for p in parameters(model)) == 12 * (8 * 768 + 768)
    optimiser = torch.optim.AdamW(parameters(model), lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(4):
        states = model(**tokens).last_hidden_state.mean(1)
        loss = nn.functional.cosine_similarity(states[0], states[1], dim=0)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    wanted = model(**tokens).last_hidden_state.detach()
    save(model, tmp_path / "apart")
    merge_and_unload(model).undo()
    detach(model, "default")
    assert fingerprint(model) == base
    assert torch.equal(model(**tokens).last_hidden_state, before)
    load(model, tmp_path / "apart", name="again")
    assert torch.equal(model(**tokens).last_hidden_state, wanted)
