"""Commands that judge: check, compare, reproduce, claims, report."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar import catalogue
from instar.cli.browse import Json
from instar.errors import RecordError, ShapeError, UnknownNameError

if TYPE_CHECKING:
    from instar.bench.executor import Executor

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
Jobs = Annotated[int | None, typer.Option(help="Runs at a time; default: one a core.")]
Cluster = Annotated[
    str, typer.Option(help="Run elsewhere: HOST:PORT or auto (Ray), slurm or slurm:partition=…,account=…; see docs/machines.md.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    for command in (check, compare, reproduce, claims, report):
        app.command()(command)


def check(
    targets: Annotated[list[str] | None, typer.Argument(help="gla, bt2:cayley, package.module:Class or file.py:Class.")] = None,
    family: Annotated[str | None, typer.Option(help="Every method of this family.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the contract of a method's interface; exit code 1 when a check fails.

    Examples:  `instar check gla ridge`  ·  `instar check my_package.mixers:MyMixer`  ·  `instar check --family mixers`
    """
    names = list(targets or ())
    families = {card.family for card in catalogue.methods().values() if card.interface}
    if family is not None and family not in families:
        raise UnknownNameError.among("family", family, families)
    names += [slug for slug, card in catalogue.methods().items() if card.interface and card.family == family]
    if not names:
        raise typer.BadParameter("Name a method, or give --family.")
    from instar.checks import check as run

    outcomes = {}
    for name in names:
        outcomes[name] = run(name)
        if not as_json:  # at once: a contract takes minutes, and a later name may be wrong
            _print_outcomes(name, outcomes[name], quiet)
    failed = sum(outcome.status == "failed" for found in outcomes.values() for outcome in found)
    if as_json:
        typer.echo(json.dumps({name: [asdict(o) for o in found] for name, found in outcomes.items()}, indent=1))
    raise typer.Exit(1 if failed else 0)


