"""`instar finance`: news joined to prices, in a store that updates itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.errors import DataError

if TYPE_CHECKING:
    from instar.data.finance.pipeline import NewsPricePipeline, Ran

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="News joined to daily prices without looking into the future: fetch, build, update, check. Needs `instar[finance]`.",
)
Given = Annotated[Path, typer.Argument(help="TOML file: the store, its sources and its rules.")]
Replay = Annotated[Path | None, typer.Option(help="Answer addresses from the recordings in this folder.")]
Online = Annotated[bool, typer.Option("--network", help="Ask addresses over the network; otherwise files alone are read.")]
AsOf = Annotated[str | None, typer.Option(help="Only what was retrieved up to then counts, as in 2024-01-31T12:00+00:00.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def ingest(config: Given, replay: Replay = None, network: Online = False, as_json: Json = False) -> None:
    """Fetch what the sources have now into the raw store, and nothing else.

    What an address had before is not kept again. Exit code 1 where an address gave nothing; the others were fetched all the same.

    Examples:  `instar finance ingest finance.toml`  ·  `instar finance ingest finance.toml --network`
    """
    _run(_pipeline(config, replay, network), ["ingest"], as_json)


@app.command()
def update(config: Given, replay: Replay = None, network: Online = False, as_json: Json = False) -> None:
    """Fetch what is new, and let it flow through all stages: only what it changes is computed again.

    Killed at any moment, the next update goes on where this one was. Exit code 1 where an address gave nothing.

    Examples:  `instar finance update finance.toml`  ·  `instar finance update finance.toml --replay recordings`
    """
    from instar.data.finance.pipeline import STAGES

    _run(_pipeline(config, replay, network), list(STAGES), as_json)


@app.command()
def build(
    config: Given,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Only these: normalise, dedupe, link, summarise, score, align, build; default: all of them."),
    ] = None,
    as_of: AsOf = None,
    as_json: Json = False,
) -> None:
    """Compute the tables from the raw store, without fetching anything.

    Examples:  `instar finance build finance.toml`  ·  `instar finance build finance.toml --stage score --stage build`
    ·  `instar finance build finance.toml --as-of 2024-01-31T12:00+00:00`
    """
    from instar.data.finance.pipeline import STAGES

    _run(_pipeline(config, None, False, as_of), stage or [name for name in STAGES if name != "ingest"], as_json)


@app.command()
def status(config: Given, as_json: Json = False) -> None:
    """Say what a store holds: contents, rows, coverage of each symbol, and why records were quarantined.

    Examples:  `instar finance status finance.toml`  ·  `instar finance status finance.toml --json`
    """
    from instar.data.finance import loading, read_config

    found = loading.status(read_config(config).store)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for name, row in found["sources"].items():
        last = f"{row['last'][:16]} UTC"
        _say(f"{name}: {row['contents']} contents, {row['bytes']} bytes, {row['failures']} failures, last {last}")
    _say("  ".join(f"{name} {rows}" for name, rows in found["rows"].items()) or "no tables yet: instar finance build")
    for symbol, row in found["symbols"].items():
        span = f"{row['first']} to {row['last']}"
        lacking = f"{row['without_price']} without a price"
        _say(f"{symbol}: {span}, {row['sessions']} sessions ({lacking}), {row['with_news']} with news, {row['scored']} scores")
    if found["look_ahead_of_fnspid"] is not None:
        share = 100 * found["look_ahead_of_fnspid"]
        _say(f"FNSPID's rule would have dated {share:.1f} % of the articles before the first session that closes after them.")
    for row in found["quarantine"]["first"]:
        _say(f"quarantined by {row['stage']} ({row['source'] or '-'}): {row['reason']}")
    if (more := found["quarantine"]["rows"] - len(found["quarantine"]["first"])) > 0:
        _say(f"… and {more} more: instar finance status --json, or the table quarantine of catalogue.duckdb")


@app.command()
def verify(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file of a store; without one, the published sample is made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every byte of a store against its hash; without a store, make FNSPID's published sample and compare all its values.

    Exit code 1 where something is damaged, or differs.

    Examples:  `instar finance verify finance.toml`  ·  `instar finance verify`
    """
    from instar.data.finance import loading, read_config

    if config is None:
        _sample(as_json)
        return
    found = loading.verify(read_config(config).store)
    if as_json:
        typer.echo(json.dumps({"problems": found}, indent=1))
    else:
        for problem in found:
            _say(problem)
        typer.echo(f"{len(found)} problems." if found else "Every content and every part of a table is what its hash says.")
    raise typer.Exit(1 if found else 0)


