"""What problems of predictors share: a predictor must read what the problem has."""

from __future__ import annotations

from instar.catalogue import Build
from instar.errors import DataError


def require_reads(build: Build, wanted: str) -> None:
    """Raise DataError for a predictor whose card says that it reads something else."""
    reads = build.card.capability("reads")
    if reads != wanted:
        raise DataError(f"{build.card.slug} reads {reads or 'nothing that its card says'}, and this problem has {wanted}.")
