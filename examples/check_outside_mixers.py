"""Hold layers that others published to the contract of a mixer, and say what does not fit.

    python examples/check_outside_mixers.py [--out findings.json] [--into page.md]

Layers come as `instar.doors.outside` wraps them, with padding left to the layer's own mask, so that what is found is the layer's
and not the door's, which itself runs every sequence without its padding. What a layer has no word for is `not offered`: packed
rows, and padding or a state where there is none. A package that is not installed is skipped. For all of them: pip install
'instar[models,outside]' minGRU-pytorch flash-linear-attention triton.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import outside_recurrences
import torch

from instar import files
from instar.checks import contract, find, run
from instar.doors import outside_layers
from instar.doors.outside import NotOfferedError, OutsideLayer, StatelessLayer

LEFT_OUT = ("compile",)  # takes most of the time, and what it finds are limits of torch
BEGIN, END = "<!-- findings: python examples/check_outside_mixers.py --into docs/mixers.md -->", "<!-- end of findings -->"


def own(layer: type[OutsideLayer]) -> type[OutsideLayer]:
    """The same layer with padding left to its own mask, and no state where only the door would carry one."""
    tags = getattr(layer, "tags", ("causal", "streaming", "positions=none"))
    kept = tuple(tag for tag in tags if tag != "streaming" or not issubclass(layer, StatelessLayer))
    return type(layer.__name__, (layer,), {"own_mask": True, "tags": kept, "__module__": layer.__module__})


@dataclass(frozen=True)
class Case:
    """A layer of a package, and what reading its code told about what the contract found."""

    layer: type[OutsideLayer]
    package: str
    mixer: str
    dtype: torch.dtype = torch.float32  # of those that compute in float32 whatever they are given
    because: dict[str, str] = field(default_factory=dict)


def of(name: str) -> type[OutsideLayer]:
    return getattr(outside_layers, name)


_DECAYS = "The mask zeroes what a pad brings, but the state still decays over it: only pads before the first token are harmless."
_IN_PLACE = "It writes into the state it is given, in place: nothing can be learnt through a state."
_ROWS = "A single token meets the last inputs of all rows: B rows of one token come out as [B, B, D]."
_ANEW = "A call of several tokens begins its convolution anew; only a single token reads what the state holds of it."
_TWICE = "The form for many tokens sends the carried state through g once more; the form for one token does not."
_SOFTPLUS = (
    "Its softplus has exp in one branch of torch.where; where that overflows, 0 times infinity is in the gradient of the gate."
)
_STEP = (
    "No defect: its state is as small as the step that the check takes in float32, and a norm behind it magnifies it; with "
    "smaller steps the differences approach what autograd says."
)
_SCAN = "The scan over log decays runs in bfloat16."

CASES = (
    *(
        Case(
            of(layer),
            "transformers",
            mixer,
            because={"padding": _DECAYS, **dict.fromkeys(("split", "reference", "autocast", "half"), _IN_PLACE)},
        )
        for layer, mixer in (("HFMamba", "MambaMixer"), ("HFMamba2", "Mamba2Mixer"))
    ),
    Case(of("Qwen3NextGatedDeltaNet"), "transformers", "Qwen3NextGatedDeltaNet", because={"padding": _DECAYS}),
    Case(
        of("KimiDeltaAttention"), "transformers", "KimiLinearDeltaAttention", because={"padding": _DECAYS, "extremes": _SOFTPLUS}
    ),
    Case(
        of("Lfm2ShortConvolution"),
        "transformers",
        "Lfm2ShortConv",
        torch.float64,
        {"padding": "Pads enter the convolution as zeros between real tokens: only pads before the first are harmless."},
    ),
    Case(of("MiniMaxLightningAttention"), "transformers", "MiniMaxLightningAttention", because={"padding": _DECAYS}),
    Case(
        outside_recurrences.RecurrentGemmaBlock,
        "transformers",
        "RecurrentGemmaRecurrentBlock",
        because={"split": _ANEW, "reference": _ANEW},
    ),
    Case(
        outside_recurrences.RwkvTimeMixing,
        "transformers",
        "RwkvSelfAttention",
        because={
            **dict.fromkeys(("shapes", "value", "precision", "inference"), _ROWS),
            **dict.fromkeys(("causality", "split", "rows", "reference", "gradients", "extremes", "autocast", "half"), _IN_PLACE),
        },
    ),
    Case(of("XLSTMLayer"), "transformers", "xLSTMLayer", because={"gradients": _STEP}),
    Case(of("HFLlamaAttention"), "transformers", "LlamaAttention", torch.float64),
    Case(of("XTransformersAttention"), "x-transformers", "Attention"),
    Case(of("TitansNeuralMemory"), "titans-pytorch", "NeuralMemory", torch.float64),
    Case(outside_recurrences.FlaGLA, "fla-core", "naive_recurrent_gla"),
    Case(outside_recurrences.FlaKDA, "fla-core", "naive_recurrent_kda"),
    Case(outside_recurrences.FlaGatedDeltaRule, "fla-core", "naive_chunk_gated_delta_rule and its recurrence"),
    Case(
        outside_recurrences.MinGRU,
        "minGRU-pytorch",
        "minGRU",
        torch.float64,
        {"extremes": "A carried state that underflows to 0 becomes log(0) in the next call.", "autocast": _SCAN},
    ),
    Case(
        outside_recurrences.MinLSTM,
        "minGRU-pytorch",
        "minLSTM",
        torch.float64,
        {"split": _TWICE, "reference": _TWICE, "autocast": _SCAN},
    ),
)


def examine(case: Case) -> dict[str, Any]:
    """One row of the table: what passes, what is found, what is not offered."""
    row: dict[str, Any] = {"package": case.package, "mixer": case.mixer}
    try:
        row["version"] = importlib.metadata.version(case.package)
        case.layer(32)
    except ImportError as error:  # a package that is not installed, and PackageNotFoundError, which is one
        return {**row, "skipped": f"{error} is missing" if "named" not in str(error) else str(error)}
    subject = find(own(case.layer), dtype=case.dtype)
    outcomes = [run(one, subject) for one in contract("Mixer") if one.name not in LEFT_OUT]
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
    print(flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The findings as Markdown."""
    lines = ["| layer | of | passed | found | not offered |", "|---|---|---|---|---|"]
    for row in rows:
        said: dict[str, list[str]] = {}
        for item in row["found"]:
            said.setdefault(item["because"] or item["message"].replace("|", "/"), []).append(item["check"])
        found = "<br>".join(f"**{', '.join(checks)}**: {reason}" for reason, checks in said.items()) or "nothing"
        absent = ", ".join(dict.fromkeys(row["not_offered"].values()))
        lines.append(f"| {row['mixer']} | {row['package']} {row['version']} | {len(row['passed'])} | {found} | {absent} |")
    return "\n".join(lines)


def insert(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace what stands between the marks of a page."""
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no place for the findings: put the lines '{BEGIN}' and '{END}' where they belong.")
    files.write(path, f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


def main(argv: Sequence[str] | None = None, say: Callable[[dict[str, Any]], None] = show) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a layer of this name; repeat it for more (default: all)")
    parser.add_argument(
        "--out", type=Path, help="write the findings as JSON; rows of layers that are not asked, or missing here, stay"
    )
    parser.add_argument("--into", type=Path, help="write the findings into this page, between its marks")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = {row["mixer"]: row for row in json.loads(given.out.read_text("utf-8"))} if given.out and given.out.is_file() else {}
    for case in CASES:
        if not given.only or case.mixer in given.only:
            row = examine(case)
            say(row)
            if "skipped" not in row or case.mixer not in rows:
                rows[case.mixer] = row
    ordered = [rows[case.mixer] for case in CASES if case.mixer in rows]
    if given.out:
        files.write(given.out, json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    if given.into:
        insert(given.into, [row for row in ordered if "skipped" not in row])


if __name__ == "__main__":
    main()
