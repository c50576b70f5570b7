"""Looking at the catalogue costs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "scipy", "matplotlib", "transformers")


@pytest.mark.parametrize(
    "code",
    [
        "import instar",
        "import instar; dir(instar); instar.methods(); instar.cite('gla')",
        "import sys; sys.argv = ['instar', 'list']; from instar.cli import main\ntry: main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['instar', 'show', 'gla']; from instar.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_no_heavy_import(code: str) -> None:
    check = f"\nimport sys; found = [m for m in {HEAVY!r} if m in sys.modules]; assert not found, found"
    subprocess.run([sys.executable, "-c", code + check], check=True, stdout=subprocess.DEVNULL)


def test_reading_verdicts_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['instar', 'claims', '--json']; from instar.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    check = "\nimport sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code + check], check=True, stdout=subprocess.DEVNULL)


def test_public_names_exist() -> None:
    import instar

    for name in instar.__all__:
        assert getattr(instar, name) is not None
    with pytest.raises(AttributeError, match="it has"):
        _ = instar.nothing
