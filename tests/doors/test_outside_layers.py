"""Layers of other packages behind the interface: their own caches give what the whole gives, and padding leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from instar import catalogue
from instar.checks import find, run
from instar.checks.mixer import CONTRACT
from instar.doors import outside_layers
from instar.doors.outside import NotOfferedError, OutsideLayer, StatefulLayer, StatelessLayer
from instar.doors.outside_caches import FlaLayer, TransformersLayer
from instar.errors import CardError, ModelError, ShapeError
from instar.state import State, clone, leaves

pytest.importorskip("transformers")
NAMES = [
    name
    for name, kind in vars(outside_layers).items()
    if isinstance(kind, type) and kind.__module__ == outside_layers.__name__ and issubclass(kind, OutsideLayer)
]


def build(name: str) -> OutsideLayer:
    torch.manual_seed(0)
    try:
        layer = getattr(outside_layers, name)(16, heads=2)
    except ImportError as error:
        pytest.skip(str(error))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_tokens_one_by_one_from_a_state_that_stays_as_it_was(name: str) -> None:
    layer, x = build(name), torch.randn(3, 9, 16)
    whole, end = layer(x)
    assert whole.std() > 1e-3
    y, state = layer(x[:, :4])
    held = clone(state)
    parts = [y]
    for t in range(4, 9):
        y, state = layer(x[:, t : t + 1], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-3)
    again, _ = layer(x[:, 4:5], held)
    torch.testing.assert_close(again, parts[1])
    assert all(part.shape[0] == 3 for part in leaves(end))
    alone, _ = layer(x[1:2])
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padding_and_packing_are_run_apart(name: str) -> None:
    layer, x = build(name), torch.randn(4, 8, 16)
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[0, :3], mask[1, 5:], mask[2] = False, False, False
    reset = torch.zeros(4, 8, dtype=torch.bool)
    reset[3, 0], reset[3, 5], reset[0, 1] = True, True, True
    y, state = layer(x.masked_fill(~mask.unsqueeze(-1), 1e4), mask=mask, reset=reset)
    assert y.isfinite().all()
    torch.testing.assert_close(y[0, 3:], layer(x[:1, 3:])[0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y[1, :5], layer(x[1:2, :5])[0][0], atol=1e-5, rtol=1e-4)
    packed = torch.cat([layer(x[3:, :5])[0], layer(x[3:, 5:])[0]], 1)
    torch.testing.assert_close(y[3:], packed, atol=1e-5, rtol=1e-4)
    more = torch.randn(4, 1, 16)
    after, _ = layer(more, state)
    torch.testing.assert_close(after[2:3], layer(more[2:3])[0], atol=1e-4, rtol=1e-3)  # nothing was read there
    torch.testing.assert_close(after[1:2], layer(more[1:2], layer(x[1:2, :5])[1])[0], atol=1e-4, rtol=1e-3)
    stepwise, _ = layer.reference(x.masked_fill(~mask.unsqueeze(-1), 1e4), mask=mask, reset=reset)
    torch.testing.assert_close(stepwise[mask], y[mask], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["Lfm2ShortConvolution", "MiniMaxLightningAttention"])
def test_with_padding_and_packing_by_the_door_the_contract_is_kept(name: str) -> None:
    subject = find(getattr(outside_layers, name), dtype=torch.float32)
    asked = [
        check for check in CONTRACT if check.name in ("split", "value", "padding", "reset", "rows", "reference", "gradients")
    ]
    assert [o.message for o in (run(check, subject) for check in asked) if o.status != "passed"] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_rotary_positions_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    """The layer of Llama under the positions that its own model gives it."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(hidden_size=64, num_attention_heads=2)
    torch.manual_seed(0)
    layer = outside_layers.HFLlamaAttention(64, heads=2).to(dtype).eval()
    layer.layer.q_proj.weight.mul_(30)
    x = torch.randn(1, 600, 64, dtype=dtype)
    turned = llama.LlamaRotaryEmbedding(config)(x, torch.arange(600).unsqueeze(0))
    want, _ = layer.layer(x, position_embeddings=turned, attention_mask=None)
    torch.testing.assert_close(layer(x)[0], want)


def test_a_module_s_class_is_a_method_of_its_own_name() -> None:
    card = catalogue.add("instar.doors.outside_layers:Qwen3NextGatedDeltaNet")
    assert (card.slug, card.capability("positions")) == ("qwen3_next_gated_delta_net", "none")
    assert catalogue.add("instar.doors.outside_layers:HFMamba2").slug == "hf_mamba2"
    assert catalogue.get("hf_mamba2") is outside_layers.HFMamba2


