"""How long the command line takes before any work: whole processes, interleaved with bare Python, minimum and median.

python benchmarks/imports.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import instar": [sys.executable, "-c", "import instar"],
    "instar list": [sys.executable, "-m", "instar", "list"],
    "instar list --json": [sys.executable, "-m", "instar", "list", "--json"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    bare = min(seconds["python -c pass"])
    for name, values in seconds.items():
        print(
            f"{name:<20} min {min(values):.3f} s  median {statistics.median(values):.3f} s  over bare Python {min(values) - bare:+.3f} s"
        )


if __name__ == "__main__":
    main()
