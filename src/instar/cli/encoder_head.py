"""The commands around heads: `train` and `project`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.cli import encoder_given as given
from instar.cli.encoder_given import Quiet, Set
from instar.errors import DataError, PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.compat.learning import Fitted
    from instar.data.collection import Collection
    from instar.interfaces import Floats
    from instar.upgrade.sides import Side


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(train)
    app.command()(project)


def train(
    old: Annotated[str, typer.Argument(help="What is stored: an encoder, a file of vectors, or the store itself.")],
    new: Annotated[str, typer.Argument(help="The new encoder, or a file of its vectors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the head.")],
    data: Annotated[
        str | None, typer.Option(help="Texts (`id`, `text`, `label` where known), or a collection with a name.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="A head of `instar list`: ridge, procrustes, bt2, … with a preset as in bt2:cayley.")
    ] = "ridge",
    knob: Annotated[list[str] | None, typer.Option(help="name=value of the method.")] = None,
    set_old: Annotated[
        list[str] | None, typer.Option("--old", help="Setting name=value of OLD; of a file: encoder=SOURCE, what made it.")
    ] = None,
    set_new: Annotated[
        list[str] | None, typer.Option("--new", help="Setting name=value of NEW; of a file: encoder=SOURCE.")
    ] = None,
    items: Annotated[int, typer.Option(help="Most items to encode and fit on.")] = 20_000,
    steps: Annotated[int | None, typer.Option(help="Of training; closed forms have none.")] = None,
    previous: Annotated[Path | None, typer.Option(help="The head of the update before this one, whose new side is OLD.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw, the held-out tenth and training.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Fit a head, which lets vectors of NEW be compared with those that OLD stored, and say on a held-out tenth what it is worth.

    Labels are used where the data has them, the method can, and they are classes: 2,048 at most, which most items share. The head
    is saved with the fingerprints of both encoders, and is refused by any other.

    Examples:  `instar encoder train exact:store all-MiniLM-L6-v2 --data texts.jsonl -o head`
    ·  `instar encoder train all-MiniLM-L6-v2 st:my-fine-tune --data texts.jsonl --method bt2 -o head`
    ·  `instar encoder train old.npz new.npz --new encoder=all-MiniLM-L6-v2 -o head`
    """
    from instar import files
    from instar.bench import environment
    from instar.compat import learning, saved
    from instar.compat.pairs import of
    from instar.doors.opening import pairs
    from instar.retrieval.bridge import stamp
    from instar.upgrade import sides

    if items < learning.LEAST:
        raise PlanError(f"A head is fitted on {learning.LEAST} items or more; received --items {items}.")
    files.folder(out.parent)
    before = given.head(previous)
    texts = None if data is None else _sample(data, items, seed)
    with given.Telling(quiet) as telling:
        second = _side(new, pairs(set_new or []), texts, items, seed, telling)
        first = _side(old, pairs(set_old or []), texts, items, seed, telling, second.ids)
        ids, stored, encoded = sides.drawn(*_labelled(texts, *sides.paired(first, second)), items, seed)
        if before is not None:
            before.require(first.fingerprint, before.generations[-1].number)
        step = telling.begin(f"fitting {method}")
        fitted = learning.fit(
            method, of(stored, encoded, _labels(texts, ids)),
            old=first.fingerprint, previous=None if before is None else before.head, steps=steps, seed=seed,
            monitor=lambda done, _: step(done, steps), knobs=sides.knobs(pairs(knob or [])),
        )  # fmt: skip
    fingerprint = stamp(second.fingerprint, fitted.head)
    known = sides.generations(first, second, fitted.head.full_dim, fingerprint, () if before is None else before.generations)
    facts = {
        "method": method,
        "seed": seed,
        "quality": vars(fitted.quality),
        "labels_left_out": fitted.labels_left_out,
        "uncertainty": None if fitted.uncertainty is None else fitted.uncertainty.as_json(),
        "environment": environment.describe(),
    }
    saved.save(fitted.head, out, generations=known, facts=facts, calibration=fitted.calibration)
    if not quiet:
        _say(fitted, first, second, out)


