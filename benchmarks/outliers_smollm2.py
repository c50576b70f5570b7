"""Outliers of a real language model, and what eight bits cost it by the grain of the scales: SmolLM2-135M-Instruct.

    python benchmarks/outliers_smollm2.py [--quick] [--out FILE]

The outlier report over windows of WikiText-2 (test), and the nats a token of these windows with weights and activations in 8
bits: static scales for each tensor (min-max, and the 99.99 percentile), found on windows of the validation text, and a scale for
each token. Nothing is random and nothing is timed: one run says all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.compression.outliers import outlier_report
from instar.compression.static_ranges import calibrate, quantised
from instar.data import datasets, pretrained

MODEL, LENGTH = "SmolLM2-135M-Instruct", 256


def windows(tokenizer: Any, split: str, count: int) -> Tensor:
    """The first tokens of a split of WikiText-2, [count, LENGTH]."""
    text = next(path for path in datasets.locate("wikitext2") if split in path.name).read_text("utf-8")
    ids = tokenizer(text[: 12 * LENGTH * count], return_tensors="pt").input_ids[0]
    return ids[: count * LENGTH].view(count, LENGTH)


@torch.no_grad()
def nats(model: Any, tokens: Tensor) -> float:
    logits = [model(input_ids=window[None]).logits[0, :-1].float() for window in tokens]
    return float(F.cross_entropy(torch.cat(logits), tokens[:, 1:].flatten()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one window")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "outliers_smollm2.json")
    given = parser.parse_args()
    model, tokenizer = pretrained.load(MODEL, "causal")
    tokens = windows(tokenizer, "test", 1 if given.quick else 4)
    calibration = [{"input_ids": window[None]} for window in windows(tokenizer, "valid", 1 if given.quick else 4)]
    report = outlier_report(model, [{"input_ids": tokens}])
    print(report.text(12))
    found: dict[str, float] = {"float32": nats(model, tokens)}
    for name, percentile in (("8 bits, static, min-max", 100.0), ("8 bits, static, 99.99 %", 99.99)):
        with quantised(model, calibrate(model, calibration, percentile=percentile)):
            found[name] = nats(model, tokens)
    with quantised(model, None):
        found["8 bits, a scale for each token"] = nats(model, tokens)
    for name, value in found.items():
        print(f"{name:32} {value:8.3f} nats a token")
    kept = {"model": MODEL, "windows": len(tokens), "length": LENGTH, "nats": found, "report": report.json()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
