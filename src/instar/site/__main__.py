"""Build the site of a checkout: `python -m instar.site OUT`, from the root of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from instar.errors import InstarError, OutputError
from instar.extras import require


def build(root: Path, out: Path) -> int:
    """Build the site of the checkout at `root` into `out`, in place of the one that is there.

    Returns zensical's exit code: where it warns of anything, that is not 0 and `out` stays as it was. Raises MissingExtraError
    without the extra `docs`, DataError where `root` is no checkout, and OutputError for an `out` that holds something else.
    """
    for module in ("zensical", "mkdocstrings_handlers.python", "latex2mathml"):
        require(module, "docs")
    from instar.site import tree  # reads docstrings by what has just been asked for

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / tree.PAPERS).exists())):
        raise OutputError(f"{out} holds something that is no site, and would be lost; name another folder.")
    with tempfile.TemporaryDirectory() as work:
        tree.write(root, Path(work))
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "zensical.toml"]
        code = subprocess.run(command, cwd=work, check=False).returncode
        if code == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.move(Path(work) / "site", out)
    return code


def main(arguments: list[str]) -> int:
    """The command. Says in one line what is wrong, and exits as the command line does."""
    if len(arguments) != 1:
        sys.stderr.write("Usage: python -m instar.site OUT, in a checkout of the repository\n")
        return 2
    try:
        return build(Path.cwd(), Path(arguments[0]))
    except InstarError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
