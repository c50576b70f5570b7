"""Batches that are mostly padding: rows are read alone, their caches put together, and decoding leaves the padding out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar.kernels import decode_attention_mask
from instar.mixers import softmax
from instar.models.decoder import Decoder

LENGTHS = [200, 3, 60]


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(50, (3, 200), generator=torch.Generator().manual_seed(0))
    place = torch.arange(200)
    ends = torch.tensor(LENGTHS).unsqueeze(1)
    return ids, place >= 200 - ends if side == "left" else place < ends


def make(mixer: str) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(50, 64, 2, mixer, heads=2).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mixer", ["softmax", "softmax:multi_query", "sinks", "hopfield", "gla"])
def test_each_row_says_what_it_says_alone(mixer: str, side: str, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "MANY", 1)
    plans: list[Any] = []
    monkeypatch.setattr(
        softmax, "plan_of_mask", lambda *given: plans.append(decode_attention_mask.plan_of_mask(*given)) or plans[-1]
    )
    model = make(mixer)
    ids, mask = batch(side)
    found = model.generate(ids, mask=mask, max_new_tokens=6)
    assert len(plans) == (5 * 2 if mixer.startswith("softmax") else 0)
    assert all(plan.reads < 2 * 3 * 200 for plan in plans)
    for row, real in enumerate(mask):
        alone = model.generate(ids[row : row + 1, real], max_new_tokens=6)
        assert torch.equal(found[row], alone[0])


def test_no_prompt_is_read_with_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("softmax")
    read: list[int] = []
    whole = model.features
    monkeypatch.setattr(model, "features", lambda tokens, *a, **k: read.append(tokens.numel()) or whole(tokens, *a, **k))
    ids, mask = batch("left")
    model.generate(ids, mask=mask, max_new_tokens=2)
    assert read == [*LENGTHS, 3]
    read.clear()
    model.generate(ids[:, -4:], mask=mask[:, -4:], max_new_tokens=2)  # little padding: one call is cheaper
    assert read == [12, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixer", ["softmax", "softmax:multi_query"])
def test_a_batch_without_padding_decodes_by_the_kernel(
    mixer: str, dtype: torch.dtype, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(mixer).to(dtype)
    ids, _ = batch("left")
    plans: list[Any] = []
    decode = softmax.decode
    monkeypatch.setattr(softmax, "decode", lambda plan, *given: plans.append(plan) or decode(plan, *given))
    found = []
    for least in (10**9, 1):
        monkeypatch.setattr(softmax, "MANY", least)
        monkeypatch.setattr(softmax, "MANY_NARROW", least)
        with torch.no_grad():
            state = model(ids[:, :-4])[1]
            for place in range(-4, 0):
                logits, state = model(ids[:, place, None], state)
                found.append(logits.float())
        assert len(plans) == (4 * 2 if least == 1 else 0)
    assert len(set(map(id, plans))) == 4  # one a token, for both layers
    near = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found[4:], found[:4], rtol=near, atol=near)
