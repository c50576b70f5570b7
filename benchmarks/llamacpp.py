"""Whether llama.cpp runs the GGUF files that we write, and says what our model says: SmolLM2 in each block format.

    python benchmarks/llamacpp.py [--out FILE]

Needs `pip install xllamacpp` (llama.cpp with wheels for CPUs). Greedy continuations of eight texts, 16 tokens each, token by
token beside ours from the same compressed weights; and how far the log-probabilities of the first token are apart. llama.cpp
also rounds what goes into a product to 8 bits, ours does not: close, not equal, and where two tokens are near each other the
continuations part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from instar.bench import environment
from instar.compression import gguf_file, quantize_
from instar.compression.gguf_blocks import GgufBlocks
from instar.compression.stored import Stored
from instar.data import pretrained

RESULT = Path(__file__).parent / "results" / "llamacpp.json"
TEXTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def add(a, b):\n    return",
    "In 1492, Columbus",
    "Water boils at",
    "The quick brown fox",
    "To be, or not to be,",
    "Machine learning is a field of",
)
NEW, TOP = 16, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    import xllamacpp

    rows = []
    for kind in ("Q8_0", "Q4_1", "Q4_0"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            ours = of_ours(kind, path)
            theirs = of_llamacpp(path)
        same = apart = 0.0
        for mine, its in zip(ours, theirs, strict=True):
            same += sum(a == b for a, b in zip(mine["tokens"], its["tokens"], strict=True))
            apart = max(apart, *(abs(value - mine["first"][token]) for token, value in its["first"]))
        row = {"type": kind, "tokens": NEW * len(TEXTS), "same": same, "apart": apart}
        print(
            f"{kind}: {same:.0f} of {NEW * len(TEXTS)} tokens the same; log-probabilities at most {apart:.3f} apart", flush=True
        )
        rows.append(row)
    facts = {"command": "python benchmarks/llamacpp.py", "environment": environment.describe()}
    found = {**facts, "llamacpp": xllamacpp.BUILD_INFO, "rows": rows}
    asked.out.write_text(json.dumps(found, indent=1, default=str) + "\n")


@torch.no_grad()
def of_ours(kind: Any, path: Path) -> list[dict[str, Any]]:
    """What our compressed model continues with, and its GGUF file at `path`."""
    model, tokenizer = pretrained.load("SmolLM2-135M-Instruct")
    quantize_(model, GgufBlocks(type=kind))
    gguf_file.write(model, path, tokenizer=tokenizer)
    spread = {f"{name}.weight": layer.weight for name, layer in model.named_modules() if isinstance(layer, Stored)}
    model, _ = pretrained.load("SmolLM2-135M-Instruct")  # the same weights as floats: faster, token by token
    model.load_state_dict(spread, strict=False)
    found = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        new = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
        found.append({"tokens": new.tolist(), "first": model(ids).logits[0, -1].log_softmax(-1).tolist()})
    return found


def of_llamacpp(path: Path) -> list[dict[str, Any]]:
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path, given.n_ctx, given.n_parallel, given.warmup = str(path), 256, 1, False
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(given)
    found = []
    for text in TEXTS:
        settings = {"n_predict": NEW, "temperature": 0, "logprobs": TOP, "ignore_eos": True, "cache_prompt": False}
        steps = server.handle_completions({"prompt": text, **settings})["choices"][0]["logprobs"]["content"]
        first = [(top["id"], top["logprob"]) for top in steps[0]["top_logprobs"]]
        found.append({"tokens": [step["id"] for step in steps], "first": first})
    return found


if __name__ == "__main__":
    main()
