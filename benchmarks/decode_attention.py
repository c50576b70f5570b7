"""Decode attention on CPUs: our forms, SDPA on padded batches, Inductor's flex attention, ONNX Runtime, llama.cpp and numba.

    python benchmarks/decode_attention.py kernel|schedules [--only WORDS] [--rounds N] [--out FILE]

Needs `instar kernels build`. Peers (`onnxruntime` and `onnx`, `xllamacpp`, `numba`) are left out where they are missing or do not
know the type. They take turns, call by call. Of the smallest case the caches are warm; otherwise they are larger than the
second-level cache, and several sets of them take turns as well. GB/s count the keys and values that exist, not the padding;
beside them stands what a plain sum over as much memory reads at that moment, on one thread. Ratios are those of one round, their
median: peers' time over ours. `kernel` runs on one thread and counts seconds of the processor, that others lengthen less;
`schedules` runs the compiled kernel on two and counts those of the clock; how much sooner two threads end a plain read of as much
memory is what the machine allows at that moment.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import decode_peers
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from instar import files
from instar.bench import environment
from instar.kernels.decode_attention import DecodePlan, attend
from instar.kernels.decode_attention_schedule import SCHEDULES
from instar.kernels.quantised_rows import quantise_rows

RESULT = Path(__file__).parent / "results" / "decode_attention.json"
RAGGED = [8192, *(128 + 55 * n for n in range(15))]
CASES: dict[str, tuple[list[int], int, int, int]] = {
    "in cache: 1 x 512": ([512], 16, 4, 64),
    "8 x 2048": ([2048] * 8, 16, 4, 64),
    "one 8192 and fifteen of 128-898": (RAGGED, 16, 4, 64),
    "8 ragged to 4982": ([4982, 300, 1200, 2500, 700, 3000, 900, 1800], 32, 8, 128),
    "1 x 32768, one key head": ([32768], 8, 1, 64),
    "beyond L3: 16 x 16384": ([16384] * 16, 16, 4, 64),
}
"""Lengths, query heads, key heads, width."""
SKEWED: dict[str, tuple[list[int], int, int, int]] = {
    "1 x 32768, one key head": ([32768], 8, 1, 64),
    "1 x 262144, one key head": ([262144], 8, 1, 64),
    "16384 and 256, one key head": ([16384, 256], 8, 1, 64),
    "one 8192 and fifteen of 128-898": (RAGGED, 16, 4, 64),
    "8 x 2048 (balanced)": ([2048] * 8, 16, 4, 64),
}


def draw(lengths: list[int], H: int, heads: int, K: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Noise from a short strip, so that large caches are made quickly; scores are those of independent numbers."""
    B, C = len(lengths), max(lengths)
    strip = torch.randn(2**20 + 7)
    k, v = (
        strip.repeat(-(-B * heads * C * K // len(strip)))[: B * heads * C * K].to(dtype).view(B, heads, C, K) for _ in range(2)
    )
    return torch.randn(B, H, K).to(dtype), k, v.flip(2)


def forms(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Calls by name, and why others are absent."""
    B, H, K = q.shape
    heads = k.shape[1]
    plan = DecodePlan.of(lengths, heads)
    mask = (torch.arange(k.shape[2]) < torch.tensor(lengths).unsqueeze(1))[:, None, None]
    mask = None if bool(mask.all()) else mask
    row = q.unsqueeze(2)
    limits = torch.tensor(lengths)
    blocks = create_block_mask(lambda b, h, i, j: j < limits[b], B, None, 1, k.shape[2], device="cpu")
    inductor = torch.compile(flex_attention, fullgraph=True)
    calls: dict[str, Callable[[], Tensor]] = {
        "instar": lambda: attend(plan, q, k, v, form="compiled")[0],
        "instar, torch form": lambda: attend(plan, q, k, v, form="torch")[0],
        "Inductor, flex_attention": lambda: inductor(row, k, v, block_mask=blocks, enable_gqa=True).squeeze(2),
        "SDPA grouped, padded": lambda: F.scaled_dot_product_attention(q.view(B, heads, -1, K), k, v, attn_mask=mask).view(
            B, H, K
        ),
        "SDPA enable_gqa, padded": lambda: F.scaled_dot_product_attention(row, k, v, attn_mask=mask, enable_gqa=True)[:, :, 0],
        "SDPA repeated, padded": lambda: F.scaled_dot_product_attention(
            row, *(t.repeat_interleave(H // heads, 1) for t in (k, v)), attn_mask=mask
        )[:, :, 0],
    }
    if k.dtype == torch.bfloat16:  # what a cache of that type would be made smaller for
        (keys, of_keys), (values, of_values) = quantise_rows(k), quantise_rows(v)
        of = of_keys, of_values
        calls["instar, int8 cache"] = lambda: attend(plan, q, keys, values, scales=of, form="compiled")[0]
    absent: dict[str, str] = {}
    for name in ("onnxruntime", "llamacpp", "numba"):
        try:
            calls[name] = getattr(decode_peers, name)(q, k, v, lengths)
        except (ImportError, TypeError, RuntimeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"[:200]
    return calls, absent


def turns(
    sets: list[dict[str, Callable[[], object]]],
    rounds: int,
    clock: Callable[[], float],
    warm: bool = False,
    patience: float = 10.0,
) -> dict[str, list[float]]:
    """Seconds of each call, round by round; who is slow is asked in fewer rounds.

    With one set its caches stay where they are; with several, nobody is given the one that the call before him has read. The
    order is another one each round: who always came behind the same call would find the caches as that one leaves them.
    """
    taken: dict[str, list[float]] = {name: [] for name in sets[0]}
    for turn in range(rounds + 1):
        for place, name in enumerate(random.Random(turn).sample(list(taken), len(taken))):
            found = taken[name]
            if sum(found) > patience:
                continue
            call = sets[(turn + place) % len(sets)][name]
            if len(sets) == 1 and warm:
                call()
            start = clock()
            call()
            if turn:  # the first warms up
                found.append(clock() - start)
    return taken


def kernel(only: str, rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for case, sizes in CASES.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            title = f"{case}, {str(dtype)[6:]}"
            if only not in title:
                continue
            lengths, _, heads, K = sizes
            nbytes = sum(lengths) * heads * 2 * K * dtype.itemsize
            torch._dynamo.reset()  # Inductor compiles for each shape: the limit of its attempts is one case's, not that of all
            given = [draw(*sizes, dtype) for _ in range(3 if 2**21 < nbytes < 2**27 else 1)]
            made = [forms(*one, lengths) for one in given]
            wanted = made[0][0]["instar"]().float()
            errors = {name: float((call().float() - wanted).abs().max()) for name, call in made[0][0].items()}
            reads = [torch.ones(nbytes // 4) for _ in made]
            sets: list[dict[str, Callable[[], object]]] = [
                {**calls, "read": read.sum} for (calls, _), read in zip(made, reads, strict=True)
            ]
            taken = turns(sets, rounds, time.process_time, warm=nbytes < 2**21)
            own = taken["instar"]
            row = {"case": title, "bytes": nbytes, "load": environment.load(), "absent": made[0][1], "forms": {}}
            for name, found in taken.items():
                ratio = statistics.median(b / a for a, b in zip(own, found, strict=False))
                row["forms"][name] = {
                    **{"min": min(found), "median": statistics.median(found), "ratio": ratio, "gb_s": nbytes / min(found) / 1e9},
                    **({"apart": errors[name]} if name in errors else {}),
                }
            share = row["forms"]["instar"]["gb_s"] / row["forms"]["read"]["gb_s"]
            print(f"{title}: {nbytes / 1e6:.0f} MB, {share:.2f} of a plain read's speed", flush=True)
            for name, found in row["forms"].items():
                apart = f"{found['apart']:9.1e}" if "apart" in found else ""
                print(
                    f"  {name:24} {found['min'] * 1e3:9.3f} ms {found['gb_s']:6.1f} GB/s  x {found['ratio']:7.2f} {apart}",
                    flush=True,
                )
            rows.append({**row, "share_of_read": share})
    return rows


def schedules(only: str, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for case, sizes in SKEWED.items():
        for dtype in (torch.float32, torch.bfloat16):
            title = f"{case}, {str(dtype)[6:]}"
            if only not in title:
                continue
            q, k, v = draw(*sizes, dtype)
            sets: dict[str, Callable[[], object]] = {}
            for schedule in SCHEDULES:
                plan = DecodePlan.of(sizes[0], sizes[2], schedule=schedule, workers=2)
                sets[schedule] = partial(attend, plan, q, k, v, form="compiled")
            plan = DecodePlan.of(sizes[0], sizes[2], workers=1)
            sets["one thread"] = partial(attend, plan, q, k, v, form="compiled")
            read = torch.ones(sum(sizes[0]) * sizes[2] * 2 * sizes[3] * dtype.itemsize // 4)
            sets["read, one thread"] = partial(on_one_thread, read.sum)
            sets["read"] = read.sum
            # Each after a call of its own: whose turn comes after another's threads and memory would pay for both.
            taken = turns([sets], rounds, time.perf_counter, warm=True)
            best = {name: min(found) for name, found in taken.items()}
            ratio = best["one-per-output"] / best["stream-k"]
            shown = "  ".join(f"{name} {found * 1e3:.3f} ms" for name, found in best.items())
            limit = best["read, one thread"] / best["read"]
            print(f"{title}: {shown}; one per output / stream-K {ratio:.2f}, of a plain read {limit:.2f}", flush=True)
            middle = {name: statistics.median(found) for name, found in taken.items()}
            rows.append({"case": title, "load": environment.load(), "min": best, "median": middle})
            rows[-1] |= {"ratio_of_minima": ratio, "ratio_of_a_plain_read": limit}
    return rows


def on_one_thread(call: Callable[[], object]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    call()
    torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["kernel", "schedules"])
    parser.add_argument("--only", default="", help="cases whose title has these words")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    rows = {"kernel": kernel, "schedules": schedules}[asked.part](asked.only, asked.rounds)
    kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    versions = {}
    for name in ("onnxruntime", "xllamacpp", "numba"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    part = {"command": f"python benchmarks/decode_attention.py {asked.part}", "rounds": asked.rounds, "peers": versions}
    files.write_json(asked.out, {**kept, asked.part: {**part, "environment": environment.describe(), "rows": rows}})


if __name__ == "__main__":
    main()
