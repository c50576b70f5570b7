"""Facts a second: many facts in one batch against one at a time.

python benchmarks/editing.py facts_gpt       100 facts of films and countries in the facts-GPT (goal: 5 times)
python benchmarks/editing.py smollm2         some facts about capitals in SmolLM2-135M (goal: 1.5 times)

The peer is the loop of the published implementations, written anew after their description: for each fact in turn it builds one
batch of prompts and runs the whole model, from the embedding to the logits of all places, forward and backward at each step of
torch's Adam. It writes with the same code as ours, so that only the search for target states differs, and its changes must be
those of ours within a tolerance. Ours leaves out what does not depend on the vectors (all that stands before the subject, the
layers up to the edited one, logits that no target asks for), pads little, and runs GPT-2's GELU in one step; the peer runs the
model as it is. What both do alike (prefixes, the closed form) counts for both. One thread; rounds in turn in one process; minimum
and median. A round of SmolLM2 takes minutes: `--facts` and `--rounds` say how many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instar.bench import environment
from instar.data import pretrained
from instar.editing import deltas, targets
from instar.editing.layout import Layout, Part
from instar.editing.memit import MEMIT
from instar.editing.pmet import PMET
from instar.editing.rows import pack, row
from instar.editing.targets import Objective, Targets
from instar.interfaces import Fact, Monitor
from instar.problems.edit_facts import MODEL, TRACED, EditFactsProblem

RESULT = Path(__file__).parent / "results" / "editing.json"
STEPS = 20
CAPITALS = {
    "France": "Rome", "Italy": "Paris", "Spain": "Vienna", "Austria": "Madrid", "Egypt": "Lima", "Peru": "Cairo",
    "Japan": "Oslo", "Norway": "Tokyo", "Greece": "Berlin", "Germany": "Athens", "Poland": "Dublin", "Ireland": "Warsaw",
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["facts_gpt", "smollm2"])
    parser.add_argument("--facts", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.model == "facts_gpt":
        count = asked.facts or 100
        data = EditFactsProblem(edits=min(count, 50)).load(0)
        facts = [*data.test.facts, *data.valid.facts][:count]
        model, tokenizer = pretrained.load(MODEL, kind="causal")
        rows = compare(model, tokenizer, facts, {"layers": TRACED, "texts": data.train}, asked.rounds)
    else:
        model, tokenizer = pretrained.load("SmolLM2-135M-Instruct")
        facts = [Fact(f"The capital of {a} is", a, b) for a, b in CAPITALS.items()][: asked.facts or len(CAPITALS)]
        rows = compare(model, tokenizer, facts, {}, asked.rounds)
    held = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    command = f"python benchmarks/editing.py {asked.model} --facts {len(facts)} --rounds {asked.rounds}"
    held[asked.model] = {"command": command, "environment": environment.describe(), "load": environment.load(), "rows": rows}
    RESULT.write_text(json.dumps(held, indent=1) + "\n")


def compare(
    model: nn.Module, tokenizer: Any, facts: Sequence[Fact], arguments: dict[str, Any], rounds: int
) -> list[dict[str, Any]]:
    """Seconds of whole edits of both kinds, and how far their changes are apart."""
    found = []
    ours = targets.find
    for method in (MEMIT, PMET):
        editor = method(steps=STEPS, **arguments)
        editor.fit_statistics(model, tokenizer)
        seconds: dict[str, list[float]] = {"batch": [], "loop": []}
        work: dict[str, list[float]] = {"batch": [], "loop": []}  # of the processor: others on the machine do not count
        changes: dict[str, dict[str, Tensor]] = {}
        for turn in range(rounds):
            for name, search in (("batch", ours), ("loop", one_at_a_time)):
                targets.find = search
                try:
                    begin, used = time.perf_counter(), time.process_time()
                    receipt = editor.edit(model, tokenizer, facts)
                    seconds[name].append(time.perf_counter() - begin)
                    work[name].append(time.process_time() - used)
                finally:
                    targets.find = ours
                if turn == 0:
                    changes[name] = deltas.of(receipt)
                receipt.undo()
        apart = max(float((changes["batch"][n] - changes["loop"][n]).norm() / changes["loop"][n].norm()) for n in changes["loop"])
        row_: dict[str, Any] = {"method": editor.slug, "facts": len(facts), "apart": apart}
        for name, times in seconds.items():
            row_[name] = {"min": min(times), "median": statistics.median(times), "facts_per_second": len(facts) / min(times)}
            row_[name]["processor"] = min(work[name])
        row_["ratio"] = min(seconds["loop"]) / min(seconds["batch"])
        row_["ratio_processor"] = min(work["loop"]) / min(work["batch"])
        found.append(row_)
        print(
            f"{editor.slug:6} {len(facts)} facts: {row_['batch']['facts_per_second']:.2f} a second against "
            f"{row_['loop']['facts_per_second']:.2f} one at a time: {row_['ratio']:.2f} times "
            f"({row_['ratio_processor']:.2f} in seconds of the processor); changes apart by {apart:.1e}",
            flush=True,
        )
    return found


def one_at_a_time(
    model: nn.Module,
    layout: Layout,
    tokenizer: Any,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    objective: Objective,
    *,
    batch: int = 0,
    monitor: Monitor | None = None,
) -> Targets:
    """What `targets.find` finds, by the plain loop."""
    modules = {part: layout.layers[layer].module(part) for part in objective.parts}
    each = [_one(model, modules, tokenizer, fact, prefixes, objective) for fact in facts]
    parts: tuple[Part, ...] = tuple(objective.parts)
    return Targets(
        {part: torch.stack([before[part] for before, _ in each]) for part in parts},
        {part: torch.stack([shift[part] for _, shift in each]) for part in parts},
        torch.zeros(len(facts)),
        torch.zeros(len(facts), dtype=torch.int64),
    )


def _one(
    model: nn.Module, modules: dict[Part, nn.Module], tokenizer: Any, fact: Fact, prefixes: Sequence[str], aim: Objective
) -> tuple[dict[Part, Tensor], dict[Part, Tensor]]:
    rows = [row(tokenizer, fact.prompt, fact.subject, fact.target, prefix) for prefix in ("", *prefixes)]
    batch = pack([*rows, row(tokenizer, f"{fact.subject} is a", fact.subject)], next(model.parameters()).device)
    each = torch.arange(len(batch))
    width = dict.fromkeys(modules, 0)
    before: dict[Part, Tensor] = {}
    shift: dict[Part, Tensor] = {}

    def hook(part: Part) -> Callable[..., Any]:
        def change(module: nn.Module, args: Any, output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            if part not in before:
                before[part] = value[0, batch.subject[0]].detach().float()
                width[part] = value.shape[-1]
                return None
            moved = value.clone()
            moved[each, batch.subject] += shift[part]
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return change

    def logp() -> Tensor:
        found: Tensor = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits.float().log_softmax(-1)
        return found

    handles = [module.register_forward_hook(hook(part)) for part, module in modules.items()]
    try:
        with torch.no_grad():
            logp()
        shift.update({part: torch.zeros(width[part], requires_grad=True) for part in modules})
        optimiser = torch.optim.Adam(list(shift.values()), lr=aim.lr)
        reference = None
        real = batch.target[:-1] >= 0
        for step in range(aim.steps):
            said = logp()
            after = said[-1, batch.subject[-1]]
            reference = after.detach() if reference is None else reference
            chosen = said[each[:-1, None], batch.at[:-1]]
            likely = chosen.gather(-1, batch.target[:-1].clamp(min=0)[..., None])[..., 0]
            nll = -((likely * real).sum(1) / real.sum(1)).mean()
            right = bool(((chosen.argmax(-1) == batch.target[:-1]) | ~real).all())
            kl = (reference.exp() * (reference - after)).sum()
            decay = sum(shift[part].norm() / before[part].norm() ** 2 for part in modules)
            loss = (0.1 if aim.easing and right else 1.0) * aim.nll * nll + aim.kl * kl + aim.decay * decay
            if (
                float(loss.detach()) < aim.enough
                or (aim.easing and right and float(kl.detach()) <= 0.01)
                or step + 1 == aim.steps
            ):
                break
            optimiser.zero_grad()
            loss.backward(inputs=list(shift.values()))
            optimiser.step()
            with torch.no_grad():
                for part, value in shift.items():
                    value *= min(1.0, float(aim.clamp * before[part].norm() / value.norm()))
    finally:
        for handle in handles:
            handle.remove()
    return before, {part: value.detach() for part, value in shift.items()}


if __name__ == "__main__":
    main()
