"""Judgements as the gate writes them, made by hand: every decision, with and without a floor, and with hostile texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from instar.gate.result import Broken, Decision, Figure, Group, Measure, Result, Side, Slice, Test

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; \x1b[31m\x00\x07 \u202eevil\u202c \ud800 $x^2$ {{ 7*7 }} ]]>"
)
"""Markup, an escape sequence, controls, a right-to-left override, half a character, mathematics, a template."""
MARKED = (
    "@octocat #12 org/repo#3 https://evil.example www.evil.example me@evil.example | a `b` ``c`` **d** ![x](y) [z](w)\n# e\n- f"
)
"""What Markdown would make something of."""

_QUESTIONS = [
    ("I still have not received my new card, I ordered over a week ago.", "card_arrival", "card_delivery_estimate"),
    ("Why was I charged a fee when I paid with my card abroad?", "card_payment_fee_charged", "exchange_charge"),
    ("My top-up was reverted. What happened?", "topping_up_reverted", "top_up_failed"),
    ("How do I verify the source of my money before the transfer can go on? The app has been asking me for documents since "
     "Monday, and the support chat sends me in circles: first a bank statement, then a payslip, then the statement again. "
     "I uploaded all of them twice.\n\nPlease tell me which document is missing.", "verify_source_of_funds", "verify_top_up"),
]  # fmt: skip


def broken(n: int, always: bool = True, **given: Any) -> Broken:
    text, label, after = _QUESTIONS[n % len(_QUESTIONS)]
    known: dict[str, Any] = {
        "id": f"banking-{n:05d}",
        "input": text,
        "label": label,
        "before": label,
        "after": after,
        "drop": 1.0,
    }
    return Broken(**{**known, "always": always, **given})


def groups(sizes: list[int], cut: int = 500) -> list[Group]:
    titles = [
        "card · arrival · ordered",
        "fee · charged · abroad",
        "verify · source",
        "top-up · reverted",
        "others, each unlike the rest",
    ]
    found, start = [], 0
    for i, size in enumerate(sizes):
        items = [broken(start + k, always=k % 3 > 0) for k in range(min(size, cut))]
        found.append(Group(titles[i % len(titles)], size, float(size), items))
        start += size
    return found


def slices(count: int) -> list[Slice]:
    found = []
    for i in range(count):
        size, negative = 40 + 13 * (i % 9), max(0, 9 - i // 2)
        share = negative / size
        around = Figure(share, max(0.0, share - 0.03), share + 0.05)
        value = ["banking", "travel", "insurance", "home", "kitchen"][i % 5] + (f" {i // 5}" if i >= 5 else "")
        found.append(Slice("domain", value, size, 0.93, 0.93 - share + 0.01, negative, i % 3, around, min(1.0, 0.002 * 2**i)))
    return found


def budget_of(decision: Decision, scope: str, **given: Any) -> Test:
    value = {"pass": 0.006, "fail": 0.038, "undecided": 0.019}[decision]
    words = {
        "pass": f"{scope}: negative flips beyond the noise floor 0.60 % (95 % interval 0.10 % … 1.2 %), budget 2 %",
        "fail": f"{scope}: negative flips beyond the noise floor 3.8 % (95 % interval 2.9 % … 4.7 %), budget 2 %",
        "undecided": f"{scope}: negative flips beyond the noise floor 1.9 % (95 % interval 1.0 % … 2.8 %), budget 2 %",
    }[decision]
    known: dict[str, Any] = {"scope": scope, "kind": "max_nfr", "items": 3080, "budget": 0.02, "decision": decision}
    known |= {"figure": Figure(value, value - 0.009, value + 0.009), "p": 0.0004 if decision == "fail" else 0.4, "words": words}
    return Test(**{**known, "needed": 12400 if decision == "undecided" else None, **given})


def result(decision: Decision = "fail", **given: Any) -> Result:
    """A realistic judgement; `given` replaces fields."""
    floor = Figure(0.011, 0.008, 0.015)
    sizes = {"pass": [9, 6], "fail": [48, 31, 22, 14, 36], "undecided": [30, 18, 9]}[decision]
    count = sum(sizes)
    counts = {"both_right": 2707 - count, "both_wrong_same": 211, "both_wrong_changed": 95}
    nfr = Figure(count / 3080, count / 3080 - 0.007, count / 3080 + 0.007)
    measures = [
        Measure("accuracy_change", "change of accuracy", Figure(-0.028, -0.037, -0.019), "share", "accuracy after minus before"),
        Measure("nfr", "negative flips (NFR)", nfr, "share", "right before, wrong now; mean over the runs of the old version"),
        Measure("floor", "noise floor", floor, "share", "negative flips between two runs of the old version"),
        Measure("mcnemar", "McNemar's test", Figure(0.00002), "p", "how likely is a split as uneven by chance"),
        *(Measure(k, k.replace("_", " "), Figure(v), "count", "items") for k, v in counts.items()),
    ]
    tests = [
        budget_of(decision, "all items"),
        budget_of("pass", "all items", kind="max_accuracy_drop", budget=0.05, figure=Figure(0.028, 0.019, 0.037),
               words="all items: drop of accuracy 2.8 % (95 % interval 1.9 % … 3.7 %), budget 5 %"),
        budget_of(decision, "domain = banking", items=312, figure=Figure(0.051, 0.022, 0.083)),
        budget_of("pass", "domain = travel", items=290, figure=Figure(0.003, 0.0, 0.019)),
        budget_of("fail" if decision == "fail" else "pass", "priority = must work", kind="max_flips", budget=0, items=40, p=None,
                figure=Figure(2.0 if decision == "fail" else 0.0), words="priority = must work: 2 items of 40 broke, 0 allowed"),
    ]  # fmt: skip
    headline = {
        "pass": "PASS: 0.49 % of 3\u202f077 items broke, 0.60 % beyond the noise floor; accuracy down 0.3 points.",
        "fail": "FAIL: 4.9 % of 3\u202f077 items broke, 3.8 % beyond the noise floor; accuracy down 2.8 points.",
        "undecided": "UNDECIDED: 1.9 % of 3\u202f077 items broke, 1.9 % beyond the noise floor; accuracy down 0.9 points.",
    }[decision]
    known: dict[str, Any] = {
        "decision": decision,
        "headline": headline,
        "reasons": [f"{t.words}: {t.decision}." for t in sorted(tests, key=lambda t: t.decision)],
        "cautions": ["minilm-v2.jsonl gives 2 answers that are no label and were never given before: n/a, none."],
        "old": Side("minilm-v1.jsonl", Figure(0.9012, 0.89, 0.911), 0, {"p50": 0.0041, "p95": 0.0093},
                    {"size_bytes": 90_900_000, "peak_bytes": 412_000_000, "wall_seconds": 14.2},
                    {"source": "runs/minilm-v1.jsonl", "sha256": "ab" * 32, "bytes": 812_000}),
        "new": Side("minilm-v2.jsonl", Figure(0.8731, 0.861, 0.884), 3, {"p50": 0.0022, "p95": 0.0051},
                    {"size_bytes": 45_400_000, "peak_bytes": 240_000_000},
                    {"source": "runs/minilm-v2.jsonl", "sha256": "cd" * 32, "bytes": 815_000}),
        "items": 3080, "missing": 3,
        "missing_ids": {"banking-00017": "timeout after 30 s", "banking-00018": "no output", "banking-02011": "HTTP 429"},
        "blocks": None, "task": "classification", "metric": "agreement",
        "chosen": "task by the outputs: few different texts", "binary": True, "level": 0.95, "tolerance": 0.0,
        "floor": floor, "floor_runs": ["minilm-v1 again.jsonl"], "tests": tests, "measures": measures, "slices": slices(9),
        "slices_left_out": {"user": "2,911 different values: nearly every item its own"},
        "broken": groups(sizes), "broken_ids": [f"banking-{n:05d}" for n in range(count)], "fixed": 64,
        "policy": {"max_nfr": 0.02, "max_accuracy_drop": 0.05, "max_flips": None, "level": 0.95, "tolerance": 0.0,
                   "slices": [{"column": "domain", "value": None, "max_nfr": 0.02},
                              {"column": "priority", "value": "must work", "max_flips": 0}]},
        "environment": {"instar": "0.2.0", "python": "3.11.9", "memory_bytes": 16 * 2**30, "commit": None},
        "command": "instar gate runs/minilm-v1.jsonl runs/minilm-v2.jsonl --again runs/minilm-v1-again.jsonl --policy gate.toml",
        "started": "2025-01-14T09:30:00Z", "seconds": 2.4,
    }  # fmt: skip
    return Result(**{**known, **given})


def plain(decision: Decision = "pass") -> Result:
    """The least that a judgement can hold: no floor, no slice, nothing broken."""
    side = Side("a", Figure(1.0), 0)
    said = "PASS: 0 % of 9 items broke; accuracy unchanged."
    return result(decision, headline=said, items=9, old=side, new=side, floor=None, floor_runs=[], slices=[],
                  slices_left_out={}, broken=[],
                  broken_ids=[], fixed=0, missing=0, missing_ids={}, measures=[], tests=[], reasons=[], cautions=[],
                  environment={}, policy={}, command="", started="", seconds=0.0)  # fmt: skip


def continuous() -> Result:
    """Scores instead of right and wrong."""
    made = result("fail")
    items = [broken(i, label=None, drop=0.62 - 0.01 * i, before="The cat sat on the mat.", after="Cat.") for i in range(8)]
    test = budget_of(
        "fail",
        "all items",
        kind="max_accuracy_drop",
        budget=0.01,
        figure=Figure(0.041, 0.022, 0.061),
        words="all items: drop of the mean mark 0.041, budget 0.01",
    )
    return replace(made, binary=False, metric="rougeL", task="generation", tolerance=0.05, tests=[made.tests[0], test],
                   broken=[Group("mat, cat", 8, 4.6, items)], broken_ids=[i.id for i in items],
                   measures=[m for m in made.measures if m.unit != "count"])  # fmt: skip


def hostile(text: str = HOSTILE) -> Result:
    """The same text wherever data can bring one."""
    made = result("fail")
    long = text + "x" * 100_000
    items = [broken(i, id=f"{i}{text}", input=long, label=text, before=long, after=text * 50) for i in range(4)]
    return replace(
        made,
        headline=f"Headline {text}", reasons=[text], cautions=[text], chosen=text, metric=text, task=text, command=text,
        old=replace(made.old, name=text, facts={text: text}), floor_runs=[text], missing_ids={text: text}, started=text,
        new=replace(made.new, name=text, latency={text: 1.0}, costs={text: 2.0}), slices_left_out={text: text},
        policy={text: text}, environment={text: [text]},
        tests=[replace(t, scope=text, words=text) for t in made.tests],
        measures=[*made.measures, Measure("odd", text, Figure(1.0), "score", text)],
        slices=[replace(made.slices[0], column=text, value=text), *made.slices],
        broken=[Group(text, 4, 4.0, items)], broken_ids=[item.id for item in items],
    )  # fmt: skip


def large() -> Result:
    """500 slices and 3000 broken items."""
    return result("fail", slices=slices(500), broken=groups([1200, 900, 500, 300, 100], 3000),
                  broken_ids=[f"banking-{n:05d}" for n in range(3000)])  # fmt: skip


ALL = {
    "pass": lambda: result("pass"), "fail": lambda: result("fail"), "undecided": lambda: result("undecided"), "plain": plain,
    "no floor": lambda: result("fail", floor=None, floor_runs=[]), "continuous": continuous, "hostile": hostile,
    "marked": lambda: hostile(MARKED), "large": large,
}  # fmt: skip
