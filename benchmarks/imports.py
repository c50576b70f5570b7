"""How long the command line takes before any work: whole processes, interleaved with bare Python, minimum and median.

python benchmarks/imports.py
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15
RESULT = Path(__file__).parent / "results" / "imports.json"
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
        least, middle = min(values), statistics.median(values)
        print(f"{name:<20} min {least:.3f} s  median {middle:.3f} s  over bare Python {least - bare:+.3f} s")
    figures = {name: {"min": min(v), "median": statistics.median(v)} for name, v in seconds.items()}
    facts = {"python": platform.python_version(), "machine": platform.machine(), "rounds": ROUNDS, "seconds": figures}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
