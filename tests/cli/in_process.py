"""The command line without a process of its own, which takes seconds to import what a command needs."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from instar.cli import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def instar(*words: str, cwd: Path | None = None, columns: int = 140) -> Done:
    """What `instar WORDS` prints in `cwd`, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["instar", *words])
        patch.setenv("COLUMNS", str(columns))
        if cwd is not None:
            patch.chdir(cwd)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
