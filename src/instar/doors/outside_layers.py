"""Layers of `transformers`, `x-transformers` and `titans-pytorch` as mixers, as they run on a CPU.

`instar compare text --methods gla --add instar.doors.outside_layers:KimiDeltaAttention`; `instar check` takes the same address.
Each is the package's own class with the initialisation that its model gives it; sizes follow the width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar import extras
from instar.data import pretrained
from instar.doors.outside import NotOfferedError, StatefulLayer, StatelessLayer
from instar.doors.outside_caches import TransformersLayer
from instar.state import State

_OWN = ("causal", "streaming", "positions=none")
_HOSTED = ("causal", "streaming", "positions=host")
_SMALL: dict[str, Any] = {"vocab_size": 1, "intermediate_size": 8, "num_hidden_layers": 2}
_SMALL |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
"""What stands around the layer in its model and is thrown away."""


def layer_of(config: str, path: str, **sizes: Any) -> nn.Module:
    """The layer at `path` of a model of `transformers` with this configuration, initialised as the model does it."""
    transformers = extras.require("transformers", "models")
    with pretrained.quiet(transformers):
        return transformers.AutoModel.from_config(getattr(transformers, config)(**{**_SMALL, **sizes})).get_submodule(path)


class HFMamba(TransformersLayer):
    """Mamba of transformers: a selective state space with a state for each channel."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        return layer_of("MambaConfig", "layers.0.mixer", hidden_size=width, intermediate_size=2 * width, state_size=16)


class HFMamba2(TransformersLayer):
    """Mamba-2 of transformers: state space duality, in chunks for many tokens, the recurrence for one."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        inside: dict[str, Any] = {
            "num_heads": heads,
            "head_dim": 2 * width // heads,
            "state_size": 16,
            "n_groups": 1,
            "chunk_size": 64,
        }
        return layer_of("Mamba2Config", "layers.0.mixer", hidden_size=width, **inside)


class Qwen3NextGatedDeltaNet(TransformersLayer):
    """The gated delta rule of Qwen3-Next in transformers: chunks for many tokens, the recurrence for one."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        inside: dict[str, Any] = {"linear_num_value_heads": heads, "linear_num_key_heads": heads}
        inside |= {"linear_key_head_dim": width // heads, "linear_value_head_dim": width // heads, "num_experts": 1}
        kinds = ["linear_attention", "full_attention"]
        around: dict[str, Any] = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": 8,
            "num_experts_per_tok": 1,
        }
        return layer_of("Qwen3NextConfig", "layers.0.linear_attn", hidden_size=width, layer_types=kinds, **inside, **around)


class KimiDeltaAttention(TransformersLayer):
    """The delta rule of Kimi Linear in transformers, with a gate for each channel."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        inside: dict[str, Any] = {"linear_num_heads": heads, "linear_head_dim": width // heads}
        around: dict[str, Any] = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
        }
        around |= {"qk_nope_head_dim": 8, "v_head_dim": 8, "num_experts": 1, "num_experts_per_token": 1}
        around |= {"moe_intermediate_size": 8, "layer_types": ["linear_attention", "full_attention"]}
        return layer_of("KimiLinearConfig", "layers.0.self_attn", hidden_size=width, **inside, **around)


class Lfm2ShortConvolution(TransformersLayer):
    """The gated short convolution of LFM2 in transformers: three tokens, and no memory beyond them."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        around: dict[str, Any] = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "layer_types": ["conv", "full_attention"],
        }
        return layer_of("Lfm2Config", "layers.0.conv", hidden_size=width, **around)


class MiniMaxLightningAttention(StatefulLayer):
    """Linear attention of MiniMax in transformers, with a fixed decay for each head."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        inside: dict[str, Any] = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": width // heads,
            "block_size": 64,
        }
        around: dict[str, Any] = {
            "num_local_experts": 1,
            "num_experts_per_tok": 1,
            "layer_types": ["linear_attention", "full_attention"],
        }
        return layer_of("MiniMaxConfig", "layers.0.self_attn", hidden_size=width, **inside, **around)

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        memory = _Memory(None if state is None else state["memory"])
        y, after = self.layer(x, position_embeddings=None, attention_mask=mask, cache=memory)
        return y, {"memory": after}


class _Memory:
    """What MiniMax's layer asks of a cache."""

    def __init__(self, memory: Tensor | None) -> None:
        self.memory = memory

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        return self.memory

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        self.memory = linear_cache


class XLSTMLayer(StatefulLayer):
    """mLSTM of xLSTM in transformers: a matrix memory with exponential gates."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        inside: dict[str, Any] = {"embedding_dim": width, "num_heads": heads, "num_blocks": 2, "chunk_size": 64}
        return layer_of("xLSTMConfig", "blocks.0.mlstm_layer", hidden_size=width, **inside)

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        if mask is not None:
            raise NotOfferedError("no padding")
        y, after = self.layer(x, None if state is None else (state["c"], state["n"], state["m"]))
        return y, dict(zip("cnm", after, strict=True))


class HFLlamaAttention(StatelessLayer):
    """Softmax attention with rotary positions, as Llama has it in transformers."""

    tags = ("causal", "streaming", "positions=inside")

    def make(self, width: int, heads: int) -> nn.Module:
        inside: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": heads}
        return layer_of("LlamaConfig", "layers.0.self_attn", hidden_size=width, attn_implementation="sdpa", **inside)

    def run(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        where = torch.arange(x.shape[1], device=x.device).unsqueeze(0) if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
        size = self.width // self.heads
        exact = torch.promote_types(x.dtype, torch.float32)  # as its model has it: bfloat16 holds no place beyond 256
        rate = 10_000.0 ** (-torch.arange(0, size, 2, device=x.device, dtype=exact) / size)
        angle = where.to(exact).unsqueeze(-1) * torch.cat([rate, rate])
        seen = None
        if mask is not None:  # padding sees itself, as its model would let it
            own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
            seen = own | (torch.ones_like(own).tril() & mask[:, None, None])
        turned = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        return self.layer(x, position_embeddings=turned, attention_mask=seen)[0]


class XTransformersAttention(StatelessLayer):
    """Softmax attention of x-transformers."""

    tags = _HOSTED

    def make(self, width: int, heads: int) -> nn.Module:
        attention = extras.require("x_transformers.x_transformers", "outside").Attention
        return attention(width, heads=heads, dim_head=width // heads, causal=True)

    def run(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.layer(x, mask=mask)


class TitansNeuralMemory(StatelessLayer):
    """The memory of Titans in titans-pytorch: a small network, trained while it reads; here without its state."""

    tags = _OWN

    def make(self, width: int, heads: int) -> nn.Module:
        memory = extras.require("titans_pytorch", "outside").NeuralMemory
        layer = memory(width, chunk_size=1, heads=heads, dim_head=width // heads)
        for parameter in layer.parameters():  # heads begin as one tensor seen several times, which no optimiser can write to
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        return layer

    def run(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise NotOfferedError("no padding")
        return self.layer(x)[0]
