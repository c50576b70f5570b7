"""Aaren: attention as a recurrence with a state of constant size.

Feng, Tung, Hajimirsadeghi, Ahmed, Bengio, Mori 2024, "Attention as an RNN" (arXiv 2405.13956). No official code was released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.prefix_attention import PrefixState, empty_state, merge_states, prefix_attention


class Aaren(Mixer):
    r"""Causal attention whose query is a learned vector instead of the current token.

        q = W_q t,   s_i = ⟨q, W_k x_i⟩ / √K,   o_j = Σ_{i≤j} softmax_i(s_1..s_j) W_v x_i,   y_j = W_o o_j        (per head)

    with t the query token, the layer's only parameters beyond those of `nn.MultiheadAttention`, whose names the others carry.
    The state is the triple (m, u, w) of `instar.kernels.prefix_attention`; states of two pieces of a stream, even from different
    machines, merge exactly with `merge_states`.

    Args:
        width: D, a multiple of heads.
        heads: H heads of width K = D / H.
        bias: biases of the projections.
        num_queries: R query tokens; their outputs are concatenated before W_o (R D → D). Not in the paper.
        block: tokens in a block of the scan; it changes the speed only.
        decay: λ ≥ 0 subtracted from the scores of the past at each token, for streams that drift. Not in the paper.
        learn_query: False freezes q at 0: the exact mean of the prefix, the ablation that shows what the query does.

    Shapes: x [B, T, D] -> [B, T, D]; state `PrefixState` with R H heads. Raises ShapeError.
    O(T D²) time, of which the scan is O(T · block · R D); O(R D) state whatever T.
    Differs from the paper: keys are never formed, since s_i = ⟨W_kᵀ q, x_i⟩ needs one product per head; the empty state has
    m = -inf where the paper prints 0; no dropout on the attention weights, which are never materialised (drop the output).
    Choose a learning rate at which the query moves, and keep weight decay off it: both otherwise leave a mean.
    """

    merge_states = staticmethod(merge_states)

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        bias: bool = True,
        num_queries: int = 1,
        block: int = 32,
        decay: float = 0.0,
        learn_query: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width must be a positive multiple of heads; received width={width}, heads={heads}.")
        if num_queries < 1 or block < 2 or not 0 <= decay < math.inf:
            raise ShapeError(
                "num_queries must be at least 1, block at least 2, and decay finite and not negative; "
                f"received num_queries={num_queries}, block={block}, decay={decay}."
            )
        self.width, self.heads, self.num_queries = width, heads, num_queries
        self.block, self.decay, self.learn_query = block, decay, learn_query
        query = torch.zeros(num_queries, width)
        self.query: Tensor
        if learn_query:
            self.query = nn.Parameter(query)
        else:
            self.register_buffer("query", query)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width)) if bias else None
        self.out_proj = nn.Linear(num_queries * width, width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.MultiheadAttention`, and the query from N(0, 0.02²): the layer starts near the mean of the prefix."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.learn_query:
            nn.init.normal_(self.query, std=0.02)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def load_attention(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the `state_dict` of an `nn.MultiheadAttention` of equal width and bias; the query stays as it is."""
        if self.num_queries != 1:
            raise ShapeError(f"nn.MultiheadAttention has the shapes of num_queries=1; this layer has {self.num_queries}.")
        own = self.state_dict()
        shapes = {name: tuple(own[name].shape) for name in own if name != "query"}
        given = {name: tuple(value.shape) for name, value in weights.items()}
        if shapes != given:
            raise ShapeError(f"Weights named and shaped {shapes} expected; received {given}.")
        self.load_state_dict({**weights, "query": own["query"]})

    def init_state(self, batch: int) -> PrefixState:
        """(-inf, 0, 0)."""
        return empty_state(batch, self.num_queries * self.heads, self.width // self.heads, self.in_proj_weight)

    def forward(
        self, x: Tensor, state: PrefixState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, PrefixState]:
        """Scores by one product per head, then the block scan. See `Mixer.forward`."""
        H, K, R = self.heads, self.width // self.heads, self.num_queries
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        (W_q, W_k, W_v), (b_q, b_k, b_v) = self._projections()
        if self.learn_query:
            q = F.linear(self.query, W_q, b_q).view(R, H, K) * K**-0.5
            score = torch.bmm(q.transpose(0, 1), W_k.view(H, K, -1)).transpose(0, 1).flatten(0, 1)  # W_kᵀ q
            shift = None if b_k is None else (q * b_k.view(H, K)).sum(-1).flatten()
            s = F.linear(x, score, shift)
        else:
            s = x.new_zeros(*x.shape[:2], R * H)
        v = F.linear(x, W_v, b_v).unflatten(-1, (H, K))
        if R > 1:
            v = v.unsqueeze(2).expand(-1, -1, R, -1, -1).flatten(2, 3)
        o, state = prefix_attention(s, v, state, mask=mask, reset=reset, decay=self.decay, block=self.block)
        return self.out_proj(o.flatten(2)), state

    def reference(
        self, x: Tensor, state: PrefixState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, PrefixState]:
        """The paper's recurrence, token by token, with queries, keys and values written out."""
        m, u, w = self.init_state(x.shape[0]) if state is None else state
        H, K, R = self.heads, self.width // self.heads, self.num_queries
        (W_q, W_k, W_v), (b_q, b_k, b_v) = self._projections()
        q = F.linear(self.query, W_q, b_q).view(1, R, H, K)
        if not self.learn_query:
            q = torch.zeros_like(q)
        outputs = []
        for t in range(x.shape[1]):
            if reset is not None:
                start = reset[:, t, None]
                m, u, w = m.masked_fill(start, -torch.inf), u.masked_fill(start, 0.0), w.masked_fill(start.unsqueeze(2), 0.0)
            x_t = x[:, t] if mask is None else x[:, t].masked_fill(~mask[:, t, None], 0.0)
            k = F.linear(x_t, W_k, b_k).view(-1, 1, H, K)
            v = F.linear(x_t, W_v, b_v).view(-1, 1, H, K).expand(-1, R, -1, -1).flatten(1, 2).to(w.dtype)
            s = ((q * k).sum(-1) / K**0.5).flatten(1, 2).to(w.dtype)
            m_new = torch.maximum(m - self.decay, s)
            old, new = torch.exp(m - self.decay - m_new), torch.exp(s - m_new)
            step = m_new, u * old + new, w * old.unsqueeze(2) + v * new.unsqueeze(2)
            real = torch.ones_like(x[:, t, :1], dtype=torch.bool) if mask is None else mask[:, t, None]
            m, u = torch.where(real, step[0], m), torch.where(real, step[1], u)
            w = torch.where(real.unsqueeze(2), step[2], w)
            outputs.append(w / torch.where(u > 0, u, 1.0).unsqueeze(2))  # before any real token: 0
        o = torch.stack(outputs, dim=1).to(x.dtype) if outputs else x.new_zeros(x.shape[0], 0, R * H, K)
        return self.out_proj(o.flatten(2)), PrefixState(m, u, w)

    def _projections(self) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        bias = self.in_proj_bias
        return self.in_proj_weight.chunk(3), (None, None, None) if bias is None else bias.chunk(3)


class AarenEncoderLayer(nn.Module):
    """An encoder layer with the constructor, parameter names and call of `nn.TransformerEncoderLayer`, and Aaren inside.

    It can stand in `nn.TransformerEncoder` too. It is causal whatever `is_causal` says; a `src_mask` may only be the causal
    one. `self_attn.dropout` of the original falls away; the dropout of the sub-layers' outputs stays.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(activation, str):
            if activation not in ("relu", "gelu"):
                raise ShapeError(f"activation must be 'relu', 'gelu' or a function; received '{activation}'.")
            activation = F.relu if activation == "relu" else F.gelu
        self.activation, self.batch_first, self.norm_first = activation, batch_first, norm_first
        self.self_attn = Aaren(d_model, heads=nhead, bias=bias)
        self.self_attn.batch_first = batch_first  # type: ignore[assignment]  # nn.TransformerEncoder asks for it
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward, bias), nn.Linear(dim_feedforward, d_model, bias)
        self.norm1, self.norm2 = (nn.LayerNorm(d_model, layer_norm_eps, bias=bias) for _ in range(2))
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))
        self.to(device=device, dtype=dtype)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = True,
    ) -> Tensor:
        """`src` [T, B, D] (or [B, T, D] with batch_first) to the same shape; `src_key_padding_mask` [B, T] marks padding."""
        if src_mask is not None:
            _only_causal(src_mask)
        return self.stream(src, mask=_real(src_key_padding_mask))[0]

    def init_state(self, batch: int) -> PrefixState:
        """The state before the first token."""
        return self.self_attn.init_state(batch)

    def stream(
        self, src: Tensor, state: PrefixState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, PrefixState]:
        """As `forward`, continuing from a state; mask [B, T] is True for real tokens, reset [B, T] where a sequence starts."""
        x = src if self.batch_first else src.transpose(0, 1)
        y, state = self.self_attn(self.norm1(x) if self.norm_first else x, state, mask=mask, reset=reset)
        x = x + self.dropout1(y)
        x = x if self.norm_first else self.norm1(x)
        y = self.norm2(x) if self.norm_first else x
        x = x + self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(y)))))
        x = x if self.norm_first else self.norm2(x)
        return (x if self.batch_first else x.transpose(0, 1)), state


class AarenEncoder(nn.Module):
    """A stack of `AarenEncoderLayer`s with one state a layer: O(1) memory and time per streamed token.

    Takes the constructor's arguments of the layer. Inputs carry their own positions, if the task needs any; a sinusoidal
    encoding serves a stream without end, a learned table does not.
    """

    def __init__(self, d_model: int, nhead: int, num_layers: int, norm: nn.Module | None = None, **layer: object) -> None:
        super().__init__()
        if num_layers < 1:
            raise ShapeError(f"num_layers must be at least 1; received {num_layers}.")
        self.layers = nn.ModuleList(AarenEncoderLayer(d_model, nhead, **layer) for _ in range(num_layers))  # type: ignore[arg-type]
        self.norm = norm

    def forward(self, src: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        """The whole sequence at once; see `AarenEncoderLayer.forward`."""
        return self.stream(src, mask=_real(src_key_padding_mask))[0]

    def init_state(self, batch: int) -> tuple[PrefixState, ...]:
        """One empty state a layer."""
        return tuple(layer.init_state(batch) for layer in self._stack())

    def stream(
        self,
        src: Tensor,
        state: tuple[PrefixState, ...] | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, tuple[PrefixState, ...]]:
        """As `forward`, continuing from a state; see `AarenEncoderLayer.stream`."""
        after = []
        for i, layer in enumerate(self._stack()):
            src, end = layer.stream(src, None if state is None else state[i], mask=mask, reset=reset)
            after.append(end)
        return (src if self.norm is None else self.norm(src)), tuple(after)

    def merge(self, a: tuple[PrefixState, ...], b: tuple[PrefixState, ...]) -> tuple[PrefixState, ...]:
        """The state of two streams together, for a single layer: a second layer's inputs depend on the stream they came in."""
        if len(self.layers) != 1:
            raise ShapeError(f"States merge exactly in a stack of one layer; this one has {len(self.layers)}.")
        return (merge_states(a[0], b[0]),)

    def _stack(self) -> list[AarenEncoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, AarenEncoderLayer)]


def _real(padding: Tensor | None) -> Tensor | None:
    """The mask of real tokens from torch's key padding mask (True or -inf at padding)."""
    return None if padding is None else ~padding if padding.dtype == torch.bool else padding == 0


def _only_causal(src_mask: Tensor) -> None:
    seen = ~src_mask if src_mask.dtype == torch.bool else src_mask == 0
    if seen.dim() != 2 or not torch.equal(seen, torch.ones_like(seen).tril()):
        raise ShapeError("Aaren reads every earlier token and no later one: src_mask may only be None or the causal mask.")
