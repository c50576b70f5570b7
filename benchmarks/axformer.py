"""Classifying with MiniLM fine-tuned on SST-2, whole and after parts were taken out: what that is worth in seconds.

    python benchmarks/axformer.py [--quick] [--threads N] [--out FILE]

Goal: the model that AxFormer leaves is 1.3 times as fast as the whole one. Beside it: the same parts set to zero in the old
shapes (what a mask is worth), removal by chance, by gradients and of the last layers to the same FLOPs, and hard attention in all
layers.

Sentences of SST-2 (tests) and documents of SQuAD, cut at 256 tokens, in batches of 1 and 32, sorted by length, tokenised
beforehand. All take turns in one process; minimum and median of the rounds. The fine-tuned model is that of seed 0 of the problem
`specialise`; searching takes some minutes. --quick fine-tunes on 64 sentences and searches on 32: for a look whether it runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from instar.bench import environment
from instar.compression.axformer import Axformer
from instar.compression.head_importance import HeadImportance
from instar.compression.layer_dropping import LayerDropping
from instar.compression.pruning import Element, Removed, Validation, cut, zeroed
from instar.compression.pruning.layout import layout
from instar.compression.pruning.scoring import sample_loss
from instar.compression.random_removal import RandomRemoval
from instar.data.collecting import open_collection
from instar.problems.specialise import SpecialiseProblem

RESULT = Path(__file__).parent / "results" / "axformer.json"
LONGEST = 256
TOP_K = 12
FLOPS = 0.7
Batch = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    problem = SpecialiseProblem(train_items=64, search_items=32, epochs=1) if asked.quick else SpecialiseProblem()
    data = problem.load(0)
    tuned = problem.tuning.tuned(data.train.tuned, 0)
    whole, tokenizer = tuned.model, tuned.tokenizer
    made, facts = engines(whole, Validation(problem.tuning.batches(tokenizer, data.train.chosen), sample_loss))
    count, rounds = (32, 2) if asked.quick else (512, 7)
    documents = list(open_collection("squad:test", sample=200).texts or ())[: count // 4]
    found = []
    for corpus, texts in (("sentences", list(data.test.texts[:count])), ("documents", documents)):
        for size in (32, 1):
            some = texts if size > 1 else texts[: max(8, len(texts) // 8)]
            found += measure(
                made, [*batched(tokenizer, some, size)], rounds, {"corpus": corpus, "batch": size, "texts": len(some)}
            )
    for row in found:
        each = 1e3 * row["seconds"] / row["texts"]
        kept = facts[row["engine"]]["kept_flops"]
        print(
            f"{row['corpus']:<10} batch {row['batch']:<3} {row['engine']:<20} {each:8.3f} ms/text  {row['speed']:5.2f} x whole  "
            f"(median {row['median_speed']:.2f}; FLOPs of the blocks {kept:.2f})"
        )
    where = {"command": "python benchmarks/axformer.py", "environment": environment.describe(), "load": environment.load()}
    result = {**where, "threads": asked.threads, "rounds": rounds, "quick": asked.quick, "engines": facts, "rows": found}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


def batched(tokenizer: Any, texts: list[str], size: int) -> Any:
    """Batches of tokens, texts of like length together."""
    order = sorted(texts, key=len)
    for first in range(0, len(order), size):
        some = order[first : first + size]
        yield dict(tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"))


def engines(whole: Any, data: Validation) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Name -> model, and what was taken out of it."""
    made: dict[str, Any] = {"whole": whole}
    facts: dict[str, dict[str, Any]] = {"whole": {"kept_flops": 1.0}}
    methods = {
        "axformer_efficiency": Axformer(policy="efficiency", epsilon=0.1, top_k=0),
        "axformer_budget": Axformer(policy="efficiency", epsilon=0.02, flops=FLOPS, top_k=0),
        "axformer_accuracy": Axformer(top_k=0),
        "random_removal": RandomRemoval(flops=FLOPS),
        "head_importance": HeadImportance(flops=FLOPS),
        "layer_dropping": LayerDropping(flops=FLOPS),
    }
    for name, method in methods.items():
        made[name] = copy.deepcopy(whole)
        start = time.perf_counter()
        receipt = method.apply(made[name], data)
        said = receipt.facts.settings
        removed = said["plan"]["removed"] if "plan" in said else said["removed"]
        facts[name] = {"kept_flops": kept(whole, removed), "search_seconds": time.perf_counter() - start, "removed": removed}
        print(f"{name}: {facts[name]['kept_flops']:.3f} of the FLOPs, found in {facts[name]['search_seconds']:.0f} s", flush=True)
    made["zeroed"] = copy.deepcopy(whole)
    made["zeroed"].load_state_dict(zeroed(whole, Removed.parse(facts["axformer_efficiency"]["removed"])))
    facts["zeroed"] = {"kept_flops": 1.0, "removed": facts["axformer_efficiency"]["removed"]}
    hard = Removed(tuple(Element("hard", layer) for layer in range(whole.config.num_hidden_layers)), TOP_K)
    made["hard_attention"] = copy.deepcopy(whole)
    cut(made["hard_attention"], hard)
    facts["hard_attention"] = {"kept_flops": 1.0, "removed": hard.json()}
    return made, facts


def kept(whole: Any, removed: dict[str, Any]) -> float:
    """FLOPs of the blocks' linear layers that are left."""
    found = Removed.parse(removed)
    return layout(whole, found.group_size).share(found)


def classify(model: Any, batches: list[Batch]) -> None:
    with torch.inference_mode():
        for batch in batches:
            model(**batch)


def measure(made: dict[str, Any], batches: list[Batch], rounds: int, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of each model, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for model in made.values():
        classify(model, batches[:2])  # warms up
    for number in range(rounds):
        names = list(made)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = time.perf_counter()
            classify(made[name], batches)
            seconds[name].append(time.perf_counter() - begin)
    base = seconds["whole"]
    return [
        {
            **about,
            "engine": name,
            "seconds": min(took),
            "median": statistics.median(took),
            "speed": min(base) / min(took),
            "median_speed": statistics.median(base) / statistics.median(took),
        }
        for name, took in seconds.items()
    ]


if __name__ == "__main__":
    main()
