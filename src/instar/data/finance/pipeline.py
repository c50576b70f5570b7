"""The pipeline: ingest, normalise, dedupe, link, summarise, score, align, build; each stage restartable and incremental."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from instar.data.finance import dedupe, joining, normalise, tables, texts
from instar.data.finance.catalogue import Catalogue, Cell, Done
from instar.data.finance.config import Config
from instar.data.finance.raw import RawItem, RawStore
from instar.data.finance.scoring import Scorer, scorer
from instar.data.finance.sources import Source, source
from instar.data.finance.transport import FetchError, Offline, Polite, Transport
from instar.errors import DataError, ShapeError, UnknownNameError

STAGES = ("ingest", "normalise", "dedupe", "link", "summarise", "score", "align", "build")
Told = Callable[[str, float], None]


@dataclass
class Ingested:
    """What a round of fetching brought."""

    new: int = 0
    unchanged: int = 0
    failed: list[str] = field(default_factory=list)
    """Why, for each address that gave nothing. The others were fetched all the same."""


@dataclass
class Ran:
    """What a run did."""

    ingested: Ingested | None = None
    stages: list[Done] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class NewsPricePipeline:
    """News and prices of a configuration, in one store that updates itself.

    Args:
        config: what the store is made of. transport: how addresses are asked (default: not at all; files are read anyhow). A
            `ReplayTransport` answers from recordings, a `Network` asks.
        as_of: an instant: only what was retrieved up to then counts, in a build of its own beside the main one. Then nothing is
            fetched.
        now: the clock, for tests.

    Everything stands in `config.store`: raw contents and their manifest, parts of tables as Parquet, the catalogue. Run again
    after a kill at any moment, the tables are those of an undisturbed run. Raises MissingExtraError without `instar[finance]`.
    """

    def __init__(
        self,
        config: Config,
        *,
        transport: Transport | None = None,
        as_of: datetime | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if as_of is not None and as_of.tzinfo is None:
            raise ShapeError(f"as_of is an instant and needs a zone; received {as_of}.")
        self.config, self.as_of, self.now = config, as_of, now
        self.transport: Transport = transport or Offline()
        self.raw = RawStore(config.store)
        self.sources: dict[str, Source] = {given.name: source(given) for given in config.sources}
        self.build = "main" if as_of is None else f"as of {as_of.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

    @property
    def build_id(self) -> str:
        """16 digits for everything that decides a build but its inputs."""
        config = self.config
        facts = [
            getattr(config, name)
            for name in ("calendar", "alignment", "urls", "near", "summary", "count", "bonus", "scorer", "text")
        ]
        return tables.digest(facts, config.rate, config.window, self.build)[:16]

    def run(self, stages: Sequence[str] = STAGES, told: Told | None = None) -> Ran:
        """Bring these stages up to date, in their order.

        told: called after each stage with its name and seconds. Raises UnknownNameError, DataError, OutputError, and what
        scorers raise; what was committed before stands.
        """
        for name in stages:
            if name not in STAGES:
                raise UnknownNameError.among("stage", name, STAGES)
        if self.as_of is not None and "ingest" in stages:
            stages = [name for name in stages if name != "ingest"]
        ran = Ran()
        with Catalogue(self.config.store) as catalogue:
            for name in STAGES:
                if name in stages:
                    start = time.perf_counter()
                    if name == "ingest":
                        ran.ingested = self._ingest()
                    else:
                        ran.stages.append(catalogue.stage(self.build, name, self._cells(name, catalogue)))
                    ran.seconds[name] = time.perf_counter() - start
                    if told is not None:
                        told(name, ran.seconds[name])
            catalogue.tidy()
        return ran

    def poll(self, told: Told | None = None) -> Ran:
        """Fetch what is new, and let it flow through all stages: what changed is computed again, the rest is kept."""
        return self.run(told=told)

    def _ingest(self) -> Ingested:
        found, hosts = Ingested(), dict[str, float]()
        for given in self.sources.values():
            polite = Polite(self.transport, per_minute=given.per_minute, hosts=hosts)
            began, failed = self.now(), len(found.failed)
            since, cursor = self.raw.known(given.name)
            try:
                for item in given.list(since, cursor):
                    self._fetch(given, item, polite, found)
            except (DataError, ShapeError) as error:
                found.failed.append(str(error))
            if len(found.failed) == failed:
                self.raw.finish(given.name, began)
        return found

    def _fetch(self, given: Source, item: object, transport: Transport, found: Ingested) -> None:
        try:
            answer = given.fetch(item, transport)  # type: ignore[arg-type]
        except FetchError as error:
            found.failed.append(str(error))
            return
        if answer.status == 304:
            found.unchanged += 1
            return
        line = RawItem(
            source=given.name,
            url=answer.url,
            retrieved_at=self.now().astimezone(UTC).isoformat(),
            status=answer.status,
            sha256=hashlib.sha256(answer.body).hexdigest() if answer.good else "",
            size=len(answer.body) if answer.good else 0,
            etag=answer.headers.get("etag", ""),
            content_type=answer.headers.get("content-type", ""),
            waits=True,
        )
        new = self.raw.add(line, answer.body if answer.good else b"")
        if not answer.good:
            found.failed.append(f"{answer.url} answered {answer.status} with {len(answer.body)} bytes: nothing was kept.")
        elif new:
            found.new += 1
        else:
            found.unchanged += 1

    def _cells(self, stage: str, catalogue: Catalogue) -> Iterable[Cell]:
        config, build = self.config, self.build
        if stage == "normalise":
            items = [item for item in self.raw.items() if self.as_of is None or item.retrieved <= self.as_of]
            return normalise.cells(self.raw, items, self.sources, code(normalise.CODE))
        if stage == "dedupe":
            return dedupe.cells(catalogue, build, code(dedupe.CODE), urls=config.urls, near=config.near)
        if stage == "link":
            return texts.link(catalogue, build, config, code(texts.LINK))
        if stage == "summarise":
            return texts.summarised(catalogue, build, config, code(texts.SUMMARISE))
        if stage == "score":
            return texts.scored(catalogue, build, config, code(texts.SCORE), self._scorers())
        if stage == "align":
            return joining.aligned(catalogue, build, config, code(joining.ALIGN))
        return joining.built(catalogue, build, config, code(joining.BUILD), self.build_id)

    def _scorers(self) -> Mapping[str, Scorer]:
        return {name: scorer(name, self.config.settings.get(name)) for name in self.config.raters}


def code(modules: Sequence[str]) -> str:
    """Hash of the source of the modules that compute a stage: the version that is part of its key."""
    folder = Path(__file__).parent
    return tables.digest([(name, hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name in modules])
