"""`instar gate OLD NEW`: did this change break what worked? With `plan` and `freeze` in the first place."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from instar.cli.command import command
from instar.errors import InstarError, OutputError, PlanError

if TYPE_CHECKING:
    from instar.gate.policy import Policy
    from instar.gate.predictions import Cases
    from instar.gate.result import Result

_JUDGE = "judge"
_ERROR = 3
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer brings its own click, which it does not show


class _Group(TyperGroup):
    """`instar gate OLD NEW` is the command itself; a file named like a subcommand is given as ./plan.

    Exit code 2 says "undecided" here, so wrong usage ends with 3 like every other error. Messages hold ids and names from
    files: what would steer a terminal is taken out of them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands or args[0] == _JUDGE:
            args = [_JUDGE, *(args or ["--help"])]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == _JUDGE else name), command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            error.exit_code = _ERROR  # type: ignore[attr-defined]
            raise
        except InstarError as error:
            from instar.gate.words import printable

            raise type(error)("\n".join(map(printable, str(error).split("\n")))) from error


app = typer.Typer(cls=_Group, rich_markup_mode="markdown", no_args_is_help=False)

Data = Annotated[
    str | None,
    typer.Option(
        help="Items to be asked (id, input; label, choices): a file, or clinc150. Also labels and slices for prediction files."
    ),
]
Examples = Annotated[Path | None, typer.Option(help="Labelled texts (input, label) for an encoder without a head.")]
Documents = Annotated[Path | None, typer.Option(help="Documents (id, text) that are searched in retrieval.")]
Task = Annotated[
    str, typer.Option(help="classification, multiple_choice, generation, retrieval, regression; default: from the data.")
]
Metric = Annotated[
    str, typer.Option(help="How an answer is marked: agreement, exact_match, rouge1, recall@10, score, file.py:function …")
]
Block = Annotated[
    str, typer.Option(help="Column of natural blocks, such as the document of a question: its items are not independent.")
]
Old = Annotated[list[str] | None, typer.Option("--old", help="Setting name=value of OLD, when it is run.")]
Again = Annotated[
    list[str] | None,
    typer.Option(
        help="A second run of OLD, for the noise floor: a file, `same`, or settings of a rerun such as batch=1,threads=2."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing; the exit code is the answer.")]


@app.command(_JUDGE, hidden=True)
def judge(
    old: Annotated[str, typer.Argument(help="The version that works: predictions, baseline, model, endpoint or function.")],
    new: Annotated[str, typer.Argument(help="The version that is to replace it.")],
    data: Data = None,
    examples: Examples = None,
    documents: Documents = None,
    set_old: Old = None,
    set_new: Annotated[list[str] | None, typer.Option("--new", help="Setting name=value of NEW, when it is run.")] = None,
    again: Again = None,
    task: Task = "",
    metric: Metric = "",
    block: Block = "",
    policy: Annotated[Path | None, typer.Option(help="TOML file of budgets, for all items and for slices.")] = None,
    max_nfr: Annotated[float | None, typer.Option(help="Budget of negative flips beyond the floor; default 0.02.")] = None,
    max_flips: Annotated[
        int | None, typer.Option(help="Most items that may break, counted instead of --max-nfr; 0: all must work.")
    ] = None,
    max_accuracy_drop: Annotated[float | None, typer.Option(help="Budget of the drop of the mean mark.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="A score that falls by no more than this is no flip.")] = None,
    level: Annotated[float | None, typer.Option(help="Level of all intervals; default 0.95.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page.")] = None,
    md: Annotated[Path | None, typer.Option(help="Write Markdown for a pull request.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML for CI.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the record; - for standard output.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the predictions of both versions in this folder.")] = None,
    quiet: Quiet = False,
) -> None:
    """Judge whether replacing OLD by NEW breaks what worked.

    OLD and NEW: prediction files (.jsonl, .csv, .parquet with `id`, `output`, and where there are any `label`, `score`,
    `embedding` and columns to slice by), lm-evaluation-harness folders, models, endpoints (http://…/v1#model), functions
    (file.py:name), before:RECEIPT and after:RECEIPT; OLD also a frozen baseline.

    Exit code: 0 pass, 1 fail, 2 undecided, 3 error.  Also: `instar gate plan`, `instar gate freeze`.

    Examples:  `instar gate old.jsonl new.jsonl`
    ·  `instar gate old.csv new.csv --again old2.csv --policy policy.toml --html page.html`
    ·  `instar gate all-MiniLM-L6-v2 all-MiniLM-L6-v2 --new quantize=int8 --again batch=1 --data clinc150`
    """
    from instar.doors import opening
    from instar.gate import judge as judging
    from instar.gate import reading

    budgets = _policy(policy, max_nfr, max_flips, max_accuracy_drop, tolerance, level)
    targets = [path for path in (html, md, junit, json_) if path is not None and str(path) != "-"]
    kept = ["old", "new", *(f"again-{i}" for i, _ in enumerate(again or (), 1))]
    _writable([*targets, *([save / f"{name}.jsonl" for name in kept] if save else [])], [old, new, *(again or ())])
    with _Bar(quiet or str(json_) == "-") as bar:
        found = opening.gather(
            old,
            new,
            again or (),
            settings={"old": opening.pairs(set_old or []), "new": opening.pairs(set_new or [])},
            cases=_cases(data, examples, documents),
            task=task,
            metric=metric,
            block=block,
            progress=bar.begin,
        )
    assert found.new is not None
    if save is not None:
        for name, version in (("old", found.old), ("new", found.new), *((f"again-{i}", v) for i, v in enumerate(found.again, 1))):
            reading.write(save / f"{name}.jsonl", version)
    result = judging.judge(
        found.old,
        found.new,
        again=found.again,
        policy=budgets,
        task=found.task,
        metric=found.metric,
        block=found.block,
        cases=found.cases,
        command=command(),
    )
    try:
        _write(result, html, md, junit, json_, quiet)
    except BrokenPipeError:  # `instar gate … | head`: the reader is gone, the answer is not
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the interpreter flushes it at its end
    raise typer.Exit(result.exit_code)


@app.command()
def plan(
    max_nfr: Annotated[float, typer.Option(help="The budget of negative flips.")] = 0.02,
    detect: Annotated[float, typer.Option(help="Find an excess of so much above the budget …")] = 0.02,
    power: Annotated[float, typer.Option(help="… with this probability.")] = 0.9,
    floor: Annotated[float, typer.Option(help="Share of items that flips between two runs of the same version.")] = 0.0,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say beforehand how many items decide.

    Examples:  `instar gate plan --max-nfr 0.02 --detect 0.02 --power 0.9`  ·  `instar gate plan --max-nfr 0.01 --floor 0.03`
    """
    from instar.gate import plan as planning
    from instar.gate.words import counted, percent

    found = planning.plan(max_nfr=max_nfr, detect=detect, power=power, floor=floor, level=level)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    noise = f" beyond a noise floor of {percent(floor)}" if floor else ""
    typer.echo(f"Budget {percent(max_nfr)} of negative flips{noise}, intervals at {level * 100:g} %.")
    typer.echo(
        f"{counted(found.items, 'item')} find an excess of {percent(max_nfr + detect)} (budget + {percent(detect)}) "
        f"in {percent(found.power)} of cases: the gate then says fail."
    )
    if found.to_pass is None:
        typer.echo("A budget of 0 cannot be passed by a sample; for a fixed list of items set max_flips = 0.")
    else:
        typer.echo(f"{counted(found.to_pass, 'item')} pass a version that breaks nothing more, in {percent(power)} of cases.")
    typer.echo("Items in blocks (several questions on one document) count for less: take as many blocks as you can.")


@app.command()
def freeze(
    old: Annotated[str, typer.Argument(help="The version that works: predictions, model, endpoint or function.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not exist.")] = Path("baseline"),
    data: Data = None,
    examples: Examples = None,
    documents: Documents = None,
    set_old: Old = None,
    again: Again = None,
    task: Task = "",
    metric: Metric = "",
    block: Block = "",
    quiet: Quiet = False,
) -> None:
    """Freeze what a version says, with hashes, so that tomorrow's run compares with the same items: `instar gate baseline NEW`.

    Examples:  `instar gate freeze old.jsonl -o baseline`
    ·  `instar gate freeze all-MiniLM-L6-v2 --data clinc150 --again batch=1 -o baseline`
    """
    from instar.doors import opening
    from instar.gate import baseline

    cases = _cases(data, examples, documents)
    baseline.vacant(out)
    with _Bar(quiet) as bar:
        settings = {"old": opening.pairs(set_old or [])}
        found = opening.gather(
            old, None, again or (), settings=settings, cases=cases, task=task, metric=metric, block=block, progress=bar.begin
        )
    folder = baseline.freeze(
        out, found.old, found.again, cases=found.cases, task=found.task or "auto", metric=found.metric, block=found.block
    )
    if not quiet:
        typer.echo(f"{len(found.old)} items of {found.old.name} are frozen in {folder}. Compare: instar gate {folder} NEW")


class _Bar:
    """A progress line for every version that is run, silent without a terminal."""

    def __init__(self, quiet: bool) -> None:
        from instar.cli.progress import answers

        self._bar = answers(quiet)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, name: str) -> Any:
        """The line of one version."""
        task = self._bar.add_task(name, total=None)
        return lambda done, total: self._bar.update(task, completed=done, total=total)


def _cases(data: str | None, examples: Path | None, documents: Path | None) -> Cases | None:
    from instar.doors import opening

    if data is None:
        if examples or documents:
            raise PlanError("--examples and --documents come with the items that are asked: give --data as well.")
        return None
    return opening.cases(data, examples=examples, documents=documents)


def _policy(path: Path | None, *given: Any) -> Policy:
    from instar.gate import policy

    names = ("max_nfr", "max_flips", "max_accuracy_drop", "tolerance", "level")
    values = {name: value for name, value in zip(names, given, strict=True) if value is not None}
    return policy.read(path, **values) if path is not None else policy.Policy(**values)


def _writable(paths: list[Path], read: list[str]) -> None:
    """Find out before the work that its results can be kept, and not in place of what is read."""
    from instar import files

    taken = {Path(one).expanduser().resolve() for one in read}
    for path in paths:
        files.target(path)
        if path.resolve() in taken:
            raise OutputError(f"{path} is read, and would be written over. Choose another file or folder.")


def _write(result: Result, html: Path | None, md: Path | None, junit: Path | None, json_: Path | None, quiet: bool) -> None:
    try:
        _keep(result, html, md, junit, json_)
    finally:  # what was asked for hours is said also where the disk is full
        if str(json_) == "-":
            from instar.gate.result import as_json

            typer.echo(as_json(result), nl=False)
        elif not quiet:
            from rich.console import Console

            from instar.gate import terminal

            terminal.show(result, Console(highlight=False))


def _keep(result: Result, html: Path | None, md: Path | None, junit: Path | None, json_: Path | None) -> None:
    from instar import files
    from instar.gate.result import as_json

    if json_ is not None and str(json_) != "-":
        files.write(json_, as_json(result))
    if html is not None:
        from instar.gate import page

        files.write(html, page.render(result))
    if md is not None:
        from instar.gate import markdown

        files.write(md, markdown.render(result))
    if junit is not None:
        from instar.gate import junit as xml

        files.write(junit, xml.render(result))
