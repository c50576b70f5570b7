"""The search of a PostgreSQL table: one statement over all generations and queries, so that it sees one snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instar.interfaces import Floats, Generation, Id
from instar.retrieval.postgres_server import Server, quoted
from instar.retrieval.postgres_table import Table, standing
from instar.retrieval.stamped import Stamp

_COSINES: Mapping[str, Callable[[float], float]] = {"<=>": lambda d: 1 - d, "<#>": lambda d: -d, "<->": lambda d: 1 - d * d / 2}
"""What a distance means for unit vectors."""

Found = dict[int, list[list[tuple[float, Id]]]]
"""Generation -> of each query (cosine, id)."""


@dataclass(frozen=True)
class Snapshot:
    """What one statement saw."""

    found: Found
    stamps: list[Stamp]
    lacking: list[int]
    """Generations in which rows stand and for which there was no query."""


def snapshot(
    server: Server,
    at: Table,
    stamps: Sequence[Stamp],
    operator: str,
    queries: Mapping[int, Floats],
    k: int,
    exact: Collection[int],
) -> Snapshot:
    """The k nearest rows of each generation that is asked for. Raises ChangedError when a stamp no longer fits the table.

    exact: generations in which no index is used.
    """
    kind, parts, parameters = at.ids.cast, [], list[Any]()
    for place, stamp in enumerate(stamps):
        number = stamp.generation.number
        if number not in queries:
            parts.append(
                f"SELECT {number}, NULL::bigint, NULL::{kind}, NULL::float8, NULL::text "
                f"WHERE EXISTS (SELECT FROM {at.sql} AS s WHERE {standing(stamps, place)})"
            )
            continue
        distance = f"s.{quoted(stamp.column)} {operator} q.v"
        # No index serves a sum.
        order = f"({distance}) + 0" if number in exact else distance
        parts.append(
            f"SELECT {number}, q.n, r.id::{kind}, r.d, NULL FROM unnest(%s::vector[]) WITH ORDINALITY AS q(v, n) "
            f"CROSS JOIN LATERAL (SELECT s.{at.id} AS id, {distance} AS d FROM {at.sql} AS s "
            f"WHERE {standing(stamps, place)} ORDER BY {order} LIMIT {k:d}) AS r"
        )
        parameters.append(server.rows(queries[number]))
    parts.append(
        "SELECT NULL, NULL, NULL, NULL, json_build_array(number, encoder, dim, name, vector_column)::text "
        f"FROM {at.stamps} WHERE table_name = %s"
    )
    rows = server.run(" UNION ALL ".join(parts), (*parameters, at.name), "search").fetchall()
    return _read(rows, at, _COSINES[operator], {number: len(values) for number, values in queries.items()})


def _read(rows: Sequence[Any], at: Table, cosine: Callable[[float], float], sizes: Mapping[int, int]) -> Snapshot:
    found: Found = {number: [[] for _ in range(size)] for number, size in sizes.items()}
    stamps, lacking = [], []
    for number, query, name, distance, stamp in rows:
        if number is None:
            *of, column = json.loads(stamp)
            stamps.append(Stamp(Generation(*of), column))
        elif query is None:
            lacking.append(number)
        else:
            found[number][query - 1].append((cosine(distance), at.ids.taken(name)))
    return Snapshot(found, sorted(stamps, key=lambda s: s.generation.number), lacking)
