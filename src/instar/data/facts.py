"""Real facts with several relations for each subject: films and countries, as sentences and as facts to edit.

A small language model keeps facts at the subject only where a subject has several of them, said in several ways and orders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instar.data import datasets
from instar.errors import DataError

TEMPLATES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "film": {
        "director": ("{} was directed by", "{} is a film by the director", "The director of {} is"),
        "distributor": ("{} was distributed by", "{} came to cinemas through", "The distributor of {} is"),
        "genre": ("{} belongs to the genre", "{} is a film of the kind", "The genre of {} is"),
        "year": ("{} was released in", "{} came out in the year", "The year of {} is"),
        "rating": ("{} is rated", "{} was given the rating", "The rating of {} is"),
    },
    "country": {
        "capital": ("{} has the capital", "{} is governed from the city of", "The capital of {} is"),
        "subregion": ("{} is located in", "{} lies in the region of", "The region of {} is"),
        "language": ("{} has the language", "{} is a country that speaks", "The language of {} is"),
        "currency": ("{} has the currency", "{} is a country that pays with the", "The currency of {} is"),
        "demonym": ("{} is home to people called", "{} is a country of people who are", "The demonym of {} is"),
    },
}
"""Kind of subject -> relation -> ways to ask, each of which ends before the answer. The first one is the prompt of an edit."""


@dataclass(frozen=True)
class Entity:
    """A film or a country and what is known of it."""

    kind: str
    name: str
    known: Mapping[str, str]
    """Relation -> answer."""

    def prompts(self, relation: str) -> list[str]:
        """The ways to ask for a relation."""
        return [template.format(self.name) for template in TEMPLATES[self.kind][relation]]

    def sentence(self, relation: str, template: int) -> str:
        """The answer, said in one of the ways."""
        return f"{self.prompts(relation)[template]} {self.known[relation]}."


def entities(films: int = 130, countries: int = 70) -> list[Entity]:
    """So many films and countries of which all five relations are known, chosen by the hash of their names.

    Raises DataError, and what `datasets.locate` raises.
    """
    movies, states = _reduced() or _original()
    found = _complete("film", "title", movies), _complete("country", "name", states)
    if len(found[0]) < films or len(found[1]) < countries:
        known = " and ".join(str(len(part)) for part in found)
        raise DataError(f"There are {known} films and countries of which all is known; asked for {films} and {countries}.")
    return found[0][:films] + found[1][:countries]


def _complete(kind: str, key: str, rows: Sequence[Mapping[str, Any]]) -> list[Entity]:
    found: dict[str, Entity] = {}
    for row in {str(row[key]): row for row in reversed(rows)}.values():  # of films of one title, the first
        known = {relation: row.get(relation) for relation in TEMPLATES[kind]}
        name = str(row[key])
        plain = (
            len(name) <= 40 and name.isascii() and name[:1].isalpha() and name[-1:].isalnum()
        )  # others are poor subjects, or misspelt
        if plain and all(isinstance(value, str) and value for value in known.values()):
            found[name] = Entity(kind, name, {relation: str(value) for relation, value in known.items()})
    return sorted(found.values(), key=lambda entity: hashlib.sha256(entity.name.encode()).digest())


_REDUCED = {
    "movies_facts.json": "ee5716dab8da6ca6a336680e081404f245c672e071411a861d530ab7e3622d83",
    "countries_facts.json": "a2e33296e63a8613f47b10e85550d2191215822bd517cdaba351715a67367c1c",
}
"""Both tables with these columns alone, where a developer keeps them under INSTAR_DATA."""


def _reduced() -> list[list[dict[str, Any]]] | None:
    folder = Path(os.environ.get("INSTAR_DATA") or "/nonexistent") / "multi_attribute_facts"
    held = [folder / name for name in _REDUCED]
    if not all(path.is_file() for path in held):
        return None
    for path in held:
        received = hashlib.sha256(path.read_bytes()).hexdigest()
        if received != _REDUCED[path.name]:
            raise DataError(f"{path} is not the pinned file: SHA-256 {received}, expected {_REDUCED[path.name]}. Remove it.")
    return [json.loads(path.read_text("utf-8")) for path in held]


def _original() -> list[list[dict[str, Any]]]:
    """Both tables as they are published."""
    movies, countries = (json.loads(path.read_text("utf-8")) for path in datasets.locate("multi_attribute_facts"))
    columns = {"director": "Director", "distributor": "Distributor", "genre": "Major Genre", "rating": "MPAA Rating"}
    films = [
        {"title": row["Title"], "year": str(row["Release Date"])[-4:], **{to: row[of] for to, of in columns.items()}}
        for row in movies
    ]
    states = [
        {
            "name": row["name"]["common"],
            "capital": next(iter(row["capital"]), None),
            "subregion": row["subregion"],
            "language": next(iter(row["languages"].values()), None) if row["languages"] else None,
            "currency": next((c["name"] for c in row["currencies"].values()), None) if row["currencies"] else None,
            "demonym": row["demonyms"].get("eng", {}).get("m"),
        }
        for row in countries
    ]
    return [films, states]
