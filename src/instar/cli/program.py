"""The command `program`: learn a task, and print what was learnt as a Python file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.cli.encoder_given import Quiet
from instar.errors import PlanError

if TYPE_CHECKING:
    from instar.interfaces import Examples
    from instar.lab.programs.making import Made
    from instar.lab.programs.transformer_programs import TransformerPrograms


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(program)


def program(
    task: Annotated[
        str,
        typer.Argument(
            help="reverse, hist, double_hist, sort, most_freq, dyck1, dyck2, induction, trec, or a file of tagged sentences."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The Python file to write.")],
    vocab: Annotated[int | None, typer.Option(help="Tokens of an algorithmic task, special ones counted.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of the longest sequence.")] = None,
    samples: Annotated[int, typer.Option(help="Different sequences of an algorithmic task.")] = 20_000,
    steps: Annotated[int, typer.Option(help="Training steps of each beginning.")] = 1_500,
    restarts: Annotated[int, typer.Option(help="Beginnings; the best of validation is printed.")] = 3,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of data order and beginnings.")] = 0,
    knob: Annotated[list[str] | None, typer.Option(help="name=value of the method, as in layers=1 or k=12.")] = None,
    prune: Annotated[
        float | None, typer.Option(help="Take out what changes at most this share of labels (0: none) on training sequences.")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="Folder for the tables, as CSV.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML file: the code and how well it answers, side by side.")] = None,
    save: Annotated[Path | None, typer.Option(help="File for weights, vocabulary and configuration (.safetensors).")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for progress: the same command goes on from there.")] = None,
    explain: Annotated[str | None, typer.Option(help="Tokens, apart by spaces, whose labels are explained step by step.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Learn a task with a Transformer Program, and print it as a Python file that runs alone.

    The file is executed and compared with the model on the test sequences and on 10,000 random ones. Printed: the accuracy of the
    file on the test (best and median of the beginnings on validation), and how many answers differ from the model's: none, unless
    you prune.

    Exit code: 0; 1 where an unpruned file differs from the model; 3 for an error.

    Examples:  `instar program sort -o sort.py`
    ·  `instar program hist --vocab 6 --length 6 --knob layers=1 -o hist.py --prune 0 --explain "<s> 1 1 2"`
    ·  `instar program trec -o trec.py --knob embedded=4 --knob k=32 --knob rare=1 --knob lr=0.01`
    """
    from instar import files
    from instar.cli.encoder_given import Telling
    from instar.lab.programs import page as paging
    from instar.lab.programs import saved
    from instar.lab.programs import tables as writing
    from instar.lab.programs.making import make

    learner = _learner(restarts, knob or [])
    parts = _parts(task, vocab, length, samples)
    for path in (out, page, save):
        if path is not None:
            files.target(path)
    if tables is not None:
        files.folder(tables)
    with Telling(quiet or as_json) as telling:
        step = telling.begin(f"learning {task} from {restarts} beginnings")
        begun: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in begun:
                begun[name] = telling.begin(name)
            begun[name](done, total)

        made = make(
            learner,
            parts,
            steps=steps * restarts,
            batch=batch,
            seed=seed,
            pruned=prune,
            monitor=lambda done, _: step(done, steps * restarts),
            checkpoint=keep,
            progress=progress,
        )
    files.write(out, made.text)
    if tables is not None:
        writing.write(made.program, tables)
    if page is not None:
        files.write(page, paging.page(task, made, parts[2], learner.tries))
    if save is not None:
        saved.save(learner, save)
    if as_json:
        typer.echo(json.dumps(_plain(made, learner, out), indent=1))
    elif not quiet:
        _say(made, learner, out)
    if explain is not None and not as_json:
        _explain(made, explain.split())
    if made.different and prune is None:
        raise typer.Exit(1)


def _learner(restarts: int, given: list[str]) -> TransformerPrograms:
    from instar import catalogue
    from instar.doors.opening import pairs
    from instar.lab.programs.transformer_programs import TransformerPrograms
    from instar.upgrade.sides import knobs

    arguments = knobs(pairs(given))
    if "restarts" in arguments:
        raise PlanError("Give --restarts in place of --knob restarts.")
    return catalogue.make("transformer_programs", TransformerPrograms, {**arguments, "restarts": restarts})


def _parts(task: str, vocab: int | None, length: int | None, samples: int) -> tuple[Examples, Examples, Examples]:
    from instar.problems.programs import ProgramsProblem

    data = ProgramsProblem(task=task, vocab=vocab, length=length, samples=samples).load(0)
    return data.train, data.valid, data.test


def _plain(made: Made, learner: TransformerPrograms, out: Path) -> dict[str, Any]:
    return {
        "file": str(out),
        "lines": made.text.count("\n"),
        "accuracy": made.accuracy,
        "sequences": made.sequences,
        "validation": [one.accuracy for one in learner.tries],
        "checked": made.checked,
        "different": len(made.different),
        "pruned": None
        if made.pruned is None
        else {"variables": list(made.pruned.dropped), "steps": list(made.pruned.removed), "changed": made.pruned.changed},
        "steps": [step.name for step in made.program.steps],
        "seconds": {name: round(value, 3) for name, value in made.seconds.items()},
    }


def _say(made: Made, learner: TransformerPrograms, out: Path) -> None:
    import statistics

    tries = [one.accuracy for one in learner.tries]
    typer.echo(
        f"{out}: {made.text.count(chr(10))} lines, {len(made.program.steps)} steps; right on {made.accuracy:.2%} of test labels "
        f"and {made.sequences:.2%} of test sequences"
    )
    typer.echo(f"{len(tries)} beginnings: best {max(tries):.2%} of validation labels, median {statistics.median(tries):.2%}")
    if made.pruned is not None:
        typer.echo(
            f"Pruned: {len(made.pruned.dropped)} variables no longer weigh, {len(made.pruned.removed)} steps are gone; "
            f"{made.pruned.changed} of {made.pruned.asked} labels shown to it changed"
        )
    equal = f"equal to the model on all {made.checked:,} sequences"
    if made.different:
        example = " ".join(made.different[0])
        equal = f"other than the model on {len(made.different):,} of {made.checked:,} sequences, such as {example!r}"
    typer.echo(f"Checked: {equal} ({made.seconds['conversion']:.2f} s to convert)")


def _explain(made: Made, tokens: list[str]) -> None:
    from instar.cli.encoder_given import printable
    from instar.lab.programs.explaining import as_text

    typer.echo("labels: " + " ".join(made.program.run(tokens)))
    for place in range(len(tokens)):
        for line in as_text(made.program, tokens, place).split("\n"):
            typer.echo(printable(line))
