"""Which matrices are Muon's: all hidden ones, however they are stored, and no head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instar.models.decoder import Decoder
from instar.optim.muon import Muon


def shares(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of what Muon and what AdamW trains."""
    optimiser = Muon(model)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, rest = ({names[id(p)] for group in part.param_groups for p in group["params"]} for part in optimiser.parts)
    assert muon.isdisjoint(rest)
    assert muon | rest == set(names.values())
    return muon, rest


@pytest.mark.parametrize("tied", [True, False])
def test_every_hidden_matrix_is_muons_and_no_head(tied: bool) -> None:
    model = Decoder(16, 16, 2, "softmax", heads=2, hidden=32, tied=tied)
    muon, rest = shares(model)
    assert muon == {name for name, p in model.named_parameters() if name.startswith("blocks") and p.dim() == 2}
    assert rest >= ({"embedding.weight"} if tied else {"embedding.weight", "head.weight"})


def test_a_head_that_shares_the_table_as_a_module_costs_no_hidden_matrix() -> None:
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16, bias=False))
    model[2].weight = model[0].weight
    assert shares(model)[0] == {"1.weight"}


def test_a_frozen_head_costs_no_hidden_matrix() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].requires_grad_(False)
    optimiser = Muon(model)
    assert [p is model[0].weight for p in optimiser.parts[0].param_groups[0]["params"]] == [True]


def test_gpt2_is_muons_and_steps_as_its_transposed_twin() -> None:
    transformers = pytest.importorskip("transformers")
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    muon, _ = shares(transformers.GPT2LMHeadModel(config))
    assert {name.removeprefix("transformer.h.0.") for name in muon} == {
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"
    }  # fmt: skip
    plain, stored = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 4)), nn.Sequential(conv(24, 8), nn.Linear(24, 4))
    stored[0].weight.data.copy_(plain[0].weight.T)
    stored[0].bias.data.copy_(plain[0].bias.data)
    stored[1].load_state_dict(plain[1].state_dict())
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for model in (plain, stored):
        model(x).square().mean().backward()
        Muon(model).step()
    assert torch.allclose(stored[0].weight.T, plain[0].weight, atol=1e-3)  # Newton-Schulz is in bfloat16
