"""Things that may crash or hang, tried in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_SECONDS = 180


def tried(code: str) -> tuple[Any, str]:
    """Run Python code that prints JSON: (what it printed, ""), or (None, why there is nothing)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_SECONDS} s"
    except OSError as error:
        return None, str(error)
    if done.returncode < 0:
        return None, f"killed by signal {-done.returncode}"
    try:
        return json.loads(done.stdout.splitlines()[-1]), ""
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return None, lines[-1][:300]
