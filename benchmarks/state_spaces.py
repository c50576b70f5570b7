"""S4D and LMU by length: a training step of a layer and of each form of its kernel, slopes, and what a streamed token takes.

    python benchmarks/state_spaces.py [--quick] [--out FILE]

float32, B 1, D 64, one thread: S4D with a state of 64, LMU with one memory of order 64 over 128 tokens, and the layer of exact
causal attention (SDPA, H 4) as far as `SLOW` tokens. All take turns, call by call, in one process; minimum and median of the
turns are kept, of wall-clock and of CPU time. Slopes are of the minimum of CPU time, which other work on the machine disturbs
less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from turns import spread, turns

from instar.kernels.diagonal_state_space import diagonal_state_space
from instar.kernels.legendre_memory import legendre_memory
from instar.mixers.lmu import LMU
from instar.mixers.s4d import S4D
from instar.mixers.softmax import Softmax

D = 64
BASE, LONGEST, SLOW = 1024, 16384, 4096
Call = Callable[[], Tensor]
LINEAR = ("s4d", "s4d_convolution", "s4d_blocks", "lmu", "lmu_blocks", "lmu_fourier")


def calls(T: int) -> dict[str, Call]:
    """One forward pass each, on inputs that they share: layers, then forms of their kernels."""
    torch.manual_seed(0)
    x, u = torch.randn(1, T, D, requires_grad=True), torch.randn(1, T, 1, requires_grad=True)
    s4d, lmu, exact = S4D(D), LMU(D), Softmax(D, heads=4)

    def diagonal(form: Any) -> Tensor:
        return diagonal_state_space(x, *s4d.discretise(), torch.view_as_complex(s4d.C), form=form)[0]

    found: dict[str, Call] = {
        "s4d": lambda: s4d(x)[0],
        "s4d_convolution": lambda: diagonal("convolution"),
        "s4d_blocks": lambda: diagonal("blocks"),
        "lmu": lambda: lmu(x)[0],
        "lmu_blocks": lambda: legendre_memory(u, lmu.memory, form="blocks")[0],
        "lmu_fourier": lambda: legendre_memory(u, lmu.memory, form="fourier")[0],
    }
    return found | ({"exact_causal": lambda: exact(x)[0]} if T <= SLOW else {})


def streamed(T: int) -> dict[str, Call]:
    """One more token after T."""
    torch.manual_seed(0)
    token, found = torch.randn(1, 1, D), {}
    for name, layer in (("s4d", S4D(D)), ("lmu", LMU(D)), ("exact_causal", Softmax(D, heads=4))):
        with torch.no_grad():
            state = layer(torch.randn(1, T, D))[1]
        found[name] = lambda layer=layer, state=state: layer(token, state)[0]
    return found


def stepped(call: Call, train: bool) -> Callable[[], object]:
    """Forward, and backward where it is trained."""

    def step() -> None:
        with torch.set_grad_enabled(train):
            out = call()
        if train:
            out.backward(torch.ones_like(out))

    return step


def measure(functions: dict[str, Call], rounds: int, train: bool) -> dict[str, Any]:
    taken = turns({name: stepped(call, train) for name, call in functions.items()}, rounds)
    found: dict[str, Any] = {name: {"wall": spread(spent.wall), "cpu": spread(spent.cpu)} for name, spent in taken.items()}
    return {"seconds": found, "load": os.getloadavg()[0]}


def slope(training: dict[str, Any], name: str) -> float:
    """Of log time over log length, between the ends."""
    first, last = (training[str(T)]["seconds"][name]["cpu"]["min"] for T in (BASE, LONGEST))
    return math.log(last / first) / math.log(LONGEST / BASE)


def table(result: dict[str, Any]) -> str:
    lines = []
    for kind in ("training", "streaming"):
        names = list(next(iter(result[kind].values()))["seconds"])
        lines += [f"{kind}, one thread: min of CPU time in ms", "       T " + "".join(f"{n:>17}" for n in names)]
        for T, row in result[kind].items():
            cells = [f"{1e3 * row['seconds'][n]['cpu']['min']:.3f}" if n in row["seconds"] else "-" for n in names]
            lines.append(f"  {T:>6} " + "".join(f"{cell:>17}" for cell in cells) + f"   load {row['load']:.1f}")
    lines += [f"  log-log slope {BASE} to {LONGEST}: {name} {value:.3f}" for name, value in result["slopes"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round at 1024 and 2048 tokens, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "state_spaces.json")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    lengths = [1024, 2048] if quick else [1024, 2048, 4096, 8192, 16384]
    result: dict[str, Any] = {
        "width": D,
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_before": os.getloadavg(),
        "training": {str(T): measure(calls(T), 1 if quick else 7, train=True) for T in lengths},
        "streaming": {str(T): measure(streamed(T), 1 if quick else 50, train=False) for T in lengths[:1] + lengths[-1:]},
    }
    result["slopes"] = {} if quick else {name: slope(result["training"], name) for name in LINEAR}
    result["load_after"] = os.getloadavg()
    print(table(result))
    if not quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
