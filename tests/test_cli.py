"""The command line: what it prints, what it leaves behind, and how it says no."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("ingest", "nowhere.yaml", "store"), "nowhere.yaml"),
        (("ppr", "nowhere"), "nowhere"),
        (("ppr", "nowhere", "epsilon=1"), "did you mean 'eps'"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    said = _optimag(*arguments, cwd=tmp_path, status=2)
    assert said.startswith("optimag:")
    assert words in said
    assert not list(tmp_path.iterdir())


def _item(i: int) -> str:
    facts = "," if i % 7 == 0 else f"{i},{i % 4}"
    return f"SKU-{i:03d},{'tool' if i % 2 else 'toy'},{i % 2}.5 {i % 3} {i % 5},{facts}\n"


CSV_GRAPH = {
    "items.csv": "sku,kind,words,price,weight\n" + "".join(map(_item, range(60))),
    "pairs.csv": "a,b\n" + "".join(f"SKU-{i:03d},SKU-{(i + step) % 60:03d}\n" for i in range(60) for step in (2, 4, 6)),
    "shop.yaml": yaml.safe_dump(
        {
            "name": "shop",
            "nodes": {"file": "items.csv", "id": "sku", "label": "kind"},
            "modalities": {"text": {"column": "words"}, "facts": {"columns": ["price", "weight"]}},
            "edges": {"file": "pairs.csv", "source": "a", "target": "b"},
        }
    ),
    "train.yaml": yaml.safe_dump(
        {
            "name": "shop",
            "store": "stores/shop",
            "seeds": [0, 1],
            "variants": {"sage": {"regulariser.weight": 0}, "sage+optimag": {}},
            "task": {"split": {"train": 0.4, "val": 0.3}},
            "sampling": {"anchors": 8, "group_size": 24, "fanouts": [4, 4]},
            "train": {"epochs": 5},
        }
    ),
}


def _write_csv_graph(folder: Path) -> None:
    for name, text in CSV_GRAPH.items():
        (folder / name).write_text(text)


def _processes(session: int) -> dict[int, str]:
    """Live processes that belong to the session a test opened (Ray's daemons stay in it), with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found[int(folder.name)] = command
    return found


def _wait(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """``optimag train`` of the CSV graph, just past a checkpoint of its first fit."""
    _write_csv_graph(tmp_path)
    _optimag("ingest", "shop.yaml", "stores/shop", cwd=tmp_path)
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [*OPTIMAG, "train", "train.yaml", *LONG], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
        checkpoint = tmp_path / "runs/shop/sage/seed-0/checkpoint.pt"
        _wait(lambda: checkpoint.exists() or run.poll() is not None, 180, "a checkpoint")
        assert run.poll() is None, (tmp_path / "log").read_text()
        yield run
        for process in _processes(run.pid):
            os.kill(process, signal.SIGKILL)


LONG = ("train.epochs=40", "train.patience=40", "train.checkpoint_every=2")


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_a_run_that_resumes(training: subprocess.Popen, tmp_path: Path) -> None:
    training.send_signal(signal.SIGINT)
    assert training.wait(timeout=60) == 130
    said = (tmp_path / "log").read_text()
    assert "go on with: optimag train train.yaml train.epochs=40" in said
    assert "Traceback" not in said
    _wait(lambda: not _processes(training.pid), 30, "every process gone")

    _optimag("train", "train.yaml", *LONG[1:], "train.epochs=6", "--resume", cwd=tmp_path)
    assert (tmp_path / "runs/shop/results.parquet").exists()


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_ends_with_the_same_weights(training: subprocess.Popen, tmp_path: Path) -> None:
    workers = [p for p, command in _processes(training.pid).items() if "RayTrainWorker" in command]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert training.wait(timeout=300) == 0
    _optimag("train", "train.yaml", *LONG, "name=whole", cwd=tmp_path)
    fits = sorted(path.parent.relative_to(tmp_path / "runs/whole") for path in tmp_path.glob("runs/whole/*/*/model.pt"))
    assert len(fits) == 4
    for fit in fits:
        killed, whole = (
            torch.load(tmp_path / "runs" / name / fit / "model.pt", weights_only=True)["model"]
            for name in ("shop", "whole")
        )
        assert all(torch.equal(killed[key], whole[key]) for key in whole), fit


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    _write_csv_graph(tmp_path)
    _optimag("ingest", "shop.yaml", "stores/shop", cwd=tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        said = _optimag("train", "train.yaml", "--address", address, cwd=tmp_path, status=2)
    assert f"nothing answers at {address}" in said
    assert not (tmp_path / "runs").exists()
