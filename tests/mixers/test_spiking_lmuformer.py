"""Spiking LMUFormer: zeros and ones where products read them, the authors' number of parameters, frame by frame, in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar import cards
from instar import state as states
from instar.errors import ShapeError
from instar.kernels.legendre_memory import legendre_memory
from instar.mixers.lif import LIF
from instar.mixers.lmuformer import CausalConvolution
from instar.mixers.spiking_lmuformer import Firing, SpikingBlock, SpikingLMUFormer

B, T, D, ORDER = 3, 40, 16, 8
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/spiking_lmuformer.toml", cards.Card)


def make(**knobs: Any) -> tuple[SpikingLMUFormer, Tensor]:
    """In eval mode, its statistics those of some training batches: before, neurons hardly fire."""
    torch.manual_seed(0)
    model = SpikingLMUFormer(D, **{"order": ORDER, "theta": 12.0, **knobs}).double()
    for block in model.blocks:
        for projection in (block.u_proj, block.h_proj):
            nn.init.normal_(projection.weight)  # type: ignore[arg-type,union-attr]
    with torch.no_grad():
        for _ in range(60):
            model(torch.randn(B, T, D, dtype=torch.float64))
    return model.eval(), torch.randn(B, T, D, dtype=torch.float64)


def fires(layer: Firing, z: Tensor, threshold: float = 1.0) -> Tensor:
    """LIF(BN(z)) with τ = 2, written out."""
    norm, v, spikes = layer.norm, torch.zeros_like(z[:, 0]), []
    z = F.batch_norm(z.mT, norm.running_mean, norm.running_var, norm.weight, norm.bias).mT
    for t in range(z.shape[1]):
        v = v + (z[:, t] - v) / 2
        spikes.append((v >= threshold).to(z))
        v = (1 - spikes[-1]) * v
    return torch.stack(spikes, dim=1)


def test_is_its_equations() -> None:
    """Each layer where the paper has it, with torch's convolutions: what reads numbers, what spikes, what is added."""
    model, x = make()
    embedding, block = model.embedding, model.blocks[0]
    assert isinstance(block, SpikingBlock)
    a, b, c, last, relative = (
        lambda z, weight=layer.weight: F.conv1d(F.pad(z.mT, (2, 0)), weight).mT for layer in embedding.convolutions
    )
    first, second, third, fourth = embedding.firing
    z = last(fires(third, c(fires(second, b(fires(first, a(x)))))))  # type: ignore[arg-type]
    z = z + relative(fires(fourth, z))  # type: ignore[arg-type]
    s = fires(block.enter, z, threshold=0.5)
    u = fires(block.u_firing, block.u_proj(s))
    m = legendre_memory(u, block.system, form="recurrent")[0].flatten(2)
    h = fires(block.h_firing, block.h_proj(torch.cat([fires(block.m_firing, m), s], dim=-1)))
    norm = block.o_norm
    z = z + F.batch_norm(block.o_proj(h).mT, norm.running_mean, norm.running_var, norm.weight, norm.bias).mT
    z = z + block.down(fires(block.down_firing, block.up(fires(block.up_firing, z))))
    want = fires(model.leave, z)
    assert torch.equal(model(x)[0], want)
    assert 0 < float(want.mean()) < 1


def test_products_read_zeros_and_ones_but_for_the_first_convolution() -> None:
    model, x = make()
    read: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, CausalConvolution)):
            layer.register_forward_hook(lambda _, given, __, name=name: read.__setitem__(name, given[0].detach()))
    y, _ = model(x)
    assert len(read) == 5 + 5
    for name, given in {**read, "output": y.detach()}.items():
        binary = bool(((given == 0) | (given == 1)).all())
        assert binary == (name != "embedding.convolutions.0"), name
        assert given.any(), name


def test_the_authors_have_as_many_parameters() -> None:
    """1,689,894 with 128 bands, 35 words and d = 256, where the first convolution reads 128 channels and not 256."""
    count = sum(p.numel() for p in SpikingLMUFormer(256, order=512, theta=128.0).parameters()) + 256 * 35 + 35
    assert count - (256 - 128) * 256 * 3 == 1_689_894


@pytest.mark.parametrize("knobs", [{}, {"expansion": 0}, {"depth": 2, "memories": 2}], ids=str)
def test_frame_by_frame_is_the_whole(knobs: dict[str, int]) -> None:
    model, x = make(**knobs)
    want, end = model(x)
    state, outputs = None, []
    for t in range(T):
        y, state = model(x[:, t : t + 1], state)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs, 1), want)
    assert 0 < float(want.detach().mean()) < 1
    for one, other in zip(states.leaves(state), states.leaves(end), strict=True):
        torch.testing.assert_close(one, other)


def test_the_papers_128_frames_are_those_of_each_half() -> None:
    """A whole number of the memory's blocks, in a batch and without padding."""
    model, _ = make()
    x = torch.randn(B, 128, D, dtype=torch.float64)
    first, state = model(x[:, :50])
    assert torch.equal(model(x)[0], torch.cat([first, model(x[:, 50:], state)[0]], 1))


def test_a_call_leaves_no_potential_behind() -> None:
    """What neurons hold lies in the state alone: a second sequence starts from rest."""
    model, x = make()
    first = model(x)[0]
    model(3 * x)
    assert torch.equal(model(x)[0], first)
    assert not torch.equal(model(x, model(3 * x)[1])[0], first)


@pytest.mark.parametrize("padded", [False, True])
def test_training_is_the_reference_in_gradients_and_statistics(padded: bool) -> None:
    mask = torch.arange(T) < torch.tensor([[T], [17], [29]]) if padded else None
    found = []
    for way in ("forward", "reference"):
        model, x = make()
        model.train()
        z = x.clone().requires_grad_()
        y, state = getattr(model, way)(z, mask=mask)
        y = y if mask is None else y[mask]
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        loss = (y * weights).sum() + sum(leaf.square().sum() for leaf in states.leaves(state))
        found.append((y, *torch.autograd.grad(loss, [z, *model.parameters()]), *model.buffers()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    assert all(bool(gradient.any()) for gradient in found[0][1:2])


def test_the_first_neurons_of_a_block_fire_at_half_the_threshold() -> None:
    model = SpikingLMUFormer(D, threshold=2.0, tau=3.0, alpha=5.0, order=ORDER)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LIF)}
    assert {name for name, layer in layers.items() if layer.threshold == 0.5} == {"blocks.0.enter.neurons"}
    assert {(layer.tau, layer.alpha) for layer in layers.values()} == {(3.0, 5.0)}
    assert {layer.threshold for layer in layers.values()} == {0.5, 2.0}


def test_autocast_does_not_move_a_spike() -> None:
    model, x = make()
    model, x = model.float(), x.float()
    want = model(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x)[0], want)


@pytest.mark.parametrize(
    "wrong", [{"convolutions": 0}, {"depth": 0}, {"expansion": -1}, {"tau": 0.5}, {"threshold": -1.0}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        SpikingLMUFormer(D, **wrong)
