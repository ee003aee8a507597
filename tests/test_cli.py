"""The command line: what it prints, what it leaves behind, and how it says no."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from optimag_dist.cli import main

from .csv_graph import write_csv_graph

OPTIMAG = (sys.executable, "-m", "optimag_dist.cli")


def _optimag(*arguments: str, cwd: Path, status: int = 0) -> str:
    done = subprocess.run([*OPTIMAG, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_data_is_listed_copied_and_ingested(tmp_path: Path) -> None:
    assert re.search(r"openmoji .* 2,456 .* 18,966", _optimag("data", "list", cwd=tmp_path))
    _optimag("data", "get", "openmoji", cwd=tmp_path)
    assert "2,456 nodes" in _optimag("ingest", "data/openmoji/schema.yaml", "stores/openmoji", cwd=tmp_path)
    assert "is a folder that is not empty" in _optimag("data", "get", "openmoji", cwd=tmp_path, status=2)
    assert "did you mean 'openmoji'" in _optimag("data", "get", "openmojis", cwd=tmp_path, status=2)


def test_a_made_up_graph_is_written_ingested_and_stays(tmp_path: Path) -> None:
    said = _optimag("data", "make", "data/mine", "nodes=150", "conflicts=[0.1, 0.2, 0]", "modalities=3", cwd=tmp_path)
    assert "data/mine/schema.yaml stores/mine" in said
    assert "150 nodes" in _optimag("ingest", "data/mine/schema.yaml", "stores/mine", cwd=tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "data" / "mine").iterdir()}
    assert "is there already" in _optimag("data", "make", "data/mine", "nodes=20", cwd=tmp_path, status=2)
    assert {path: path.read_bytes() for path in (tmp_path / "data" / "mine").iterdir()} == files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("ingest", "nowhere.yaml", "store"), "nowhere.yaml"),
        (("ppr", "nowhere"), "nowhere"),
        (("ppr", "nowhere", "epsilon=1"), "did you mean 'eps'"),
        (("report", "nowhere"), "nowhere"),
        (("data", "make", "mine", "node=20"), "optimag data make: unknown key 'node'; did you mean 'nodes'"),
        (("data", "make", "mine", "homophily=2"), "key 'homophily': Input should be less than or equal to 1; got 2"),
        (("experiment", "conflict"), "no experiment is called 'conflict'; there are ablation, conflicts, defaults"),
        (("experiment", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("experiment", "conflicts", "sedes=[1]"), "conflicts.yaml: unknown key 'sedes'; did you mean 'seeds'"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which has torch imported already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["optimag", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.err.startswith("optimag:")
    assert words in printed.err
    assert "Traceback" not in printed.err + printed.out
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    write_csv_graph(tmp_path)
    _optimag("ingest", "shop.yaml", "stores/shop", cwd=tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        said = _optimag("train", "train.yaml", "--address", address, cwd=tmp_path, status=2)
    assert f"nothing answers at {address}" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("partition", "s3://x"),
        ("partition", ""),
        ("data", "make", "http://x/y"),
        ("data", "get", "openmoji", "--out", ""),
    ],
)
def test_a_uri_or_nothing_is_no_path_on_this_machine(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["optimag", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "needed a path on this machine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "words"), [("caf\udce9.yaml", "a name that is not UTF-8"), ("a.yaml", "has been removed")]
)
def test_a_name_without_letters_and_a_folder_that_is_gone_are_told(
    argument: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", ["optimag", "train", argument])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
