"""What a terminal shows of users' texts, and what happens where it cannot."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from optimag_dist.cli import main
from optimag_dist.console import console, end, say, unfailing_output
from optimag_dist.inference.evaluate import ClassReport, ClassScore, TaskEvaluation, as_table
from optimag_dist.messages import without_secrets
from optimag_dist.tune.options import SweepOptions
from optimag_dist.tune.results import TrialRow
from optimag_dist.tune.view import SweepView, trials_table
from optimag_dist.types import InputError

ROOT = Path(__file__).parents[1]
# Markup that is never opened, a link, an emoji's name, a colour.
HOSTILE = "a [/2024] [link=x]b[/link] :smile: [red]c"


def _squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


@pytest.mark.usefixtures("wide")
def test_a_name_is_shown_as_it_is_from_ingest_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nodes.csv").write_text(f"id,kind,x\n{HOSTILE},{HOSTILE},1\nb,b,2\n")
    (tmp_path / "edges.csv").write_text(f"a,b\n{HOSTILE},b\n")
    (tmp_path / "schema.yaml").write_text(
        f"name: '{HOSTILE}'\nnodes: {{file: nodes.csv, id: id, label: kind}}\nmodalities: {{x: {{columns: [x]}}}}\n"
        "edges: {file: edges.csv, source: a, target: b}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["optimag", "ingest", "schema.yaml", f"{HOSTILE.replace('/', '')}-store"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert HOSTILE in said.out
    assert f"{HOSTILE.replace('/', '')}-store" in said.out


def _evaluation() -> Any:
    score = ClassScore(HOSTILE, 1.0, 1.0, 1.0, 2)
    report = ClassReport("m", "s", HOSTILE, (2,), 2, 1.0, 1.0, 0.0, (score,), ((2,),))
    return as_table(TaskEvaluation("", "node_classification", "test", {}, classes=report))


_SWEEP = SweepOptions.model_validate(
    {"space": {"model.backbone": {"choice": [HOSTILE]}}, "metrics": {"val/accuracy": "max"}}
)
_VALUES = {"model.backbone": HOSTILE}
_TRIAL = TrialRow("t0", "failed", 1, 1.0, _VALUES, _VALUES, {"val/accuracy": 0.5}, HOSTILE)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    "shown",
    [HOSTILE, _evaluation(), trials_table([_TRIAL], _SWEEP), Table(HOSTILE, title=HOSTILE)],
    ids=["text", "classes", "sweep", "title"],
)
def test_tables_show_texts_as_they_are(shown: Any, capsys: pytest.CaptureFixture[str]) -> None:
    console().print(shown)
    assert _squeezed(HOSTILE) in _squeezed(capsys.readouterr().out)


def test_a_sweep_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepView(_SWEEP, 1) as view:
        view.update([_TRIAL], 1, 2)
    assert capsys.readouterr().out.count(HOSTILE) == 2


def test_an_error_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        end(InputError(f"{HOSTILE}\x1b[2J\x07: bad"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"optimag: {HOSTILE}\\x1b[2J\\x07: bad\n"


def test_nothing_but_the_console_speaks_to_the_terminal() -> None:
    """Where rich's own are used, a user's text can be markup."""
    found = []
    for path in sorted((ROOT / "optimag_dist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                # As the type of an argument alone.
                found += [path.name for alias in node.names if alias.name == "Console" and _calls(path, "Console")]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "TextColumn":
                users = "{task.description}" in ast.unparse(node) or "note" in ast.unparse(node)
                found += [path.name] * (users and "markup=False" not in ast.unparse(node))
    assert found == []


def _calls(path: Path, name: str) -> bool:
    calls = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
    return any(ast.unparse(call.func) == name for call in calls)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to s3://key:secret@host/a?secret_key=x&region=eu now", "to s3://host/a?region=eu now"),
        ("'s3://k:s@h/a' and http://h/?token=x#f; is it there?", "'s3://h/a' and http://h/#f; is it there?"),
        ("why?key=1 without a URI, abfs://container@account/x", "why?key=1 without a URI, abfs://container@account/x"),
    ],
)
def test_no_secret_of_a_uri_is_shown(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert without_secrets(text) == shown
    say(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_a_defect_keeps_its_traceback_and_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        end(KeyError("s3://me:pw@host/x"))
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "KeyError: 's3://host/x'" in said
    assert "defect of optimag_dist" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied; this user may not"),
        (
            OSError(28, "No space left on device", "/x/a", None, "/x/b"),
            "/x/a → /x/b: No space left on device; make room",
        ),
        (OSError("16 requested and 0 written"), "16 requested and 0 written"),
        (MemoryError(), "the memory of this machine does not suffice"),
        (
            UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"),
            "'caf\\udce9': a name that is not UTF-8",
        ),
    ],
)
def test_what_a_machine_does_to_the_work_is_a_sentence(
    error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        end(error)
    said = capsys.readouterr().err
    assert said.startswith(f"optimag: {words}")
    assert said.count("\n") == 1


_SPEAKER = """
import sys
from rich.table import Table
from optimag_dist.console import console, say, unfailing_output
with unfailing_output():
    for _ in range(2000):
        say("57.7 ± 2.6 \\udce9")
    table = Table("größe")
    table.add_row("→")
    console().print(table)
    print("plain")
sys.exit(7)
"""


def _speak(redirected: str, **environment: str) -> subprocess.CompletedProcess:
    """Its own status is what counts, whatever became of what it said."""
    script = f'"{sys.executable}" -c "$SPEAKER" {redirected}'
    env = {**os.environ, "SPEAKER": _SPEAKER, **environment}
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, check=False)


@pytest.mark.parametrize(
    "redirected", ["| head -1; exit ${PIPESTATUS[0]}", "> /dev/full", ">&-", "2>&- >&-", "> /dev/full 2>&1"]
)
def test_output_that_goes_nowhere_changes_nothing(redirected: str) -> None:
    done = _speak(redirected)
    assert done.returncode == 7, done.stderr
    assert done.stderr == b""


def test_letters_that_an_encoding_has_not_are_spelt_out() -> None:
    done = _speak("", PYTHONIOENCODING="ascii")
    assert done.returncode == 7, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    assert lines[0] == "57.7 \\xb1 2.6 \\udce9"
    assert "+--" in done.stdout.decode("ascii")
    assert lines[-1] == "plain"


def test_streams_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with unfailing_output():
        print("a")
    assert sys.stdout is before
    assert capsys.readouterr().out == "a\n"
