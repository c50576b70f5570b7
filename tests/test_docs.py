"""Every page of docs/ runs: Python blocks that name a file are written, shell blocks are run, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Those with most commands first: one that began last would keep a worker alone for minutes.
PAGES = sorted((ROOT / "docs").rglob("*.md"), key=lambda page: (-page.read_text("utf-8").count("\ninstar "), page))
NAMES = [page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)


@pytest.mark.thorough
@pytest.mark.timeout(900)  # a page is a dozen commands, each of which starts Python and loads a model
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_page_runs(page: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text("utf-8"))
    assert any(kind == "sh" for kind, _ in blocks)
    for kind, text in blocks:
        named = re.match(r"# (\S+)\n", text)
        if kind in ("python", "toml") and named:
            (tmp_path / named[1]).write_text(text, "utf-8")
        elif kind == "sh":
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-euc", text],
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            assert "exit code 3" not in done.stdout, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]+)?\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        to = page.parent / target if target else page
        assert to.exists(), target
        assert not anchor or anchor[1:] in headings(to), f"{target}{anchor}"


def headings(page: Path) -> list[str]:
    """The anchors of a page: its headings in lower case, spaces as hyphens, other signs left out."""
    found = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text("utf-8")), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found]


def test_workflows_run_what_the_page_runs() -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "ci-gate.md").read_text("utf-8"))
    run = {word for kind, text in blocks if kind == "sh" for word in text.split()}
    said = [line for kind, text in blocks if kind == "yaml" for line in re.findall(r"instar gate .*", text)]
    assert len(said) == 2
    assert all(set(line.split()) <= run for line in said)
