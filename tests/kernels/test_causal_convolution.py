"""The convolution against torch's, against its oracle, and what padding and resets hide from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from instar.kernels.causal_convolution import Taps, causal_convolution, stepwise

B, T, D, OUT, W = 4, 20, 3, 5, 3


def make() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    kind = torch.float64
    return torch.randn(B, T, D, dtype=kind), torch.randn(OUT, D, W, dtype=kind), torch.randn(B, W - 1, D, dtype=kind)


def test_is_torchs_convolution_padded_on_the_left() -> None:
    x, weight, state = make()
    y, after = causal_convolution(x, weight, torch.zeros_like(state), Taps(x, W - 1, None, None))
    want = F.conv1d(F.pad(x.mT, (W - 1, 0)), weight).mT
    torch.testing.assert_close(y, want)
    assert torch.equal(after, x[:, -2:])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_is_its_oracle_in_values_states_and_gradients(padded: bool, packed: bool) -> None:
    x, weight, state = make()
    mask = torch.rand(B, T) > 0.4 if padded else None
    reset = torch.rand(B, T) < 0.2 if packed else None
    if mask is not None:
        mask[0] = False  # a row without a real token
        mask[1, :18] = False  # and one with few
    found = []
    for way in ("fast", "stepwise"):
        z, w, s = (part.clone().requires_grad_() for part in (x, weight, state))
        if way == "fast":
            y, after = causal_convolution(z, w, s, Taps(z, W - 1, mask, reset))
        else:
            y, after = stepwise(z, w, s, mask, reset)
        y = y if mask is None else y[mask]
        found.append((y, after, *torch.autograd.grad(y.sin().sum() + after.square().sum(), [z, w, s])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_no_token_and_one() -> None:
    x, weight, state = make()
    y, after = causal_convolution(x[:, :0], weight, state, Taps(x[:, :0], W - 1, None, None))
    assert y.shape == (B, 0, OUT)
    assert torch.equal(after, state)
    y, after = causal_convolution(x[:, :1], weight, state, Taps(x[:, :1], W - 1, None, None))
    torch.testing.assert_close(y[:, 0], torch.einsum("bwd,odw->bo", torch.cat([state, x[:, :1]], 1), weight))
    assert torch.equal(after, torch.cat([state[:, 1:], x[:, :1]], 1))
