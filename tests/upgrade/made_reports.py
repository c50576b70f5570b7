"""Reports on a change of encoder as they are written, made by hand: every kind of upgrade and truth, and hostile texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from instar.upgrade.result import Arm, Check, Choice, During, Figure, Kind, Point, Report, Side

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; \x1b[31m\x00\x07 \u202eevil\u202c \ud800 $x^2$ {{ 7*7 }} ]]>"
)
"""Markup, an escape sequence, controls, a right-to-left override, half a character, mathematics, a template."""
MARKED = (
    "@octocat #12 org/repo#3 https://evil.example www.evil.example me@evil.example | a `b` ``c`` **d** ![x](y) [z](w)\n# e\n- f"
)
"""What Markdown would make something of."""
SHARES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Upgrade:
    """An upgrade: recall with the old encoder, with the new one, and of every arm before anything is re-encoded."""

    old: float
    new: float
    now: dict[str, float]
    hours: float | None = 14.2


UNRELATED = Upgrade(
    0.612, 0.784,
    {"no_map": 0.011, "ridge": 0.402, "procrustes": 0.371, "low_rank_affine": 0.388, "residual_mlp": 0.419, "bct": 0.507,
     "ract": 0.498, "bt2": 0.585, "bt2:cayley": 0.583, "regression:l2": 0.31},
)  # fmt: skip
FINE_TUNE = Upgrade(
    0.702, 0.741,
    {"no_map": 0.726, "ridge": 0.717, "procrustes": 0.722, "low_rank_affine": 0.715, "residual_mlp": 0.719, "bt2": 0.704},
)  # fmt: skip
_TITLES: dict[str, tuple[str, Kind, str]] = {
    "keep": ("Keep everything", "as it is", "The old encoder answers and the old vectors stay."),
    "two_encoders": ("Both encoders", "two encoders",
                     "Every query is encoded twice; the old encoder searches old rows, the new one new rows."),
    "no_map": ("New query encoder, no map", "switch", "Only the encoder of queries changes; old rows are compared as they are."),
    "ridge": ("Ridge map", "map", "A linear map, fitted by least squares with a penalty, from new vectors to old ones."),
    "procrustes": ("Procrustes map", "map", "The rotation that fits best, from new vectors to old ones."),
    "low_rank_affine": ("Low-rank affine map", "map", "A map of few parameters, trained on pairs."),
    "residual_mlp": ("Residual MLP map", "map", "A small network beside the identity, trained on pairs."),
    "bct": ("BCT", "trained head", "A head trained so that the old classifier still reads its vectors."),
    "ract": ("RACT", "trained head", "A head trained by contrast with old vectors."),
    "bt2": ("BT²", "trained head", "A head whose vector begins with the old space and adds 32 dimensions."),
    "bt2:cayley": ("BT², Cayley transform", "trained head", "BT² with another parameterisation of its rotations."),
    "regression:l2": ("L2 regression", "trained head", "A head trained to reproduce old vectors."),
}  # fmt: skip
_WORDS = {
    "keep": "keeping the old encoder",
    "two_encoders": "asking with both encoders",
    "no_map": "switching only the query encoder, without a map",
}
EXAMPLES = [
    {
        "becomes": "right",
        "query": "In what year did the university open its first library?",
        "relevant": ["The first library of the university opened its doors in 1873, in the north wing."],
        "old": ["The university was founded in 1842 by three priests.", "Opening hours of the city library changed in 1990."],
        "arm": ["The first library of the university opened its doors in 1873, in the north wing.",
                "The university was founded in 1842 by three priests."],
        "new": ["The first library of the university opened its doors in 1873, in the north wing.",
                "A second library, for the sciences, followed in 1911."],
    },
    {
        "query": "What do bees make honey from?",
        "relevant": ["Honey is made by bees from the nectar of flowers, which they carry home in a second stomach." * 4],
        "old": ["Honey is made by bees from the nectar of flowers, which they carry home in a second stomach." * 4],
        "arm": ["Wax is what bees build their combs of."],
        "new": ["Honey is made by bees from the nectar of flowers, which they carry home in a second stomach." * 4],
    },
]  # fmt: skip


def figure(value: float, half: float = 0.013, shift: float | None = 0.004) -> Figure:
    ends = (max(-1.0, value - half), min(1.0, value + half))
    return Figure(value, *ends, None if shift is None else value + shift)


def arm(name: str, upgrade: Upgrade, **given: Any) -> Arm:
    """An arm whose recall rises evenly from what it is now to that of the new encoder."""
    title, kind, idea = _TITLES[name]
    now = {"keep": upgrade.old, "two_encoders": upgrade.old}.get(name, upgrade.now.get(name, 0.0))
    end = upgrade.old if name == "keep" else upgrade.new - (0.006 if kind == "trained head" else 0.0)
    curve = []
    for share in SHARES[:1] if name == "keep" else SHARES:
        recall = now + (end - now) * share**1.1
        hours = None if upgrade.hours is None else upgrade.hours * share + (0.02 if kind in ("map", "trained head") else 0.0)
        size = 100_000 * 4 * (384 * (1 - share) + (416 if kind == "trained head" else 384) * share)
        curve.append(Point(share, figure(recall), figure(recall * 0.8), figure(recall - upgrade.old, 0.011), hours, size))
    known: dict[str, Any] = {"curve": curve, "fusion": "quantile" if name == "no_map" else "cosine", "query_seconds": 0.0041}
    known |= {"fit_seconds": {"map": 0.8, "trained head": 71.0}.get(kind, 0.0)}
    return Arm(name, title, kind, idea, **{**known, **given})


def choices(upgrade: Upgrade, arms: Sequence[Arm]) -> list[Choice]:
    by_id = {one.id: one for one in arms}
    best = max(("keep", *upgrade.now), key=lambda name: by_id[name].curve[0].recall.value)
    found = []
    for place, share in enumerate(SHARES):
        name = best if share == 0 else "two_encoders" if by_id[best].kind == "as it is" and share < 1 else best
        name = "no_map" if share == 1 else name
        point = by_id[name].curve[place]
        words = _WORDS.get(name, "the new encoder alone") if share < 1 else "the new encoder alone"
        found.append(Choice(share, point.hours, name, point.recall, share not in (0.1, 0.2), words))
    return found


def report(upgrade: Upgrade = UNRELATED, **given: Any) -> Report:
    arms = [arm(name, upgrade) for name in ("keep", "two_encoders", *upgrade.now)]
    hours = upgrade.hours
    known: dict[str, Any] = {
        "headline": "Keep the old encoder until the re-encoding is under way: every map loses more than the new encoder gains.",
        "advice": [
            "While re-encoding, ask both encoders and merge by cosine: recall@10 rises from 61.2 % to 69.3 % at one half.",
            "Everything re-encoded takes 14 hours and brings recall@10 to 78.4 %.",
            "If queries may be encoded only once, BT² loses 2.7 points at first and nothing at the end.",
        ],
        "cautions": ["The sample holds 20 000 of 100 000 rows: recall in the whole index is lower for every arm alike."],
        "choices": choices(upgrade, arms),
        "arms": arms,
        "old": Side("lsa (dims=384)", 384, "ab" * 32, figure(upgrade.old), figure(0.44), {"source": "lsa"}),
        "new": Side("all-MiniLM-L6-v2", 384, "cd" * 32, figure(upgrade.new), figure(0.61), {"pooling": "mean"}),
        "data": "squad",
        "documents": 20_000,
        "rows": 100_000,
        "queries": 4_000,
        "truth": "queries",
        "k": 10,
        "check": Check(2_000, 72, 72, 0.013, "residual_mlp at 25 %", 0.017),
        "kind_of_upgrade": "unrelated encoders",
        "during": During("two_encoders", "cosine", True, _WORDS["two_encoders"]),
        "likeness": {"cka": 0.31, "neighbours": 0.22, "cosine": 0.004},
        "hours_full": hours,
        "bytes_old": 153_600_000.0,
        "bytes_new": 153_600_000.0,
        "examples": EXAMPLES,
        "facts": {"source": "squad_nqg dev", "sha256": "ef" * 32, "fitting": 2_000, "held out": 2_000},
        "environment": {"python": "3.11.2", "cpu": "a processor", "threads": 1},
        "command": "instar encoder report lsa all-MiniLM-L6-v2 --data squad",
        "started": "2025-06-01T12:00:00+00:00",
        "seconds": 171.0,
        "seconds_encoding": 96.0,
    }
    return Report(**{**known, **given})


def fine_tune() -> Report:
    return report(
        FINE_TUNE,
        headline="Switch the query encoder now and re-encode at leisure: without any map it already beats the old search.",
        advice=["Switch to the new encoder for queries today: recall@10 rises from 70.2 % to 72.6 % and nothing is re-encoded."],
        cautions=[],
        kind_of_upgrade="same encoder, fine-tuned",
        likeness={"cka": 0.97, "neighbours": 0.81, "cosine": 0.94},
    )


def labelled() -> Report:
    return report(truth="labels", data="clinc150", documents=4_500, rows=4_500, queries=4_500, examples=[])


def without_truth() -> Report:
    made = report(
        replace(UNRELATED, old=0.223, new=1.0),
        truth="neighbours",
        check=Check(2_000, 72, 66, 0.034, "bt2 at 0 %", 0.016),
        cautions=["Nobody said what is relevant: recall is the share of the new encoder's own first results that are found."],
    )
    exact = Figure(1.0, 1.0, 1.0, 1.0)
    return replace(made, new=replace(made.new, own_recall=exact, own_ap=exact))


def not_run() -> Report:
    made = report()
    failed = {
        "bct": "needs labels, and the data have none",
        "residual_mlp": "the loss was not finite after step 40 of 2000; try a smaller learning rate",
        "ridge": "12 pairs are too few for 384 dimensions: at least 768 are needed",
    }
    arms = [replace(a, curve=[], not_run=failed[a.id]) if a.id in failed else a for a in made.arms]
    return replace(made, arms=arms)


def no_hours() -> Report:
    made = report(replace(UNRELATED, hours=None))
    return replace(made, command="", examples=[], arms=[replace(a, query_seconds=None) for a in made.arms])


def bare() -> Report:
    """The least that a report can hold."""
    made = report(during=None, choices=[], advice=[], cautions=[], examples=[], likeness={}, facts={}, environment={})
    only = replace(made.arms[0], curve=[replace(made.arms[0].curve[0], recall=Figure(0.612), against_old=Figure(0.0))])
    sides = {s: replace(getattr(made, s), own_recall=Figure(0.5), own_ap=Figure(0.4), facts={}) for s in ("old", "new")}
    return replace(made, arms=[only], **sides, check=Check(0, 0, 0, 0.0, "", 0.0), hours_full=None, bytes_old=0.0, bytes_new=0.0)


def large() -> Report:
    """More arms than a picture or a terminal shows, and long texts."""
    made = report()
    more = [replace(arm("ridge", UNRELATED), id=f"mine{i}:Map", title=f"My map number {i}") for i in range(40)]
    long = "What a reader must know before believing it, at some length. " * 12
    return replace(made, arms=[*made.arms, *more], advice=[long] * 8, cautions=[long] * 5, headline=long, examples=EXAMPLES * 20)


def hostile(text: str = HOSTILE) -> Report:
    """The text stands wherever a record can hold one."""
    made = report()
    arms = [replace(a, title=text, idea=text) for a in made.arms] + [Arm(text, text, "map", text, not_run=text)]
    example = {"query": text, "relevant": [text], "old": [text], "arm": [text], "new": [text]}
    return replace(
        made,
        headline=text, advice=[text], cautions=[text], arms=arms, data=text, command=text, started=text, kind_of_upgrade=text,
        choices=[replace(c, words=text) for c in made.choices], during=During(text, text, False, text),
        old=replace(made.old, name=text, facts={text: text}),
        new=replace(made.new, name=text, facts={"a": [text], "b": {text: 1}}),
        check=replace(made.check, worst_at=text), likeness={text: 0.5}, examples=[example], facts={text: text},
        environment={text: text},
    )  # fmt: skip


ALL = {
    "unrelated": report,
    "fine-tune": fine_tune,
    "labels": labelled,
    "no truth": without_truth,
    "not run": not_run,
    "no hours": no_hours,
    "bare": bare,
    "large": large,
    "hostile": hostile,
    "marked": lambda: hostile(MARKED),
}
