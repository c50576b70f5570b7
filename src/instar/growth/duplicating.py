"""Wider decoders whose new coordinates are copies of old ones: the maps of Net2Net and of bert2BERT."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.bench.seeds import stream
from instar.growth.axes import Axis, repeated, shares
from instar.growth.plan import multiple
from instar.growth.widening import Widening, attention
from instar.models.decoder import Decoder


def duplicating(model: Decoder, width: int, hidden: int, seed: int) -> Widening:
    """Copies: of the whole stream and of all heads a whole number of times, of hidden units chosen at random to any number.

    What reads c copies is divided by c. Under RMSNorm the mean square stays, since all coordinates have equally many copies.
    Raises TransformError for a width that is no multiple.
    """
    to: dict[str, Axis] = {}
    if width != model.width:
        multiple("width", width, model.width, "under a norm all coordinates need equally many copies (lemon takes any width)")
        times = width // model.width
        stream_of, head_of, kv_of = (repeated(size, size * times) for size in _axes(model))
        share = 1.0 / times
        to["stream_in"] = Axis.copied(stream_of, share, 1.0)
        to["stream_out"] = to["norm"] = Axis.copied(stream_of, 1.0, share)
        # A tied head adds over all copies what an embedding wrote once, so that the last norm must divide.
        to["last_norm"] = Axis.copied(stream_of, share, 1.0) if model.tied else to["norm"]
        to["heads_in"] = Axis.copied(head_of, share, 1.0)
        to["heads_out"] = Axis.copied(head_of, 1.0, share)
        to["kv_out"] = Axis.copied(kv_of, 1.0, share)
    if hidden != model.hidden:
        extra = torch.randint(model.hidden, (hidden - model.hidden,), generator=stream(seed, f"grow/hidden/{model.hidden}"))
        source = torch.cat([torch.arange(model.hidden), extra])
        to["hidden_in"] = Axis.copied(source, shares(source), 1.0)
        to["hidden_out"] = Axis.copied(source, 1.0, shares(source))
    return Widening(**to)


def _axes(model: Decoder) -> tuple[int, int, int]:
    """Coordinates of the stream, of queries, and of keys or values."""
    mixer = attention(model)
    return model.width, mixer.q_proj.weight.shape[0], mixer.k_proj.weight.shape[0]


def new_rows(axis: Axis | None, old: int) -> Tensor | None:
    """Which places of an axis are copies beyond the first `old`, bool; None where there are none."""
    if axis is None or len(axis.source) == old:
        return None
    return torch.arange(len(axis.source)) >= old