def project(
    head: Annotated[Path, typer.Argument(help="A head that `instar encoder train` saved.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of vectors to write: .npy, .npz or .parquet.")],
    generation: Annotated[
        int | None, typer.Option(help="Whose rows are to be asked, counted as in the head; default: the one before the newest.")
    ] = None,
    vectors: Annotated[Path | None, typer.Option(help="Vectors of the new encoder.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Queries (`id`, `text`), which --encoder encodes.")] = None,
    encoder: Annotated[str | None, typer.Option(help="The new encoder, with --texts.")] = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Make queries of the new encoder fit for an untouched index of an older generation.

    Examples:  `instar encoder project head --texts queries.jsonl --encoder all-MiniLM-L6-v2 -o queries.npz`
    ·  `instar encoder project head --vectors new.npy --generation 0 -o old_space.npy`
    """
    import torch

    from instar.data.collecting import open_collection
    from instar.encoders import files
    from instar.retrieval.bridge import Bridge, as_read

    files.place(out)
    saved = given.head(head)
    assert saved is not None
    number = saved.head.newest - 1 if generation is None else generation
    if vectors is not None and texts is None:
        ids, found, _ = files.vectors(vectors)
    elif texts is not None and vectors is None and encoder is not None:
        across = Bridge(given.encoder(encoder, set_), saved)
        read = open_collection(str(given.existing(texts)))
        if read.texts is None:
            raise DataError(f"{texts} holds no texts.")
        ids = read.ids
        with given.Telling(quiet) as telling:
            found = across.encoder.encode(read.texts, "query", telling.begin(across.encoder.name))
    else:
        raise PlanError("Give either --vectors of the new encoder, or --texts with --encoder.")
    with torch.no_grad():
        made = saved.head.project(as_read(saved.head, found), number).numpy()
    files.write(out, ids, made)
    if not quiet:
        typer.echo(f"{len(made):,} queries for generation {number}, dimension {made.shape[1]}: {out}")


def _sample(data: str, items: int, seed: int) -> Collection:
    from instar.data.collecting import open_collection

    found = open_collection(data, sample=items, seed=seed)
    if found.texts is None:
        raise DataError(f"{data} holds no texts.")
    return found


def _side(
    source: str,
    settings: dict[str, Any],
    data: Collection | None,
    items: int,
    seed: int,
    telling: given.Telling,
    ids: Sequence[str] | None = None,
) -> Side:
    """Vectors of one encoder, for the texts, or for the ids where the other side has them."""
    from instar.encoders.opening import open_encoder
    from instar.upgrade import sides

    if given.is_store(source):
        if settings:
            raise PlanError(f"{source} is a store, whose stamp says what made it; it takes no settings.")
        with given.store(source, readonly=True) as index:
            return sides.of_store(index, data.ids if data is not None else ids, items, seed)
    if sides.is_file(source):
        made = settings.pop("encoder", None)
        if made is None and settings:
            raise PlanError(f"{source} is a file: its setting is encoder=SOURCE, with that encoder's own settings.")
        return sides.of_file(Path(source), None if made is None else open_encoder(made, settings))
    if data is None or data.texts is None:
        raise PlanError(f"{source} is run, so it needs texts: --data FILE with `id` and `text`.")
    encoder = open_encoder(source, settings, texts=data.texts)
    return sides.of_encoder(encoder, data.ids, data.texts, telling.begin(encoder.name))


def _labelled(data: Collection | None, ids: list[str], old: Floats, new: Floats) -> tuple[list[str], Floats, Floats]:
    """Of vectors from files, the items that the data has labels for. Raises DataError where there are none."""
    if data is None or data.labels is None:
        return ids, old, new
    known = set(data.ids)
    kept = [i for i, name in enumerate(ids) if name in known]
    if not kept:
        raise DataError(f"{data.name} has no label for any of the {len(ids)} vectors, like {ids[0]!r}; it has {data.ids[0]!r}.")
    return [ids[i] for i in kept], old[kept], new[kept]


def _labels(data: Collection | None, ids: Sequence[str]) -> list[Any] | None:
    if data is None or data.labels is None:
        return None
    known = dict(zip(data.ids, data.labels, strict=True))
    return [known[name] for name in ids]


def _say(fitted: Fitted, old: Side, new: Side, out: Path) -> None:
    q = fitted.quality
    typer.echo(
        f"Fitted on {q.fitted:,} items; of {q.held_out:,} held out, a vector of {given.printable(new.name)} is brought to within "
        f"a cosine of {q.cosine:.3f} of its own stored vector of {given.printable(old.name)},\nfinds that one first in "
        f"{q.itself:.1%} of cases, and finds {q.neighbours:.1%} of its 10 nearest neighbours."
    )
    if q.uncertainty is not None:
        typer.echo(
            f"Which rows it explains badly is known with a rank correlation of {q.uncertainty:.2f} (--order least-certain goes "
            "by it)."
        )
    if fitted.labels_left_out:
        typer.echo(f"It was fitted without labels: {fitted.labels_left_out}.")
    typer.echo(f"The head is saved in {out}. What it is worth in search, beside its alternatives, `instar encoder report` says.")
