"""BigBird: dense attention under its mask, full attention for few blocks, the random blocks, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar.errors import ShapeError
from instar.mixers.bidirectional_softmax import BidirectionalSoftmax
from instar.mixers.bigbird import BigBird

B, D, H = 2, 16, 2
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/bigbird.toml", cards.Card)


def make(tokens: int, **knobs: Any) -> tuple[BigBird, Tensor]:
    torch.manual_seed(0)
    return BigBird(D, heads=H, **knobs).double(), torch.randn(B, tokens, D, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def blocks_seen(layer: BigBird, n: int) -> Tensor:
    """bool [H, n, n]: which block reads which, from the table."""
    index, chosen = layer._table(n, torch.tensor([n - 1]))
    seen = torch.zeros(H, n, n).scatter_add(2, index[0], chosen[0].float())
    assert float(seen.max()) == 1.0  # no block is counted twice
    seen[:, [0, n - 1]] = 1.0
    return seen > 0


@pytest.mark.parametrize(("tokens", "block", "r"), [(40, 4, 2), (41, 4, 0), (90, 8, 3), (7, 4, 3), (3, 8, 1)])
def test_is_dense_attention_under_its_boolean_mask(tokens: int, block: int, r: int) -> None:
    layer, x = make(tokens, block=block, random_blocks=r)
    n = -(-tokens // block)
    of = torch.arange(tokens) // block
    attend = blocks_seen(layer, n)[:, of][:, :, of]
    close(layer(x)[0], layer.leave(F.scaled_dot_product_attention(*layer.project(x), attn_mask=attend)))


def test_each_block_reads_neighbours_ends_and_r_others_chosen_evenly() -> None:
    layer, _ = make(1, block=1, random_blocks=3)
    n = 60
    seen = blocks_seen(layer, n)
    inner = seen[:, 2:-2]
    assert set(inner.sum(-1).flatten().tolist()) == {8}
    i = torch.arange(n)
    assert bool(seen[:, (i.unsqueeze(1) - i).abs() <= 1].all())
    assert bool(seen[..., [0, n - 1]].all())
    assert not torch.equal(seen[0], seen[1])
    others = inner.clone()
    for at, row in enumerate(range(2, n - 2)):
        others[:, at, [0, n - 1, row - 1, row, row + 1]] = False
    chosen = others.sum((0, 1))[1:-1].float()  # 336 choices over 58 blocks: 5.8 each, Poisson
    assert float(chosen.max()) < 17
    assert float(chosen.std()) < 4
    assert not torch.equal(blocks_seen(BigBird(D, heads=H, block=1, seed=1), n), seen)


@pytest.mark.parametrize(("n", "r"), [(4, 0), (5, 1), (7, 3)])
def test_few_blocks_are_full_attention(n: int, r: int) -> None:
    layer, x = make(4 * n, block=4, random_blocks=r)
    close(layer(x)[0], layer.leave(F.scaled_dot_product_attention(*layer.project(x))))


@pytest.mark.parametrize(("tokens", "block"), [(256, 16), (100, 16), (10, 64)])
def test_flops_follow_the_card(tokens: int, block: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        BigBird(D, heads=H, block=block)(torch.randn(1, tokens, D))
    sizes = {"T": tokens, "D": D, "H": H, "block": block, "random_blocks": 3}
    assert counter.get_total_flops() == formula.evaluate(CARD.cost.flops, sizes)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"block": 0}, {"random_blocks": -1}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        BigBird(D, **{"heads": H, **wrong})


def test_up_to_seven_blocks_it_is_softmax_over_both_sides_and_its_draw_is_saved() -> None:
    torch.manual_seed(0)
    layer, full = BigBird(16, heads=2, block=4).double(), BidirectionalSoftmax(16, heads=2).double()
    full.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "seed"})
    x = torch.randn(2, 27, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], full(x)[0])
    wide = torch.randn(1, 80, 16, dtype=torch.float64)
    other = BigBird(16, heads=2, block=4).double()
    assert not torch.equal(layer.seed, other.seed)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(wide)[0], other(wide)[0])
