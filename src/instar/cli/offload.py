"""The command `plan-offload`: what training with optimiser state in a file takes, before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from instar.cli.browse import Json
from instar.cli.encoder_given import Quiet
from instar.errors import UnknownNameError

if TYPE_CHECKING:
    from instar.optim.offload.media import Mode
    from instar.optim.offload.plan import Hardware, Plan

_DTYPES = ("float32", "bfloat16", "auto")


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("plan-offload")(plan_offload)


def plan_offload(
    model: Annotated[
        str,
        typer.Argument(help="A folder of transformers, a config.json, a packaged name, or a cached hub id. No weights are read."),
    ],
    ram: Annotated[str, typer.Option(help="Memory for optimiser state and its buffers, as 2GB or 500MiB.")],
    store: Annotated[
        Path | None,
        typer.Option(
            help="Where the file would lie; its disk is measured. A folder is for a scratch file, a name in one for a file that "
            "survives crashes. Default: temporary files."
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="How the file is reached: direct, buffered, mmap; throttled is emulated.")
    ] = "buffered",
    dtype: Annotated[str, typer.Option(help="Of the parameters in training: float32, bfloat16, auto (as stored).")] = "float32",
    passes: Annotated[
        float, typer.Option(min=0.0, help="Seconds of a forward and backward pass, which hide what the buffers hold.")
    ] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="For measuring updates and disk.")] = 1.0,
    subgroup: Annotated[int | None, typer.Option(min=1, help="Parameters of a subgroup; default: chosen.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict seconds of a step and peak memory of `offloaded_adamw`, from this machine's measured rates.

    --ram is for moments, staging buffers and workspace. Parameters and gradients come on top and are printed; so do activations,
    which are not known here. Compared are the schedules at this budget, and everything in memory.

    Exit code: 0; 3 for an error, such as a budget below the least that works, which the message says.

    Examples:  `instar plan-offload SmolLM2-135M-Instruct --ram 500MB`
    ·  `instar plan-offload my-model --ram 2GB --store /mnt/disk --mode direct --passes 4`
    ·  `instar plan-offload config.json --ram 16GB --json`
    """
    import torch

    from instar.cli.encoder_given import Telling
    from instar.cli.suite import BYTES, quantity
    from instar.optim.offload import stored
    from instar.optim.offload.calibration import calibrate
    from instar.optim.offload.store import StoreSpec

    if dtype not in _DTYPES:
        raise UnknownNameError.among("dtype", dtype, _DTYPES)
    budget = quantity("--ram", ram, BYTES)
    groups = stored.groups(model, None if dtype == "auto" else getattr(torch, dtype))
    spec = StoreSpec(store, cast("Mode", mode))
    with Telling(quiet or as_json) as telling:
        telling.begin("measuring updates and disk")
        hardware = calibrate(spec, seconds=seconds)  # opening it says which there are
        telling.begin("simulating schedules")
        given = {"pass_seconds": passes, "subgroup": subgroup, "recoverable": spec.recoverable}
        plans = _plans(groups, hardware, int(budget), given)
    if as_json:
        rates = {"update_rate": hardware.update_rate, "read_rate": hardware.read_rate, "write_rate": hardware.write_rate}
        more = {"duplex": hardware.duplex, "contention": hardware.contention, "emulated": hardware.emulated}
        typer.echo(
            json.dumps(
                {"model": model, "hardware": {**rates, **more}, "plans": {k: p.json() for k, p in plans.items()}}, indent=1
            )
        )
        return
    _say(plans, hardware, int(budget))


def _plans(groups: list[dict[str, Any]], hardware: Hardware, budget: int, given: dict[str, Any]) -> dict[str, Plan]:
    """By name; all but the first are within the budget."""
    from instar.optim.offload.plan import plan_offload as plan

    found = {"interleaved": plan(groups, hardware, budget, **given)}
    found = {"in memory": plan(groups, hardware, None, ratio=0.0, **given), **found}
    found["static split"] = plan(groups, hardware, budget, schedule="pipelined", **given)
    found["pipelined, all streamed"] = plan(groups, hardware, budget, schedule="pipelined", ratio=1.0, **given)
    found["sequential, all streamed"] = plan(groups, hardware, budget, schedule="sequential", ratio=1.0, **given)
    return found


def _say(plans: dict[str, Plan], hardware: Hardware, budget: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from instar.report.units import quantity

    best = plans["interleaved"]
    told = (best.weights_bytes, best.state_bytes, best.peak_bytes, best.scratch_bytes, best.hiding_bytes)
    weights, state, peak, scratch, hiding = (quantity(n, "B") for n in told)
    console = Console(highlight=False)
    console.print(
        f"{best.division.layout.elements:,} parameters, {weights}, and as much of gradients; AdamW's state is {state}.\n"
        f"Measured{' (EMULATED store)' if hardware.emulated else ''}: updates {hardware.update_rate / 1e9:.2f} G parameters/s, "
        f"reads {quantity(hardware.read_rate, 'B/s')}, writes {quantity(hardware.write_rate, 'B/s')}"
        f"{'' if hardware.duplex else ', one after the other'}; updates take {1 + hardware.contention:.2f} times as long then.",
        markup=False,
    )
    table = Table("", "step()", "state and buffers", "with parameters and gradients", "streamed", "k", box=None)
    for name, plan in plans.items():
        division = plan.division
        sizes = (quantity(n, "B") for n in (division.bytes, plan.peak_bytes))
        interval = str(plan.k) if name == "interleaved" and division.residents and division.streamed else ""
        table.add_row(name, quantity(plan.step_seconds, "s"), *sizes, f"{division.streamed} of {division.count}", interval)
    console.print(table)
    console.print(
        f"Peak with {quantity(budget, 'B')} for the state: {peak}, and activations on top. The scratch file has {scratch}; "
        f"one that survives crashes {quantity(best.recoverable_bytes, 'B')}.",
        markup=False,
    )
    if best.division.streamed:
        more = f"with a budget of {hiding}" if best.hiding_interval < best.division.count else "more than there are subgroups"
        console.print(f"Residents' updates would hide all transfers from k = {best.hiding_interval} on: {more}.", markup=False)
