"""Attention whose heads can do nothing, against softmax attention: training and decoding by length; gpt-oss's sinks on SDPA.

    python benchmarks/quiet_heads.py [--quick] [--out FILE]

All run in one process and take turns, call by call. One thread first, two beside it. Ratios to softmax (to eager attention for
gpt-oss) count; seconds are of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from turns import Call, spread, turns

from instar.interfaces import Mixer
from instar.mixers.clipped_softmax import ClippedSoftmax
from instar.mixers.gated_softmax import GatedSoftmax
from instar.mixers.sinks import Sinks
from instar.mixers.softmax import Softmax
from instar.mixers.softmax1 import Softmax1

WIDTH, HEADS = 256, 4


def layers(length: int) -> dict[str, Mixer]:
    torch.manual_seed(0)
    return {
        "softmax": Softmax(WIDTH, heads=HEADS),
        "clipped_softmax": ClippedSoftmax(WIDTH, heads=HEADS, length=max(1, length)),
        "gated_softmax": GatedSoftmax(WIDTH, heads=HEADS),
        "gated_softmax:elementwise": GatedSoftmax(WIDTH, heads=HEADS, gate="elementwise"),
        "softmax1": Softmax1(WIDTH, heads=HEADS),
        "sinks": Sinks(WIDTH, heads=HEADS),
    }


def compared(calls: dict[str, Call], rounds: int, first: str) -> dict[str, dict[str, float]]:
    """Minimum and median of the rounds, and the ratio of the medians of round-by-round ratios to `first`."""
    taken = {name: one.wall for name, one in turns(calls, rounds).items()}
    return {
        name: {**spread(seconds), "ratio": statistics.median(a / b for a, b in zip(seconds, taken[first], strict=True))}
        for name, seconds in taken.items()
    }


def training(length: int, rounds: int) -> dict[str, dict[str, float]]:
    """Forward and backward of one layer."""
    x = torch.randn(1, length, WIDTH)

    def step(layer: Mixer) -> Callable[[], object]:
        def call() -> None:
            layer.zero_grad(set_to_none=True)
            layer(x)[0].sum().backward()

        return call

    return compared({name: step(layer) for name, layer in layers(length).items()}, rounds, "softmax")


@torch.no_grad()
def decoding(length: int, rounds: int) -> dict[str, dict[str, float]]:
    """Sixteen more tokens behind `length` of them."""
    x, more = torch.randn(1, length, WIDTH), torch.randn(16, 1, 1, WIDTH)

    def steps(layer: Mixer) -> Callable[[], object]:
        held = layer(x)[1]

        def call() -> None:
            state = held
            for token in more:
                _, state = layer(token, state)

        return call

    return compared({name: steps(layer.eval()) for name, layer in layers(2 * length).items()}, rounds, "softmax")


def gpt_oss(length: int, rounds: int) -> dict[str, dict[str, float]]:
    """The attention of one layer of gpt-oss's shape with sinks: eager, as transformers has it on a CPU, and on SDPA."""
    import transformers
    from transformers.models.gpt_oss import modeling_gpt_oss

    from instar.doors import hf_attention

    config = transformers.GptOssConfig(hidden_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=64)
    module = modeling_gpt_oss.GptOssAttention(config, layer_idx=1).eval()
    torch.nn.init.normal_(module.sinks)
    q, k, v = (torch.randn(1, heads, length, 64) for heads in (8, 2, 2))
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    given: dict[str, Any] = {"scaling": 64**-0.5, "dropout": 0.0, "s_aux": module.sinks}
    with torch.no_grad():
        calls: dict[str, Callable[[], Any]] = {
            "eager": lambda: modeling_gpt_oss.eager_attention_forward(module, q, k, v, mask, **given)[0],
            "instar_sinks": lambda: hf_attention.attend("sinks", module, q, k, v, None, **given)[0],
        }
        torch.testing.assert_close(calls["instar_sinks"](), calls["eager"](), rtol=0, atol=1e-4)
        return compared(calls, rounds, "eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short lengths and few rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quiet_heads.json")
    given = parser.parse_args()
    lengths, rounds = ((64, 256), 5) if given.quick else ((256, 1024, 4096), 15)
    found: dict[str, Any] = {"torch": torch.__version__, "cpu": platform.processor(), "cores": os.cpu_count()}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for what, measure in (("training", training), ("decoding", decoding), ("gpt_oss", gpt_oss)):
            for length in lengths:
                rows = found.setdefault(f"{threads} threads", {}).setdefault(what, {})[length] = measure(length, rounds)
                ratios = "  ".join(f"{name} {row['ratio']:.2f}" for name, row in rows.items())
                print(f"{threads} threads  {what:9} {length:5}  {ratios}", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
