"""The command `backfill`: re-encode the rows of a store while it is in use."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.cli import encoder_given as given
from instar.cli.encoder_given import Head, Merge, OldEncoder, Quiet, Set, SetOld, Store
from instar.errors import DataError, GenerationError, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.compat.saved import Saved
    from instar.data.collection import Collection
    from instar.interfaces import Generation, Index
    from instar.retrieval.backfill import Backfill, Outcome
    from instar.retrieval.bridge import Bridge
    from instar.retrieval.order import Order
    from instar.retrieval.probe import Curve, Probe

_SHOWN = 10
_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(backfill)


def backfill(
    store: Store,
    new: Annotated[str, typer.Argument(help="The new encoder.")],
    data: Annotated[str, typer.Option(help="Texts of the rows: a file with `id` and `text`, or a collection with a name.")],
    head: Head = None,
    set_: Set = None,
    order: Annotated[
        str,
        typer.Option(
            help="Which rows go first: random, most-queried (pays where some are asked for far more often than others) or "
            "least-certain (as the head estimates; was no better than random where we measured it)."
        ),
    ] = "random",
    counts: Annotated[
        Path | None, typer.Option(help="File with `id` and `count`; default: the column `count` of the data.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Most rows a second.")] = None,
    until: Annotated[float, typer.Option(help="Stop at this share of all rows, or (above 1) at this number of rows.")] = 1.0,
    batch: Annotated[int, typer.Option(help="Rows that are encoded and written at a time.")] = 256,
    verify: Annotated[int, typer.Option(help="Rows of each batch that are read back; 0 checks none.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    on_top: Annotated[bool, typer.Option("--on-top", help="Begin although an earlier change is not finished.")] = False,
    probe: Annotated[
        Path | None,
        typer.Option(help="Queries with known answers (`id`, `text`, `relevant`), whose recall is measured on the way."),
    ] = None,
    old: OldEncoder = None,
    set_old: SetOld = None,
    k: Annotated[int, typer.Option(help="Recall at k, of the probe.")] = 10,
    every: Annotated[float, typer.Option(help="Share of the rows between two measurements.")] = 0.05,
    report: Annotated[Path | None, typer.Option(help="The record of `instar encoder report`: what recall it predicted.")] = None,
    arm: Annotated[str | None, typer.Option(help="Its arm; default: the head's, or two_encoders.")] = None,
    margin: Annotated[
        float, typer.Option(help="How far recall may lie below the prediction (or its start); 1 never stops.")
    ] = 0.05,
    fusion: Merge = "calibrated",
    log: Annotated[Path | None, typer.Option(help="Append what the probe measures to this file, as JSON lines.")] = None,
    unmoved: Annotated[Path | None, typer.Option(help="Write the rows that could not be moved, and why, as JSON lines.")] = None,
    quiet: Quiet = False,
) -> None:
    """Re-encode the rows of a store while it is in use.

    May be killed at any moment: the same command goes on. Ctrl-C finishes the batch. Older vectors are kept until
    `instar encoder finish`; `instar encoder rollback` takes everything back.

    Exit code: 0 done, 1 rows could not be moved or are not found (they are listed, and as they were), 3 error, 130 interrupted.

    Examples:  `instar encoder backfill exact:store all-MiniLM-L6-v2 --data texts.jsonl`
    ·  `instar encoder backfill exact:store all-MiniLM-L6-v2 --data texts.jsonl --head head --order most-queried --until 0.3`
    ·  `instar encoder backfill docs.faiss st:my-model --data texts.jsonl --rate 50 --probe queries.jsonl --old all-MiniLM-L6-v2`
    """
    from instar.data.collecting import open_collection
    from instar.retrieval.backfill import Backfill
    from instar.retrieval.verify import Verification

    saved = given.head(head)
    found = open_collection(data, queries=probe)
    if found.texts is None:
        raise DataError(f"{data} holds no texts.")
    chosen = _order(order, found.counts, counts, saved)
    across = given.bridge(new, set_, head, old, set_old)
    with given.store(store) as index, given.Telling(quiet) as telling:
        generation = across.generation(index)
        _one_at_a_time(index, generation, on_top)
        index.begin(generation)
        asked = None
        if probe is not None:
            predicted = None if report is None else _predicted(report, arm or (_method(saved) if saved else "two_encoders"))
            asked = _probe(found, across, index, k=k, every=every, margin=margin, fusion=fusion, predicted=predicted)
        work = Backfill(
            index, generation, across.documents, dict(zip(found.ids, found.texts, strict=True)),
            order=chosen, seed=seed, batch=batch, rate=rate, until=until, verify=Verification(verify), probe=asked, log=log,
        )  # fmt: skip
        outcome = _run(work, telling.begin(f"generation {generation.number}"), quiet)
    if unmoved is not None:
        _list(outcome, unmoved)
    if not quiet:
        _say(outcome, store)
    raise typer.Exit(_INTERRUPTED if outcome.stopped else 0 if outcome.clean else 1)


def _one_at_a_time(index: Index, wanted: Generation, on_top: bool) -> None:
    """A model that is not quite the one with which the change began must not begin another one unnoticed."""
    stored, counts = index.generations(), index.counts()
    if on_top or len(stored) == 1 or wanted in stored:
        return
    newest = stored[-1]
    raise GenerationError(
        f"A change to {newest.name} ({newest.encoder[:12]}) is under way: {counts.get(newest.number, 0)} of "
        f"{sum(counts.values())} rows are new. Received {wanted.name} ({wanted.encoder[:12]}). Go on with that encoder and its "
        "settings, end or take back the change (finish, rollback), or give --on-top to keep three generations at once."
    )


def _order(name: str, known: Mapping[str, float], counts: Path | None, saved: Saved | None) -> Order:
    from instar.retrieval import order
    from instar.retrieval.uncertainty import Uncertainty

    if name == "random":
        return order.random
    if name == "most-queried":
        if counts is None and not known:
            raise DataError("The order most-queried needs counts: --counts FILE with `id` and `count`, or that column in --data.")
        return order.most_queried(known if counts is None else order.counts(counts))
    if name == "least-certain":
        if saved is None or not saved.facts.get("uncertainty"):
            raise DataError(
                "The order least-certain needs a --head that knows what it is unsure of: trained on 640 items or more."
            )
        return order.least_certain(Uncertainty.of_json(saved.facts["uncertainty"]))
    raise PlanError(f"An order is random, most-queried or least-certain; received '{name}'.")


def _probe(asked: Collection, across: Bridge, index: Index, *, fusion: str, **settings: Any) -> Probe:
    from instar.retrieval.probe import Probe

    if asked.queries is None or asked.relevant is None:
        raise DataError("A probe needs the texts of its queries.")
    relevant = [[asked.ids[place] for place in places] for places in asked.relevant]
    return Probe(across.queries(asked.queries, index), relevant, fusion=across.fusion(fusion, index), **settings)


def _method(saved: Saved) -> str:
    return str(saved.facts.get("method", ""))


def _predicted(path: Path, arm: str) -> Curve:
    from instar.upgrade import result

    found = {one.id: one for one in result.load(path).arms}
    if arm not in found or not found[arm].curve:
        known = ", ".join(name for name, one in found.items() if one.curve)
        raise DataError(f"{path} predicts nothing for '{arm}'; --arm may be one of {known}.")
    return [(point.fraction, point.recall.value) for point in found[arm].curve]


def _run(work: Backfill, progress: Any, quiet: bool) -> Outcome:
    """Run until done; the first Ctrl-C (or SIGTERM) lets the batch finish, the second ends at once, which is as safe."""

    def stop(number: int, frame: object) -> None:
        work.stop()
        signal.signal(number, signal.default_int_handler)
        if not quiet:
            sys.stderr.write("Finishing this batch. Once more ends at once; nothing is lost either way.\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return work.run(progress)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(outcome: Outcome, store: str) -> None:
    speed = f", {outcome.moved / outcome.seconds:.3g} a second" if outcome.seconds > 0 and outcome.moved else ""
    share = f", {outcome.encode_seconds / outcome.seconds:.0%} of it in the encoder" if outcome.moved and outcome.seconds else ""
    typer.echo(f"{outcome.moved:,} rows moved in {given.duration(outcome.seconds)}{speed}{share}; {outcome.checked:,} read back.")
    for fraction, recall in (outcome.curve[0], outcome.curve[-1]) if len(outcome.curve) > 1 else ():
        typer.echo(f"recall of the probe with {fraction:.0%} of the rows new: {recall:.3f}")
    for names, what in (
        (outcome.lacking, "have no text"),
        ([f"{name} ({reason})" for name, reason in outcome.failed.items()], "could not be encoded"),
        (outcome.unfound, "were written but are not found by their own vectors"),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            typer.echo(f"{len(names):,} rows {what}: {given.printable(', '.join(map(str, names[:_SHOWN])))}{more}.")
    if outcome.lost:
        typer.echo(
            f"There are {outcome.lost} rows fewer than at the beginning. A backfill removes none: another program did, or the "
            "store lost them. Compare the ids with your source."
        )
    if outcome.stopped:
        typer.echo("Stopped. The same command goes on from here.")
    if outcome.left:
        typer.echo(f"{outcome.left:,} of {outcome.rows:,} rows are old, and searchable as before.")
    elif outcome.clean:
        typer.echo(
            f"All {outcome.rows:,} rows are new. Keep the way back as long as you like; `instar encoder finish {store}` ends it."
        )


def _list(outcome: Outcome, path: Path) -> None:
    from instar import files

    rows = [{"id": name, "reason": "no text"} for name in outcome.lacking]
    rows += [{"id": name, "reason": reason} for name, reason in outcome.failed.items()]
    rows += [{"id": name, "reason": "not found by its own vector"} for name in outcome.unfound]
    files.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
