"""The methods that peft has compute what peft does, and folders go both ways."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from instar.adapters import IA3, DoRA, HiRA, LoRA, load, parameters, save
from instar.errors import AdapterError
from instar.interfaces import Adapter

peft = pytest.importorskip("peft", reason="parity needs the package peft")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
METHODS: list[tuple[Adapter, str, Any]] = [
    (LoRA(r=4, alpha=6), "bert", None),
    (LoRA(r=4, rank_pattern={"value": 2}), "bert", None),
    (LoRA(r=4), "gpt2", "c_attn"),
    (LoRA(r=4), "llama", None),
    (DoRA(r=4), "bert", None),
    (DoRA(r=4), "gpt2", "c_attn"),
    (HiRA(r=4), "bert", None),
    (HiRA(r=4), "gpt2", "c_proj"),
    (IA3(), "bert", None),
    (IA3(), "llama", None),
]
NAMES = [f"{type(method).__name__}-{kind}-{place}" for place, (method, kind, _) in enumerate(METHODS)]


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.AutoModel.from_config(transformers.BertConfig(**SMALL))
    elif kind == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2)
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
        model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # biases start at 0, which hides mistakes
    return model.double().eval()


def learn(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))


def output(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(12).reshape(2, 6))[0]


@pytest.mark.parametrize(("method", "kind", "where"), METHODS, ids=NAMES)
@pytest.mark.filterwarnings("ignore")
def test_a_saved_adapter_computes_the_same_in_peft_and_comes_back(method: Adapter, kind: str, where: Any, tmp_path: Path) -> None:
    model = made(kind)
    plain = output(model)
    method.attach(model, where)
    learn(model)
    wanted = output(model)
    assert float((wanted - plain).abs().max()) > 1e-4
    save(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(made(kind), tmp_path / "ours", autocast_adapter_dtype=False).double()
    torch.testing.assert_close(output(theirs), wanted, rtol=0, atol=1e-6)
    theirs.save_pretrained(tmp_path / "theirs")
    back = made(kind)
    with pytest.raises(AdapterError, match="unverified"):
        load(back, tmp_path / "theirs")
    load(back, tmp_path / "theirs", unverified=True)
    torch.testing.assert_close(output(back), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("method", "kind", "where"), METHODS, ids=NAMES)
@pytest.mark.filterwarnings("ignore")
def test_gradients_are_those_of_peft(method: Adapter, kind: str, where: Any, tmp_path: Path) -> None:
    model = made(kind)
    method.attach(model, where)
    learn(model)
    save(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(
        made(kind), tmp_path / "ours", autocast_adapter_dtype=False, is_trainable=True
    ).double()
    ids = torch.arange(12).reshape(2, 6)
    grads = []
    for one in (model, theirs):
        one(ids)[0].square().mean().backward()
        found = [p.grad for _, p in one.named_parameters() if p.requires_grad and p.grad is not None]
        grads.append(sorted((float(g.norm()), tuple(g.shape)) for g in found))
    assert len(grads[0]) == len(parameters(model))
    for (ours, shape), (other, same) in zip(*grads, strict=True):
        assert shape == same
        assert ours == pytest.approx(other, rel=1e-6, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_a_head_is_saved_and_read_as_peft_does(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, num_labels=3)
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(config).eval()
    model = copy.deepcopy(base)
    LoRA(r=4).attach(model, modules_to_save=["classifier"])
    learn(model)
    save(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    torch.testing.assert_close(output(theirs), output(model), rtol=0, atol=1e-6)
    # A fresh head under the saved one is no other base.
    torch.manual_seed(0)
    fresh = transformers.BertForSequenceClassification(config).eval()
    fresh.classifier.weight.data.normal_()
    load(fresh, tmp_path / "ours")
    torch.testing.assert_close(output(fresh), output(model), rtol=0, atol=1e-6)


def test_settings_of_peft_that_are_not_known_are_refused(tmp_path: Path) -> None:
    model = made("bert")
    config = peft.LoraConfig(r=4, target_modules=["query"], use_rslora=True)
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(AdapterError, match="use_rslora"):
        load(model, tmp_path / "theirs", unverified=True)


@pytest.mark.parametrize("start", ["pissa", "olora", "corda", "loftq"])
def test_starts_that_change_the_base_are_not_loaded_beside_it(tmp_path: Path, start: str) -> None:
    model = made("bert")
    LoRA(r=4).attach(model, ["query"])
    learn(model)
    save(model, tmp_path / "ours")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (theirs / name).write_bytes((tmp_path / "ours" / name).read_bytes())
    load(made("bert"), theirs, unverified=True)
    path = theirs / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": start}))
    with pytest.raises(AdapterError, match="init_lora_weights"):
        load(made("bert"), theirs, unverified=True)


def test_a_row_of_zeros_has_no_direction_and_stays_one() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).double()
    with torch.no_grad():
        model[0].weight[1] = 0.0
    x = torch.randn(3, 6, dtype=torch.float64)
    before = model(x)
    DoRA(r=2).attach(model, "0")
    y = model(x)
    torch.testing.assert_close(y, before)
    y.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in parameters(model) if p.grad is not None)
