"""Training forecasters: an epoch of iTransformer and a step of EntroPE against other code, and plain models on 1,000 series.

    PYTHONPATH=FOLDER python benchmarks/forecasting.py [epoch|step|thousand …] [--tsl DIR] [--entrope DIR] [--quick]

FOLDER has neuralforecast (`pip install --target FOLDER --no-deps neuralforecast …`); DIR are checkouts of
github.com/thuml/Time-Series-Library and github.com/Sachithx/EntroPE. What is not there is left out with the reason.

epoch: all windows of ETTh1's training part once (96 hours to 96, batches of 32, Adam at 5e-4, squared error, two layers, eight
heads, dropout 0.1), from fresh weights, by each package's own way of training: `Forecaster.learn` here, a `DataLoader` and the
loop of its experiment there, Lightning in neuralforecast, which draws 32 windows for each of as many steps. Time-Series-Library's
reads marks of time as four more tokens, and so does ours beside it (`marked`); neuralforecast's reads none. Beside the seconds
stands the error on the validation windows after the epoch. Ours lowers the rate within it, the others keep it.
step: forward, loss, backward and step of Adam on 64 windows of seven series; both cut patches by the authors' own entropy model
for ETTh1 and have equal sizes. The error on validation windows after the same batches, and how much of the cuts agree.
thousand: `fit` and `predict` of 24 steps on an array of 1,000 points of 1,000 series.

One thread, all take turns in one process; minimum and median of the turns, by wall-clock and CPU time. Ratios are of CPU time.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forecast_peers as peers
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from turns import Call, Taken, turns

from instar import catalogue
from instar.data import datasets
from instar.data.forecast_sets import ForecastSet, forecast_set
from instar.data.panel import Panel, of_array
from instar.forecasting import inputs, windows
from instar.forecasting.entrope_network import EntroPENetwork
from instar.forecasting.entropy_model import EntropyModel, Quantiser
from instar.forecasting.entropy_patches import EntropyPatcher
from instar.forecasting.itransformer import ITransformer
from instar.interfaces import Forecaster

RESULT = Path(__file__).parent / "results" / "forecasting.json"
L, H, BATCH = 96, 96, 32
WIDTHS = (64, 256)
"""This library's default, and the paper's on ETTh1."""
LEVEL, LONGEST, ROWS = 0.85, 24, 64
PLAIN = ("repeat_last", "seasonal_naive", "drift", "ridge_ar", "nlinear", "rlinear", "dlinear")
Training = Callable[[int, int], peers.Network]


class Standardised:
    """A set with mean 0 and deviation 1 in training, and its validation windows."""

    def __init__(self, given: ForecastSet) -> None:
        self.given = given
        mean, deviation = inputs.scale(given.panel.values[: given.train])
        self.values = (given.panel.values - mean) / deviation
        self.marks = given.panel.grid.marks(np.arange(len(self.values))).astype(np.float64)
        self.origins = np.arange(given.train, given.valid - H + 1)

    def error(self, network: peers.Network, every: int) -> float:
        """Mean squared error over every so many validation windows."""
        chosen = self.origins[::every]
        found = 0.0
        with torch.no_grad():
            for part in np.array_split(chosen, max(1, len(chosen) // 256)):
                x = windows.before(self.values, part, L).float()
                y = windows.after(self.values, part, H).float()
                marks = windows.before(self.marks, part, L).float()
                found += float((network(x, marks) - y).square().mean()) * len(part)
        return found / len(chosen)


def itransformer(data: Standardised, width: int, marked: bool) -> Training:
    """Ours, by its own `learn`."""
    values = data.values[: data.given.train]
    panel: Panel = of_array(values)
    if marked:
        panel = data.given.panel.until(data.given.train)  # standardised by the forecaster itself

    def trained(steps: int, seed: int) -> peers.Network:
        torch.manual_seed(seed)
        found = ITransformer(H, context=L, width=width, hidden=width, lr=5e-4, batch=BATCH)
        found.prepare(panel)
        found.learn(panel, steps=steps, seed=seed)
        network = found.eval().network
        assert network is not None
        return lambda x, marks: network(x, marks=marks if marked else None)

    return trained


def epoch(options: argparse.Namespace) -> dict[str, Any]:
    data = Standardised(forecast_set("ETTh1"))
    values, marks = (part[: data.given.train] for part in (data.values, data.marks))
    steps = options.steps or (len(values) - L - H + 1) // BATCH
    record: dict[str, Any] = {"steps": steps, "left_out": {}, "widths": {}}
    for width in WIDTHS[: 1 if options.quick else None]:
        ways: dict[str, Training] = {
            "instar_marked": itransformer(data, width, True),
            "instar": itransformer(data, width, False),
        }
        others: dict[str, Callable[[], Training]] = {
            "time_series_library": lambda: peers.time_series_library(options.tsl, values, marks, L, H, width),  # noqa: B023
            "neuralforecast": lambda: peers.neuralforecast(values, L, H, width),  # noqa: B023
        }
        for name, made in others.items():
            try:
                ways[name] = made()
            except ImportError as error:
                record["left_out"][name] = str(error)
        errors: dict[str, list[float]] = {name: [] for name in ways}

        def call(name: str) -> Callable[[], object]:
            seeds = iter(range(options.rounds))
            return lambda: kept.update({name: ways[name](steps, next(seeds))})  # noqa: B023

        kept: dict[str, peers.Network] = {}
        for way in ways.values():
            way(2, 0)  # whatever is done once
        taken = {name: Taken() for name in ways}
        calls = {name: call(name) for name in ways}
        for _ in range(options.rounds):
            for name, one in turns(calls, 1, warm=0).items():
                taken[name].wall += one.wall
                taken[name].cpu += one.cpu
                errors[name].append(data.error(kept[name], 16 if options.quick else 1))
        found = {name: taken[name].both() | {"validation_errors": errors[name]} for name in ways}
        record["widths"][width] = found
        for name, one in found.items():
            print(f"width {width}, {name}: {one['cpu_median']:.2f} s an epoch, error {np.mean(errors[name]):.4f}", flush=True)
        for name, ours in (("time_series_library", "instar_marked"), ("neuralforecast", "instar")):
            if name in found:
                ratio = found[ours]["cpu_median"] / found[name]["cpu_median"]
                record["widths"][width][name]["ours_by_theirs"] = ratio
                print(f"  ours takes {ratio:.2f} of {name}'s time")
    return record


def step(options: argparse.Namespace) -> dict[str, Any]:
    data = Standardised(forecast_set("ETTh1"))
    table = datasets.locate("etth1")[0]
    model = EntropyModel(256, L)
    quantiser = Quantiser(256)
    networks: dict[str, nn.Module] = {}
    record: dict[str, Any] = {"left_out": {}, "rows": ROWS, "level": LEVEL, "longest": LONGEST}
    torch.manual_seed(0)
    try:
        networks["official"] = peers.entrope(options.entrope, table, L, H, ROWS, LEVEL, LONGEST)
        quantiser.set_range(*peers.entropy_weights(networks["official"], model))
    except ImportError as error:
        record["left_out"]["official"] = str(error)
        quantiser.set_range(*np.quantile(data.values[: data.given.train], (0.025, 0.975)).tolist())
    patcher = EntropyPatcher(model, quantiser, level=LEVEL, longest=LONGEST)
    networks["instar"] = EntroPENetwork(patcher, L, H, width=8, depth=1, heads=2, hidden=32, dropout=0.1)
    if "official" in networks:
        record["equal_patches"] = agreement(networks["official"], networks["instar"], data)
    generator, number = np.random.default_rng(0), 2 if options.quick else 10
    batches = [generator.integers(L, data.given.train - H + 1, ROWS) for _ in range((options.rounds + 1) * number)]
    given = [
        tuple(part(data.values, rows, n).float() for part, n in ((windows.before, L), (windows.after, H))) for rows in batches
    ]

    def call(network: nn.Module, batches: Sequence[tuple[Any, ...]]) -> Callable[[], object]:
        optimiser, rows = torch.optim.Adam(network.train().parameters(), lr=5e-3), iter(batches)

        def steps() -> None:
            for _ in range(number):
                x, y, *known = next(rows)
                optimiser.zero_grad()
                F.mse_loss(network(x, **known[0]) if known else network(x), y).backward()
                optimiser.step()

        return steps

    calls = {name: call(network, given) for name, network in networks.items()}
    # `EntroPE.learn` cuts each window once: from the second epoch on it is known where patches begin.
    ours = networks["instar"]
    networks["instar_again"] = copy.deepcopy(ours)
    calls["instar_again"] = call(networks["instar_again"], [(x, y, {"starts": ours.cuts(x)}) for x, y in given])
    taken = turns(calls, options.rounds, warm=1)
    for name, network in networks.items():
        network.eval()
        error = data.error(lambda x, marks, network=network: network(x), 64 if options.quick else 8)
        record[name] = taken[name].both() | {"steps_a_turn": number, "steps": len(given), "validation_error": error}
        seconds = record[name]["cpu_median"] / number
        print(f"EntroPE, {name}: {1e3 * seconds:.0f} ms a step, error {error:.4f} after {len(given)} steps", flush=True)
    if "official" in record:
        first, again = (record[name]["cpu_median"] / record["official"]["cpu_median"] for name in ("instar", "instar_again"))
        record |= {"ours_by_theirs": first, "again_by_theirs": again, "ten_epochs_by_theirs": (first + 9 * again) / 10}
        print(
            f"  ours takes {first:.2f} of the official step, {again:.2f} from the second epoch on, "
            f"{record['ten_epochs_by_theirs']:.2f} over ten; cuts agree in {record['equal_patches']:.3f}"
        )
    return record


def agreement(official: Any, ours: nn.Module, data: Standardised) -> float:
    """Share of the places of 64 windows where both begin a patch, or both do not."""
    x = windows.before(data.values, data.origins[:ROWS], L).float()
    assert isinstance(ours, EntroPENetwork)
    with torch.no_grad():
        scaled = ours.norm(x)[0].mT.reshape(-1, L)
        backbone = official.model
        lengths, _ = backbone.backbone.patcher.patch(
            backbone.tokenizer.context_input_transform(scaled)[0], include_next_token=True
        )
        begins: Tensor = torch.zeros(len(scaled), L + 2, dtype=torch.bool)
        begins[:, 0] = True
        begins.scatter_(1, lengths.cumsum(1).clamp(max=L + 1), True)
        patch = ours.patcher.eval()(scaled)[1]
    cuts = torch.cat([torch.ones(len(patch), 1, dtype=torch.bool), patch.diff(dim=1) > 0], dim=1)
    return float((cuts == begins[:, :L]).float().mean())


def thousand(options: argparse.Namespace) -> dict[str, Any]:
    values = waves(100 if options.quick else 1000)
    record: dict[str, Any] = {"series": values.shape[1], "points": values.shape[0], "horizon": 24}
    methods: dict[str, Forecaster] = {}

    def fitted(name: str) -> None:
        methods[name] = catalogue.make(name, Forecaster, {"horizon": 24, "context": L}).fit(values)  # type: ignore[type-abstract]

    fits: dict[str, Call] = {name: lambda name=name: fitted(name) for name in PLAIN}
    forecasts: dict[str, Call] = {name: lambda name=name: methods[name].predict() for name in PLAIN}
    fit, forecast = turns(fits, options.rounds, warm=0), turns(forecasts, options.rounds, warm=1)
    for name in PLAIN:
        record[name] = {"fit": fit[name].both(), "predict": forecast[name].both()}
        shown = (f"{record[name][part]['cpu_median']:.2f}" for part in ("fit", "predict"))
        print("{}: fit {} s, predict {} s".format(name, *shown), flush=True)
    return record


def waves(series: int) -> NDArray[np.float64]:
    """[1000, N]: a day of 24 hours, a drift and noise."""
    generator = np.random.default_rng(0)
    time = np.arange(1000)[:, None]
    phase, slope = generator.uniform(0, 24, series), generator.normal(0, 1e-3, series)
    return np.sin(2 * np.pi * (time + phase) / 24) + slope * time + generator.normal(0, 0.3, (1000, series))


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"epoch": epoch, "step": step, "thousand": thousand}
    parser.add_argument("what", nargs="*", help=f"of {', '.join(parts)}; all by default")
    parser.add_argument("--tsl", type=Path, default=Path("Time-Series-Library"))
    parser.add_argument("--entrope", type=Path, default=Path("EntroPE"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="of an epoch; 0 is the whole one")
    parser.add_argument("--quick", action="store_true", help="one small round, nothing written")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file of the record; what was not asked for stays")
    options = parser.parse_args()
    if wrong := sorted(set(options.what) - set(parts)):
        parser.error(f"there is no part {', '.join(wrong)}; parts are {', '.join(parts)}")
    if options.quick:
        options.rounds, options.steps = 1, options.steps or 3
    torch.set_num_threads(1)
    common = {
        "torch": torch.__version__,
        "neuralforecast": version("neuralforecast"),
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
    }
    for name in options.what or parts:
        before = os.getloadavg()
        found = {**common, "load_before": before, **parts[name](options), "load_after": os.getloadavg()}
        for peer, reason in found.get("left_out", {}).items():
            print(f"  {peer} left out: {reason}")
        if not options.quick:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            old = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
            options.out.write_text(json.dumps({**old, name: found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
