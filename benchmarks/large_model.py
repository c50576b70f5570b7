"""Memory of updating a model of more than a billion parameters, beside that of its weights (goal: 1.2 times).

python benchmarks/large_model.py [--out FILE]

A Llama of 1.1 billion random weights in bfloat16 is written to a temporary folder (2.2 GB, and as much for each update). Then
adapt, edit, compress and undo run one after the other, each in a process of its own, on tiny data: what is measured is memory,
not learning. Anonymous memory (RssAnon, every 10 ms) beyond what the process has after its imports; pages of mapped files, which
the system takes back when it needs them, are told apart (VmHWM counts them too).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "large_model.json"
ACTIONS = ("adapt", "edit", "compress int8", "compress blockwise", "compress two steps", "undo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--action", choices=("build", *ACTIONS))
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.action:
        print(json.dumps(build(asked.folder) if asked.action == "build" else measured(asked.action, asked.folder)))
        return
    from instar.bench import environment

    folder = Path(tempfile.mkdtemp())
    try:
        rows = []
        weights = child("build", folder)
        for action in ACTIONS:
            row = child(action, folder)
            row["times_the_weights"] = row["anonymous_bytes"] / weights["bytes"]
            print(
                f"{action:<20} {row['seconds']:7.1f} s   {row['anonymous_bytes'] / 2**20:7.0f} MiB beyond imports, "
                f"{row['times_the_weights']:.2f} times the weights ({row['peak_bytes'] / 2**20:.0f} MiB with mapped files)",
                flush=True,
            )
            rows.append({"action": action, **row})
        facts = {"command": "python benchmarks/large_model.py", "environment": environment.describe(), **weights}
        asked.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def child(action: str, folder: Path) -> dict[str, float]:
    """Run an action in a process of its own."""
    call = [sys.executable, __file__, "--action", action, "--folder", str(folder)]
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def build(folder: Path) -> dict[str, float]:
    """A Llama of the width and depth of TinyLlama with the tokenizer of SmolLM2, its weights random."""
    import torch
    import transformers

    from instar.data import pretrained

    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained.folder("SmolLM2-135M-Instruct"))
    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"number {i}", "target": f"is {i % 3}"} for i in range(40)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "bytes": sum(p.numel() * p.element_size() for p in model.parameters())}


def measured(action: str, folder: Path) -> dict[str, float]:
    """Do it, and watch this process."""
    import torch
    import transformers

    torch.set_num_threads(1)
    from instar import release
    from instar.adapters import LoRA
    from instar.compression.blockwise import Blockwise
    from instar.compression.int8 import Int8
    from instar.editing.memit import MEMIT
    from instar.interfaces import Fact, Transform
    from instar.release import adapting, compressing, edits

    _ = transformers.AutoModelForCausalLM, transformers.AutoTokenizer  # what is imported late counts as imports
    model, text = folder / "model", ["Some text of other things. " * 10]
    base = _status("RssAnon")
    most = [base]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            most[0] = max(most[0], _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if action == "adapt":
        pairs = str(folder / "pairs.jsonl")
        adapting.adapt(model, pairs, LoRA(r=8), folder / "adapted", steps=2, batch=2, length=16, dtype="auto", gated=False)
    elif action == "edit":
        editor = MEMIT(layers=[2], prefixes=0, steps=2)
        edits.edit(
            model, [Fact("The capital of France is", "France", "Rome")], editor, folder / "edited", texts=text, gated=False
        )
    elif action == "undo":
        release.undo(folder / "edited")
    else:
        steps: dict[str, list[Transform]] = {
            "compress int8": [Int8(outliers=0)],
            "compress blockwise": [Blockwise(bits=4, block=32, activations="none")],
            "compress two steps": [
                Blockwise(bits=4, block=32, activations="none", keep=[".*self_attn.*"]),
                Int8(outliers=0),
            ],
        }
        compressing.compress(model, steps[action], folder / "compressed", texts=text, gated=False)
        shutil.rmtree(folder / "compressed")
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return {"seconds": seconds, "anonymous_bytes": most[0] - base, "peak_bytes": _status("VmHWM")}


def _status(key: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
