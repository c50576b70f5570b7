"""One self-contained page from records alone. Reading records and drawing needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["report"]


def report(folders: Sequence[Path], out: Path, *, judgements: Sequence[Any] = ()) -> Path:
    """Write the page of the records under `folders` to `out` and return its path.

    folders: what `instar compare` wrote (each with `runs/*.json`). judgements: claims with their verdicts
    (`instar.bench.claims.Judgement`, or mappings with the same fields), shown in a section of their own.
    The same records give the same bytes. Raises RecordError (no or damaged records) and OutputError.
    """
    from instar import files
    from instar.bench import record
    from instar.report import page

    text = page.render(record.load_all([Path(folder) for folder in folders]), judgements)
    out = Path(out)
    files.folder(out.parent)
    files.write(out, text)
    return out