def compare(
    problem: Annotated[str, typer.Argument(help="What to compare on; see `instar problems`.")],
    methods: Annotated[str, typer.Option(help="Comma-separated methods or presets; the baseline is always added.")] = "",
    add: Annotated[list[str] | None, typer.Option(help="Your own method: file.py:Class or package.module:Class.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Your own files, or the name of a known data set.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="setting=value of the problem, or method.argument=value.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds, the same for every method; 3 or more give intervals.")] = 3,
    budget: Annotated[str, typer.Option(help="Training of one run: 90s, 2m, 500steps, 5Mtok; default: the problem's.")] = "",
    trials: Annotated[
        int, typer.Option(help="Tuning trials for each method, the baseline included; 1 is the default setting.")
    ] = 1,
    search: Annotated[
        str, typer.Option(help="How trials are chosen: random, or tpe (Optuna; each learns from the ones before it).")
    ] = "random",
    tune: Annotated[str, typer.Option(help="Comma-separated knobs that trials vary; default: all that the cards name.")] = "",
    baseline: Annotated[str, typer.Option(help="Compare with this instead of the problem's baseline.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for plan, records and page; default: runs/PROBLEM.")] = None,
    jobs: Jobs = None,
    cluster: Cluster = "",
    timing: Annotated[bool, typer.Option(help="Make the exclusive timing pass.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan with its cost, and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed.")] = False,
    sink: Annotated[
        list[str] | None, typer.Option(help="Also send each record: tensorboard:FOLDER, mlflow:URI or trackio:PROJECT.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on the same data, budget, trials and seeds. Resumable: call it again and only what is missing runs.

    Examples:  `instar compare text --methods gla,aaren --budget 1m`
    ·  `instar compare text --data book.txt --methods gla --add mine.py:MyMixer --seeds 5 --out runs/book`
    ·  `instar compare recall --methods gla,gla:no_gate --budget 500steps --dry-run`
    ·  `instar compare speech --data FOLDER --methods lmuformer` (LABEL/NAME.wav, or LABEL_SPEAKER_NUMBER.wav)
    """
    from instar.bench.compare import compare as run
    from instar.bench.plan import Request
    from instar.bench.summary import summarise
    from instar.cli.progress import Line
    from instar.sinks.sending import Sending

    own, overrides = settings(set_ or [])
    if data:
        own["data"] = data[0] if len(data) == 1 else data
    request = Request(
        problem=problem,
        methods=tuple(m.strip() for m in methods.split(",") if m.strip()),
        add=tuple(add or ()),
        settings=own,
        overrides=overrides,
        seeds=seeds,
        budget=budget,
        trials=trials,
        search=search,  # type: ignore[arg-type]  # `prepare` refuses others by name
        tune=tuple(name.strip() for name in tune.split(",") if name.strip()),
        baseline=baseline,
    )
    folder = out or Path("runs") / problem
    with Line(quiet or as_json) as line:
        send = Sending(sink or (), line.note)
        result = run(
            request,
            folder,
            jobs=jobs,
            timed=timing,
            dry_run=dry_run,
            retry_failed=retry_failed,
            listener=line,
            executor=_executor(cluster, folder),
            kept=send,
        )
    if dry_run:
        if as_json:
            typer.echo(json.dumps(asdict(result.plan), indent=1))
        return
    groups = summarise(result.records())
    if as_json:
        typer.echo(json.dumps({"out": str(folder), "ran": result.ran, "failed": result.failed, **_plain(groups)}, indent=1))
        return
    if not quiet:
        _print_groups(groups)
        typer.echo(f"\n{result.ran} runs made, {result.failed} failed; records in {folder}.")
        typer.echo(f"The page: instar report {folder} -o {folder / 'page.html'}")


def _executor(cluster: str, folder: Path) -> Executor | None:
    """None: this machine."""
    if not cluster:
        return None
    from instar.bench.clusters import executor

    return executor(cluster, folder / "queue")


def reproduce(
    methods: Annotated[list[str], typer.Argument(help="Methods or presets whose claims are to be judged.")],
    claim: Annotated[str | None, typer.Option(help="Only this claim.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Instead of the number that the claim states.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the budget and 3 seeds: a look, kept apart.")] = False,
    results: Annotated[Path, typer.Option(help="Folder of the records behind the verdicts.")] = Path("results"),
    jobs: Jobs = None,
    cluster: Cluster = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the claims of a paper here and judge them: holds, does not hold here, undecided, partly, not testable at this scale.

    Examples:  `instar reproduce gla`  ·  `instar reproduce aaren --claim cannot_recall --seeds 5`
    ·  `instar reproduce gla --quick`
    """
    from instar.bench.reproduce import reproduce as run
    from instar.cli.progress import Line

    with Line(quiet or as_json) as line:
        judged, _ = run(
            methods,
            claim=claim,
            seeds=seeds,
            quick=quick,
            results=results,
            jobs=jobs,
            executor=_executor(cluster, results),
            listener=line,
        )
    _print_claims([asdict(j) for j in judged], as_json)


def claims(
    methods: Annotated[list[str] | None, typer.Argument(help="Methods; all when none is named.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of the records; default: results/ here, or the package's own.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Write them as a table between the ledger markers of this Markdown file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the claims with the verdicts that the records give.

    Examples:  `instar claims`  ·  `instar claims gla --json`  ·  `instar claims --into docs/claims.md`
    """
    from instar.bench.claims import judge_all, results_folder, select
    from instar.report import ledger

    folder = results or results_folder()
    rows = [asdict(judgement) for judgement in judge_all(select(methods or ()), folder)]
    if into is not None:
        ledger.insert(into, rows)
    else:
        _print_claims(rows, as_json)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records, or one record of `gate` or `encoder report`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("page.html"),
    results: Annotated[Path | None, typer.Option(help="Folder of claim records to show beside.")] = None,
) -> None:
    """Make one offline page from records alone.

    Examples:  `instar report runs/text -o page.html`  ·  `instar report runs/a runs/b -o both.html`
    ·  `instar report gate.json -o page.html`  ·  `instar report encoder.json -o page.html`
    """
    if len(folders) == 1 and folders[0].is_file():
        from instar import files

        files.folder(out.parent)
        files.write(out, _page(folders[0]))
        typer.echo(str(out))
        return
    from instar.bench.claims import judge, results_folder, select
    from instar.bench.record import load_all
    from instar.report import report as make

    folder = results or results_folder()
    shown = {address.partition(":")[0] for record in load_all(folders) for address in record["address"].split(",")}
    judged = [judge(card, claim, folder) for card, claim in select(sorted(shown & catalogue.methods().keys()))]
    typer.echo(str(make(folders, out, judgements=[j for j in judged if j.verdict != "not run"])))


def _page(path: Path) -> str:
    """The page of a record that is a file of its own, by its kind. Raises RecordError."""
    try:
        kind = dict(json.loads(path.read_text("utf-8"))).get("kind")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"{path} is no complete record of `instar gate` or `instar encoder report` ({error}).") from error
    from instar.gate import page, result
    from instar.upgrade import page as change
    from instar.upgrade import result as report

    try:
        return change.render(report.load(path)) if kind == "encoder" else page.render(result.load(path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # fields of other kinds than a record has
        raise RecordError(f"{path} is no complete record of `instar gate` or `instar encoder report` ({error}).") from error


def settings(given: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`length=512` is the problem's, `gla.expand_k=1` the method's; values are JSON where they can be, else text."""
    own: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ShapeError(f"--set expects name=value or method.name=value, received '{item}'.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        try:
            json.dumps(value, allow_nan=False)  # as records keep it
        except ValueError:
            raise ShapeError(f"--set {key} expects finite numbers, received {text}.") from None
        owner, dot, name = key.rpartition(".")
        if dot:
            overrides.setdefault(owner, {})[name] = value
        else:
            own[key] = value
    return own, overrides


def _print_outcomes(name: str, outcomes: list[Any], quiet: bool) -> None:
    failed = [o for o in outcomes if o.status == "failed"]
    if not quiet:
        for outcome in outcomes:
            sign = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}[outcome.status]
            typer.echo(f"  {sign} {outcome.name:<24} {outcome.seconds:6.2f} s  {outcome.message}")
    counts = Counter(o.status for o in outcomes)
    typer.echo(f"{name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} not asked of it")
    if quiet:
        for outcome in failed:
            typer.echo(f"  FAIL {outcome.name}: {outcome.message}")


def _print_claims(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    from instar.report import ledger

    table = Table(box=None, pad_edge=False)
    for head in ("method", "claim", "verdict", "improvement", "95 % interval", "seeds", "needed"):
        table.add_column(head, overflow="fold")  # a name that is cut short cannot be given to --claim
    for row in rows:
        low, high = row["interval"] or (None, None)
        table.add_row(
            row["method"],
            row["claim"],
            row["verdict"],
            "" if row["value"] is None else f"{row['value']:.4g}",
            "" if low is None else f"{low:.4g} … {high:.4g}",
            str(row["seeds"] or ""),
            ledger.needed(row),
        )
    Console().print(table)


def _plain(groups: list[Any]) -> dict[str, Any]:
    def cell(value: Any) -> dict[str, Any]:
        difference = value.difference
        return {
            "value": value.value.value,
            "interval": value.value.interval,
            "difference": None if difference is None else difference.value,
            "difference_interval": None if difference is None else difference.interval,
            "verdict": value.verdict,
            "seeds": value.value.seeds,
        }

    return {
        "comparisons": [
            {
                **group.key,
                "methods": [
                    {
                        "address": row.address,
                        "baseline": row.baseline,
                        "setting": row.setting,
                        "failures": row.failures,
                        "metrics": {name: cell(c) for name, c in row.cells.items()},
                    }
                    for row in group.rows
                ],
            }
            for group in groups
        ]
    }


def _print_groups(groups: list[Any]) -> None:
    from rich.console import Console

    from instar.report.table import table

    for group in groups:
        Console().print(table(group))