def test_two_classes_of_a_file_are_not_taken_for_one_another(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text("from instar.mixers.gru import GRU\nclass A(GRU): ...\nclass B(GRU):\n    tags = ('streamed',)\n", "utf-8")
    catalogue.add(f"{path}:A")
    catalogue.add(f"{path}:A")
    path.write_text(path.read_text("utf-8").replace("streamed", "streaming"), "utf-8")
    with pytest.raises(CardError, match="'two' is taken by A"):
        catalogue.add(f"{path}:B")
    (tmp_path / "three.py").write_text("from instar.mixers.gru import GRU\nclass C(GRU):\n    tags = ('streamed',)\n", "utf-8")
    with pytest.raises(CardError, match="Did you mean streaming"):
        catalogue.add(f"{tmp_path / 'three.py'}:C")


class Decayed(nn.Module):
    """A layer with the call and the cache of `fla`: o_t = Σ 2^(i−t) x_i."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: object = None, use_cache: bool = False
    ) -> tuple[Tensor, None, object]:
        cache = past_key_values
        memory = cache[0]["recurrent_state"] if len(cache) else torch.zeros_like(hidden_states[:, 0])  # type: ignore[arg-type, index]
        outputs = []
        for t in range(hidden_states.shape[1]):
            memory.mul_(0.5).add_(hidden_states[:, t])  # in place, as its convolutions do
            outputs.append(memory * self.scale)
        cache.update(recurrent_state=memory, conv_state=None, layer_idx=0, offset=len(outputs))  # type: ignore[attr-defined]
        return torch.stack(outputs, 1), None, cache


@torch.no_grad()
def test_the_cache_of_fla_is_a_value() -> None:
    class Layer(FlaLayer):
        def make(self, width: int, heads: int) -> nn.Module:
            return Decayed(width)

    layer, x = Layer(4), torch.randn(2, 6, 4)
    whole, _ = layer(x)
    torch.testing.assert_close(whole[:, 1], x[:, 1] + 0.5 * x[:, 0])
    _, state = layer(x[:, :2])
    for _ in range(2):
        torch.testing.assert_close(layer(x[:, 2:], state)[0], whole[:, 2:])
    mask = torch.tensor([[True] * 6, [False, True] * 3])
    torch.testing.assert_close(layer(x, mask=mask)[0][1, 1::2], layer(x[1:, 1::2])[0][0])


class Placed(Decayed):
    """As retention of `fla`: it asks the cache where its positions go on."""

    def forward(self, hidden_states: Tensor, past_key_values: object = None, **given: object) -> tuple[Tensor, None, object]:  # type: ignore[override]
        first = past_key_values.get_seq_length(0)  # type: ignore[union-attr]
        place = torch.arange(first, first + hidden_states.shape[1]).view(-1, 1)
        return super().forward(hidden_states * (1 + place), past_key_values=past_key_values)


@torch.no_grad()
def test_the_cache_of_fla_counts_tokens() -> None:
    class Layer(FlaLayer):
        def make(self, width: int, heads: int) -> nn.Module:
            return Placed(width)

    layer, x = Layer(4), torch.randn(2, 6, 4)
    whole, end = layer(x)
    y, state = layer(x[:, :2])
    for t in range(2, 6):
        part, state = layer(x[:, t : t + 1], state)
        y = torch.cat([y, part], 1)
    torch.testing.assert_close(y, whole)
    torch.testing.assert_close(layer(x[:, :1], layer.init_state(2))[0], whole[:, :1])
    mask = torch.tensor([[True] * 6, [False, True] * 3])
    y, apart = layer(x, mask=mask)
    torch.testing.assert_close(y[1, 1::2], layer(x[1:, 1::2])[0][0])
    assert (end["seen"].tolist(), apart["seen"].tolist()) == ([6, 6], [6, 3])
    with pytest.raises(NotOfferedError, match="one has read 3 tokens and another 6"):
        layer(x, apart)


def test_own_mask_is_the_layer_s_or_not_offered() -> None:
    class Own(outside_layers.XLSTMLayer):
        own_mask = True

    x = torch.randn(1, 3, 16)
    for flag in ({"mask": torch.ones(1, 3, dtype=torch.bool)}, {"reset": torch.zeros(1, 3, dtype=torch.bool)}):
        with pytest.raises(NotOfferedError, match="no pa"):
            Own(16, heads=2)(x, **flag)


def test_what_cannot_be_wrapped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(TransformersLayer):
        def make(self, width: int, heads: int) -> nn.Module:
            return nn.Linear(width, width)

    with pytest.raises(ModelError, match="Linear takes no cache; it takes input"):
        Plain(8)
    with pytest.raises(ShapeError, match="received 0 and 4"):
        Plain(0)
    monkeypatch.setitem(sys.modules, "x_transformers", None)
    monkeypatch.setitem(sys.modules, "x_transformers.x_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'instar\[outside\]'"):
        outside_layers.XTransformersAttention(16, heads=2)


def test_layers_without_a_state_read_everything_again() -> None:
    calls: list[int] = []

    class Mean(StatelessLayer):
        def make(self, width: int, heads: int) -> nn.Module:
            return nn.Linear(width, width)

        def run(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            calls.append(x.shape[1])
            return self.layer(x).cumsum(1) / torch.arange(1, x.shape[1] + 1).view(-1, 1)

    layer, x = Mean(8, heads=1), torch.randn(2, 5, 8)
    state: State = None
    parts = []
    for t in range(5):
        y, state = layer(x[:, t : t + 1], state)
        parts.append(y)
    assert calls == [1, 2, 3, 4, 5]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x)[0])
    assert isinstance(layer, OutsideLayer)
    assert not isinstance(layer, StatefulLayer)
