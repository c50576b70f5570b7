"""`instar gate` as a person or a CI job calls it: exit codes, outputs, and errors that are no answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from in_process import Done, instar

from instar.gate import result


def _write(path: Path, right: np.ndarray, **columns: list) -> Path:
    rows = [
        {"id": i, "output": "yes" if ok else "no", "label": "yes", **{k: v[i] for k, v in columns.items()}}
        for i, ok in enumerate(right)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _gate(folder: Path, *arguments: str) -> Done:
    return instar("gate", *arguments, cwd=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    right = np.arange(600) % 10 > 0
    good = np.flatnonzero(right)
    for name, broken in (("old", 0), ("same", 0), ("some", 14), ("bad", 60)):
        marks = right.copy()
        marks[good[:broken]] = False
        _write(tmp_path / f"{name}.jsonl", marks, domain=[f"d{i % 4}" for i in range(600)])
    return tmp_path


@pytest.mark.parametrize(("new", "code", "word"), [("same", 0, "PASS"), ("bad", 1, "FAIL"), ("some", 2, "UNDECIDED")])
def test_exit_codes(folder: Path, new: str, code: int, word: str) -> None:
    done = _gate(folder, "old.jsonl", f"{new}.jsonl")
    assert done.returncode == code, done.stderr
    assert word in done.stdout
    quiet = _gate(folder, "old.jsonl", f"{new}.jsonl", "--quiet")
    assert (quiet.returncode, quiet.stdout) == (code, "")


def test_what_is_read_is_not_written_over(folder: Path) -> None:
    before = [(folder / f"{name}.jsonl").read_bytes() for name in ("old", "same")]
    for kept in (["--save", "."], ["--json", "same.jsonl"]):
        done = _gate(folder, "old.jsonl", "same.jsonl", *kept)
        assert (done.returncode, "written over" in done.stderr) == (3, True)
    assert [(folder / f"{name}.jsonl").read_bytes() for name in ("old", "same")] == before


def test_damaged_records_are_refused(folder: Path) -> None:
    assert _gate(folder, "old.jsonl", "bad.jsonl", "--json", "p.json").returncode == 1
    whole = json.loads((folder / "p.json").read_text())
    for damage in ("[" * 100_000, json.dumps({**whole, "items": "x"}), json.dumps({**whole, "tests": [{"figure": None}]})):
        (folder / "p.json").write_text(damage)
        done = instar("report", "p.json", "-o", "page.html", cwd=folder)
        assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
        assert "no complete record" in done.stderr


def test_every_output(folder: Path) -> None:
    outputs = ["--html", "out/p.html", "--md", "out/p.md", "--junit", "out/p.xml", "--json", "out/p.json", "--save", "out"]
    done = _gate(folder, "old.jsonl", "bad.jsonl", *outputs)
    assert done.returncode == 1, done.stderr
    found = result.load(folder / "out" / "p.json")
    assert found.decision == "fail"
    assert found.command.startswith("instar gate old.jsonl bad.jsonl --html")
    assert "FAIL" in (folder / "out" / "p.html").read_text()
    assert "old.jsonl" in (folder / "out" / "p.md").read_text()
    assert ET.parse(folder / "out" / "p.xml").getroot().find(".//failure") is not None
    redone = [sys.executable, "-m", "instar", "report", "out/p.json", "-o", "again.html"]
    subprocess.run(redone, cwd=folder, check=True, capture_output=True)
    assert (folder / "again.html").read_text() == (folder / "out" / "p.html").read_text()
    again = _gate(folder, "out/old.jsonl", "out/new.jsonl", "--json", "-")
    assert json.loads(again.stdout)["measures"] == json.loads((folder / "out" / "p.json").read_text())["measures"]


def test_policy_and_options(folder: Path) -> None:
    (folder / "policy.toml").write_text('max_nfr = 0.3\n[[slices]]\ncolumn = "domain"\nvalue = "d1"\nmax_flips = 0\n')
    assert _gate(folder, "old.jsonl", "bad.jsonl", "--policy", "policy.toml").returncode == 1
    assert _gate(folder, "old.jsonl", "same.jsonl", "--policy", "policy.toml").returncode == 0
    assert _gate(folder, "old.jsonl", "bad.jsonl", "--max-nfr", "0.3").returncode == 0
    assert _gate(folder, "old.jsonl", "bad.jsonl", "--max-nfr", "0.3", "--max-flips", "5").returncode == 1
    floor = _gate(folder, "old.jsonl", "some.jsonl", "--again", "some.jsonl", "--json", "-")
    assert json.loads(floor.stdout)["floor"]["value"] == pytest.approx(14 / 600 / 2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["old.jsonl"], "Missing argument"),
        (["old.jsonl", "same.jsonl", "--budget", "3"], "No such option"),
        (["old.jsonl", "same.jsonl", "--max-nfr", "lots"], "Invalid value"),
        (["old.jsonl", "same.jsonl", "--max-nfr", "2"], "share from 0"),
        (["old.jsonl", "none.jsonl"], "There is no file none.jsonl"),
        (["old.jsonl", "same.jsonl", "--policy", "none.toml"], "cannot be read"),
        (["old.jsonl", "same.jsonl", "--html", "/proc/none/p.html"], "Cannot write"),
        (["old.jsonl", "same.jsonl", "--examples", "e.jsonl"], "--data"),
        (["old.jsonl", "same.jsonl", "--task", "clasification"], "classification"),
        (["old.jsonl", "same.jsonl", "--block", "domein"], "domein"),
        (["plan", "--detect", "0"], "detect > 0"),
        (["plan", "--power", "x"], "Invalid value"),
        (["freeze", "none.jsonl"], "There is no file"),
        (["freeze", "old.jsonl", "-o", "."], "is not overwritten"),
    ],
)
def test_errors_end_with_three(folder: Path, arguments: list[str], match: str) -> None:
    """1 and 2 are answers here, so no mistake may end with them."""
    done = _gate(folder, *arguments)
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert match in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_is_no_answer(folder: Path) -> None:
    code = "import instar.gate.judge as j; j.judge = lambda *a, **k: 1 / 0; import sys; "
    code += "sys.argv = ['instar', 'gate', 'old.jsonl', 'bad.jsonl']"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; from instar.cli import main; main()"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "ZeroDivisionError" in done.stderr


def test_files_named_like_subcommands(folder: Path) -> None:
    (folder / "plan").mkdir()
    (folder / "old.jsonl").rename(folder / "plan.jsonl")
    assert _gate(folder, "./plan.jsonl", "same.jsonl").returncode == 0
    assert "items find an excess" in _gate(folder, "plan").stdout


def test_plan() -> None:
    done = _gate(Path.cwd(), "plan", "--max-nfr", "0.02", "--detect", "0.02", "--power", "0.9", "--json")
    found = json.loads(done.stdout)
    assert found["items"] == 758
    assert found["power"] >= 0.9
    assert done.returncode == 0


def test_freeze_and_judge(folder: Path) -> None:
    assert _gate(folder, "freeze", "old.jsonl", "--again", "same.jsonl", "-o", "base").returncode == 0
    assert _gate(folder, "base", "same.jsonl").returncode == 0
    assert _gate(folder, "base", "bad.jsonl").returncode == 1


def test_a_place_that_cannot_be_written_is_refused_before_a_version_is_run(folder: Path) -> None:
    (folder / "ask.py").write_text("def answer(text):\n    open('asked', 'a').close()\n    return text\n")
    (folder / "cases.jsonl").write_text('{"id": 1, "input": "a", "label": "a"}\n')
    (folder / "taken").mkdir()
    for arguments in (["freeze", "ask.py:answer", "-o", "taken"], ["ask.py:answer", "ask.py:answer", "--html", "taken"]):
        done = _gate(folder, *arguments, "--data", "cases.jsonl")
        assert (done.returncode, "taken" in done.stderr) == (3, True)
        assert not (folder / "asked").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_the_answer_is_said_where_the_disk_is_full(folder: Path) -> None:
    done = _gate(folder, "old.jsonl", "bad.jsonl", "--html", "/dev/full")
    assert (done.returncode, "FAIL" in done.stdout) == (3, True)
    assert "/dev/full" in done.stderr


def test_help_has_examples() -> None:
    for arguments in (["--help"], ["plan", "--help"], ["freeze", "--help"]):
        done = _gate(Path.cwd(), *arguments)
        assert done.returncode == 0
        assert "Examples" in done.stdout


def test_a_closed_pipe_does_not_change_the_answer(folder: Path) -> None:
    command = f"{sys.executable} -m instar gate old.jsonl bad.jsonl | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, check=False).returncode == 1


def test_an_interrupt_writes_nothing(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\n\ndef answer(text):\n    print('up', flush=True)\n    time.sleep(60)\n")
    (folder / "items.jsonl").write_text('{"id": 1, "input": "a", "label": "b"}\n')
    command = [
        sys.executable,
        "-m",
        "instar",
        "gate",
        "slow.py:answer",
        "slow.py:answer",
        "--data",
        "items.jsonl",
        "--json",
        "r.json",
    ]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert not (folder / "r.json").exists()


def test_looking_at_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['instar', 'gate', '--help']; from instar.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    subprocess.run(
        [sys.executable, "-c", f"{code}\nassert not {{'torch', 'numpy', 'scipy'}} & set(sys.modules)"],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _hostile(**fields: object) -> list[str]:
    row = {"output": "yes", "label": "yes", **fields}
    return [json.dumps({"id": f"{row.get('id', 'i')}{i}", **{k: v for k, v in row.items() if k != "id"}}) for i in range(30)]


@pytest.mark.parametrize(
    "rows",
    [
        _hostile(output="\ud800", input="\udfff", **{"\ud801": "\ud802"}),
        _hostile(output="\x1b[31m\u202e</script>", id="\x1b[2J\u202e"),
        _hostile(output={"a": [1]}, label={"a": [1]}),
        _hostile(output=["a"], label=["a", "b"], n=10**400),
        _hostile(output="9" * 1_000_000, label="9" * 1_000_001),
        _hostile(negative=1, p="a", items=2, **{"all items": 3, "": 4}),
    ],
)
def test_hostile_files_are_judged(folder: Path, rows: list[str]) -> None:
    """Whatever stands in a file, every output is written, can be read, and says the same."""
    (folder / "hostile.jsonl").write_text("\n".join(rows), "utf-8")
    outputs = ["--html", "p.html", "--md", "p.md", "--junit", "p.xml", "--json", "p.json", "--save", "kept"]
    done = _gate(folder, "hostile.jsonl", "hostile.jsonl", *outputs)
    assert done.returncode == 2, done.stderr
    assert "\x1b" not in done.stdout
    found = result.load(folder / "p.json")
    assert ET.parse(folder / "p.xml").find(".//property[@name='decision']").attrib["value"] == found.decision  # type: ignore[union-attr]
    assert "UNDECIDED" in (folder / "p.html").read_text("utf-8")
    assert _gate(folder, "kept/old.jsonl", "hostile.jsonl", "-q").returncode == 2


def test_messages_do_not_steer_the_terminal(folder: Path) -> None:
    (folder / "hostile.jsonl").write_text("\n".join(_hostile(id="\x1b[2J\u202e")), "utf-8")
    done = _gate(folder, "hostile.jsonl", "old.jsonl")
    assert done.returncode == 3
    assert "only in hostile.jsonl" in done.stderr
    assert not {"\x1b", "\u202e"} & set(done.stderr)


def test_formats_give_the_same_answer(folder: Path) -> None:
    """Numbers, labels and slices of a CSV are those of the JSON lines."""
    rows = [{"id": i, "output": i % 7 / 2, "label": i % 5 / 2, "n": i} for i in range(300)]
    found = {}
    (folder / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "n.csv").write_text("id,output,label,n\r\n" + "".join(f"{','.join(map(str, row.values()))}\r\n" for row in rows))
    for kind in ("jsonl", "csv"):
        done = _gate(folder, "n.jsonl", f"n.{kind}", "--json", f"{kind}.json", "-q")
        assert done.returncode == 0, done.stderr
        record = result.load(folder / f"{kind}.json")
        found[kind] = (record.task, record.measures, record.slices)
    assert found["csv"] == found["jsonl"]
    assert found["csv"][0] == "regression"


def test_a_short_list_that_must_work(folder: Path) -> None:
    (folder / "few.jsonl").write_text("\n".join(_hostile()))
    assert _gate(folder, "few.jsonl", "few.jsonl", "--max-flips", "0").returncode == 0
    assert _gate(folder, "few.jsonl", "few.jsonl").returncode == 2