@app.command()
def effect(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file of a store; without one, FNSPID's ten published tables.")
    ] = None,
    horizon: Annotated[list[int] | None, typer.Option(help="Sessions ahead; default 1 and 3.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="ridge, mlp; default both.")] = None,
    seeds: Annotated[int, typer.Option(help="Of the network, and of shuffling.")] = 3,
    as_json: Json = False,
) -> None:
    """Ask whether sentiment helps to forecast returns: against persistence, and with shuffled and with lagged sentiment.

    Examples:  `instar finance effect finance.toml`  ·  `instar finance effect --horizon 1 --model ridge`
    """
    from dataclasses import asdict

    from instar.data.finance import experiment, load_daily, published, read_config

    if config is not None and read_config(config).alignment == "fnspid_compat":
        raise DataError(f'{config} aligns as FNSPID does, which lets news see the future: say alignment = "strict".')
    daily = published.published_daily() if config is None else load_daily(config)
    horizons, models = horizon or [1, 3], model or list(experiment.MODELS)
    found = experiment.sentiment_effect(daily, horizons=horizons, models=models, seeds=seeds)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    typer.echo(f"{found.symbols} symbols, {found.train} rows to learn from, {found.test} to test on, {found.sessions} sessions.")
    for row in found.rows:
        share = 100 * row.against_persistence.relative
        low, high = 100 * row.against_persistence.low, 100 * row.against_persistence.high
        typer.echo(
            f"h {row.horizon}  {row.model:<6} {row.arm:<9} MSE {1e4 * row.mse:8.4f}e-4  against persistence {share:+.2f} % "
            f"[{low:+.2f}, {high:+.2f}]  direction {row.direction:.3f} (majority {found.majority[row.horizon]:.3f})"
        )
    for one in horizons:
        for name in models:
            typer.echo(f"{one} sessions ahead: {found.answer(name, one)}")


def _pipeline(config: Path, replay: Path | None, network: bool, as_of: str | None = None) -> NewsPricePipeline:
    from instar.data.finance import NewsPricePipeline, read_config
    from instar.data.finance.transport import Network, ReplayTransport, Transport

    if replay is not None and network:
        raise DataError("Addresses are answered by recordings or by the network: give --replay or --network, not both.")
    transport: Transport | None = Network() if network else None
    if replay is not None:
        transport = ReplayTransport(replay)
    try:
        moment = None if as_of is None else datetime.fromisoformat(as_of)
    except ValueError as error:
        raise DataError(f"'{as_of}' is no instant: expected as in 2024-01-31T12:00+00:00.") from error
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return NewsPricePipeline(read_config(config), transport=transport, as_of=moment)


def _run(pipeline: NewsPricePipeline, stages: list[str], as_json: bool) -> None:
    ran = pipeline.run(stages)
    if as_json:
        typer.echo(json.dumps(_plain(ran), indent=1))
    else:
        if ran.ingested is not None:
            fetched = ran.ingested
            typer.echo(f"ingest: {fetched.new} new, {fetched.unchanged} unchanged, {len(fetched.failed)} failed")
            for problem in fetched.failed:
                _say(f"  {problem}")
        for done in ran.stages:
            typer.echo(
                f"{done.stage}: {done.made} made, {done.kept} as before, {done.gone} gone, {ran.seconds[done.stage]:.1f} s"
            )
    raise typer.Exit(1 if ran.ingested is not None and ran.ingested.failed else 0)


def _plain(ran: Ran) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(ran)


def _sample(as_json: bool) -> None:
    import tempfile
    from dataclasses import asdict

    from instar.data.finance import sample

    with tempfile.TemporaryDirectory() as folder:
        found = sample.compare(Path(folder) / "store")
    if as_json:
        typer.echo(json.dumps({**asdict(found), "same": found.same}, indent=1))
    else:
        typer.echo(
            f"{found.rows} rows, {found.published} published; {found.days_differ} days differ, largest difference "
            f"{found.largest:g}.\n"
            f"Of {found.articles} articles the published rule dates {100 * found.look_ahead:.1f} % before the first session that "
            f"closes after them."
        )
    raise typer.Exit(0 if found.same else 1)


def _say(text: str) -> None:
    """Texts of sources without what would steer a terminal."""
    typer.echo("".join(c if c.isprintable() else "?" for c in text))
