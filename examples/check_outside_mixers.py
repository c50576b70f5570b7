"""Holds token mixers of public packages to Instar's contract, through adapters of a few lines, and prints what it finds.

    python examples/check_outside_mixers.py [--out findings.json]

A package that is not installed is skipped. What a package does not offer (packed rows, for one) is said and counted apart.
An adapter adds nothing but names and copies: padding, states and both ways of computing are the package's own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from instar.checks import check, find
from instar.interfaces import Mixer


class NotOfferedError(NotImplementedError):
    """The package has no such thing."""


class Outside(Mixer):
    """A package's mixer with two forms: one for many tokens, and one for a single token, which serves as the reference."""

    def reference(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        outputs = [x[:, :0]]
        for t in range(x.shape[1]):
            here = slice(t, t + 1)
            flags = {name: flag[:, here] for name, flag in (("mask", mask), ("reset", reset)) if flag is not None}
            y, state = self(x[:, here], state, **flags)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state


class GatedDeltaState(NamedTuple):
    conv: Tensor  # [B, channels, kernel]: the last inputs of the convolution
    memory: Tensor  # [B, H, K, V]


class Carried:
    """What the layer asks of a cache, over two tensors."""

    def __init__(self, conv: Tensor, memory: Tensor) -> None:
        self.conv, self.memory = conv, memory

    def get_conv_state(self, layer: int, **_: Any) -> Tensor:
        return self.conv

    def get_recurrent_state(self, layer: int, **_: Any) -> Tensor:
        return self.memory

    def update_conv_state(self, new: Tensor, layer: int, **_: Any) -> Tensor:
        joined = torch.cat([self.conv, new], dim=-1)
        self.conv = joined[..., -self.conv.shape[-1] :]
        return joined

    def update_recurrent_state(self, new: Tensor, layer: int) -> None:
        self.memory = new

    def is_recording_past(self, layer: int) -> bool:
        return False


class GatedDeltaNet(Outside):
    """Qwen3-Next's layer as `transformers` runs it on a CPU: chunks for many tokens, the recurrence for one."""

    def __init__(self, width: int, *, heads: int = 4) -> None:
        from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
        from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

        super().__init__()
        self.width, self.heads = width, heads
        share = {"linear_num_value_heads": heads, "linear_num_key_heads": heads}
        size = {"linear_key_head_dim": width // heads, "linear_value_head_dim": width // heads}
        config = Qwen3NextConfig(hidden_size=width, num_hidden_layers=1, layer_types=["linear_attention"], **share, **size)
        self.layer = Qwen3NextGatedDeltaNet(config, 0)

    def init_state(self, batch: int) -> GatedDeltaState:
        layer, weight = self.layer, self.layer.out_proj.weight
        conv = weight.new_zeros(batch, layer.conv_dim, layer.conv_kernel_size)
        return GatedDeltaState(conv, weight.new_zeros(batch, self.heads, layer.head_k_dim, layer.head_v_dim))

    def forward(
        self, x: Tensor, state: GatedDeltaState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, GatedDeltaState]:
        if reset is not None:
            raise NotOfferedError("no packed rows in the CPU path")
        conv, memory = self.init_state(x.shape[0]) if state is None else state
        cache = Carried(conv.clone(), memory)  # one token is written into the convolution's buffer in place
        y = self.layer(x, cache=cache, attention_mask=mask)
        return y, GatedDeltaState(cache.conv, cache.memory)


class MinGRU(Outside):
    """minGRU of `minGRU-pytorch`: a scan in log space for many tokens, the recurrence for one."""

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.layer = self.make(width)

    def make(self, width: int) -> nn.Module:
        from minGRU_pytorch.minGRU import minGRU

        return minGRU(width)

    def init_state(self, batch: int) -> Any:
        return None  # the package's word for "nothing before"

    def forward(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        if mask is not None or reset is not None:
            raise NotOfferedError("no padding and no packed rows")
        return self.layer(x, state, return_next_prev_hidden=True)


class MinLSTM(MinGRU):
    """minLSTM of the same package."""

    def make(self, width: int) -> nn.Module:
        from minGRU_pytorch.minLSTM import minLSTM

        return minLSTM(width)


@dataclass(frozen=True)
class Case:
    """A mixer of a package, and what reading its code told about what the contract found."""

    adapter: type[Mixer]
    package: str
    mixer: str
    dtype: torch.dtype
    because: dict[str, str]


CASES = (
    Case(
        GatedDeltaNet,
        "transformers",
        "Qwen3NextGatedDeltaNet on CPU",
        torch.float32,  # it computes in float32 whatever it is given
        {
            "padding": "The mask zeroes a pad's input, but the gate's bias still decays the state and zeros enter the "
            "convolution: only pads before the first token of an empty state are harmless.",
            "compile": "Only the backward pass of the backend aot_eager; Inductor runs it. A limit of torch, not of the layer.",
        },
    ),
    Case(
        MinGRU,
        "minGRU-pytorch",
        "minGRU",
        torch.float64,
        {
            "extremes": "A carried state that underflows to 0 becomes log(0) in the next call.",
            "autocast": "The scan over log decays runs in bfloat16.",
        },
    ),
    Case(
        MinLSTM,
        "minGRU-pytorch",
        "minLSTM",
        torch.float64,
        {
            "split": "The form for many tokens sends the carried state through g once more; the form for one token does not.",
            "reference": "The same.",
            "shapes": "A slice [:, -0:] takes everything where nothing is meant.",
            "autocast": "The scan over log decays runs in bfloat16.",
        },
    ),
)


def examine(case: Case) -> dict[str, Any]:
    """One row of the table: what passes, what is found, what is not offered."""
    row: dict[str, Any] = {"package": case.package, "mixer": case.mixer}
    try:
        row["version"] = importlib.metadata.version(case.package)
    except importlib.metadata.PackageNotFoundError:
        return {**row, "skipped": f"{case.package} is not installed"}
    outcomes = check(find(case.adapter, dtype=case.dtype))
    failed = [o for o in outcomes if o.status == "failed"]
    absent = [o for o in failed if f"raised {NotOfferedError.__name__}" in o.message]
    found = [{"check": o.name, "message": o.message, "because": case.because.get(o.name, "")} for o in failed if o not in absent]
    return {
        **row,
        "torch": torch.__version__,
        "dtype": str(case.dtype).removeprefix("torch."),
        "passed": [o.name for o in outcomes if o.status == "passed"],
        "found": found,
        "not_offered": {o.name: o.message.partition(": ")[2].rpartition(" (")[0] for o in absent},
    }


def show(row: dict[str, Any]) -> None:
    if "skipped" in row:
        print(f"{row['mixer']}: skipped, {row['skipped']}\n")
        return
    print(f"{row['mixer']} ({row['package']} {row['version']}, {row['dtype']})")
    print(f"  passed       {', '.join(row['passed'])}")
    for item in row["found"]:
        print(f"  found        {item['check']}: {item['message']}\n               {item['because']}".rstrip())
    for reason in dict.fromkeys(row["not_offered"].values()):
        names = [name for name, why in row["not_offered"].items() if why == reason]
        print(f"  not offered  {reason}: {', '.join(names)} stop there (cases that do without come first, and pass)")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the findings as JSON")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = [examine(case) for case in CASES]
    for row in rows:
        show(row)
    if out:
        out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
