"""Build the site of a checkout: `python -m instar.site OUT`, from the root of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from instar.errors import OutputError
from instar.site import tree


def build(root: Path, out: Path) -> int:
    """Build the site of the checkout at `root` into `out`, in place of the one that is there.

    Returns zensical's exit code: where it warns of anything, that is not 0 and `out` stays as it was. Raises DataError where
    `root` is no checkout, and OutputError for an `out` that holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / tree.PAPERS).exists():
        raise OutputError(f"{out} is not empty and holds no site, which would take its place; name another folder.")
    with tempfile.TemporaryDirectory() as work:
        tree.write(root, Path(work))
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "zensical.toml"]
        code = subprocess.run(command, cwd=work, check=False).returncode
        if code == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.move(Path(work) / "site", out)
    return code


if __name__ == "__main__":
    sys.exit(build(Path.cwd(), Path(sys.argv[1])))
