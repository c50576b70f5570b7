"""What the commands of `instar encoder` are given, and how they tell how far they are."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.errors import DataError, PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.compat.saved import Saved
    from instar.interfaces import Encoder, Index
    from instar.retrieval.bridge import Bridge

STORES = ("exact:", "faiss:", "usearch:", "qdrant:", "lancedb:", "postgresql://", "postgres://")
_EVERY = 30.0
"""Seconds between two lines where there is no terminal to draw on."""

Store = Annotated[
    str,
    typer.Argument(
        help="exact:FOLDER, FILE.faiss, FILE.usearch, qdrant:PATH_OR_URL#COLLECTION, postgresql://…#TABLE or lancedb:PATH#TABLE."
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Setting name=value of the new encoder.")]
SetOld = Annotated[list[str] | None, typer.Option("--set-old", help="Setting name=value of the old encoder.")]
Head = Annotated[Path | None, typer.Option(help="A head that `instar encoder train` saved: reaches the old rows.")]
OldEncoder = Annotated[str | None, typer.Option("--old", help="The old encoder, which then reaches the old rows itself.")]
Merge = Annotated[
    str,
    typer.Option(
        "--fusion",
        help="How scores of old and new rows become one list: calibrated (their quantiles), rank, or cosine (as they are).",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def is_store(source: str) -> bool:
    """Whether a source is the address of a store."""
    return source.startswith(STORES) or source.endswith((".faiss", ".usearch"))


def encoder(source: str, settings: Sequence[str] | None) -> Encoder:
    """Open an encoder with settings as they are written. Raises what opening raises."""
    from instar.doors.opening import pairs
    from instar.encoders.opening import open_encoder

    return open_encoder(source, pairs(settings or []))


def head(path: Path | None) -> Saved | None:
    """Load a head, if one is given."""
    if path is None:
        return None
    from instar.compat import saved

    return saved.load(path)


def bridge(
    new: str, settings: Sequence[str] | None, path: Path | None, old: str | None, old_settings: Sequence[str] | None
) -> Bridge:
    """The new encoder, and what reaches old rows. Raises PlanError for settings of an old encoder that is not given."""
    from instar.retrieval.bridge import Bridge

    if old is None and old_settings:
        raise PlanError("--set-old are settings of the old encoder: give it with --old.")
    return Bridge(encoder(new, settings), head(path), None if old is None else encoder(old, old_settings))


def store(address: str, *, readonly: bool = False) -> Index:
    """Open a store."""
    from instar.retrieval.opening import open_index

    return open_index(address, readonly=readonly)


def sure(question: str, yes: bool) -> None:
    """Ask before what cannot be taken back. Raises PlanError where nobody can be asked; ends with 1 for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise PlanError(f"{question} Nobody is there to be asked: give --yes to do it.")
    if not typer.confirm(question):
        raise typer.Exit(1)


def printable(text: object) -> str:
    """Texts from stores and files without what would steer a terminal."""
    from instar.gate.words import printable as clean

    return clean(str(text))


class Telling:
    """How far something is: a line that is drawn over in a terminal; otherwise a line from time to time, with the time left."""

    def __init__(self, quiet: bool) -> None:
        from instar.cli.progress import answers

        self._bar = answers(quiet)
        self._lines = not quiet and not sys.stderr.isatty()

    def __enter__(self) -> Telling:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, name: str) -> Any:
        """A function (done, total) for one piece of work."""
        task = self._bar.add_task(name, total=None)
        started = time.monotonic()
        said: list[float] = [started]
        first: list[int] = []

        def told(done: int, total: int | None) -> None:
            self._bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not first:
                first.append(done)
            if self._lines and now - said[0] >= _EVERY:
                said[0] = now
                speed = (done - first[0]) / (now - started)
                left = f", {duration((total - done) / speed)} left" if total is not None and speed > 0 else ""
                sys.stderr.write(f"{name}: {done:,}{'' if total is None else f' of {total:,}'}{left}\n")

        return told


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def existing(path: Path) -> Path:
    """A file that is there. Raises DataError."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    return path
