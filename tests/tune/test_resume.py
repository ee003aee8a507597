"""A sweep whose driver is killed, through the command line."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml

SPACE = {
    "space": {"regulariser.alpha": {"uniform": [0.1, 0.9]}, "optim.lr": {"loguniform": [0.001, 0.1]}},
    "search": {"trials": 3, "seed": 1},
}
# Whatever else the machine is doing.
_PATIENCE_S = 600


def _command(tmp_path: Path, *words: str) -> list[str]:
    files = [str(tmp_path / "run.yaml"), str(tmp_path / "space.yaml")]
    return [sys.executable, "-m", "optimag_dist.cli", "tune", *files, *words]


def _kill_with_all_it_started(driver: subprocess.Popen) -> None:
    """SIGKILL to the driver alone; its embedded Ray follows by itself, and must not write any more when we go on."""
    others = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(others, timeout=_PATIENCE_S)
    assert not alive


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_sweep_is_resumed_to_the_table_of_an_unbroken_one(recipe: dict, tmp_path: Path) -> None:
    recipe["train"] = {**recipe["train"], "epochs": 40}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    out = Path(recipe["out"])
    driver = subprocess.Popen(_command(tmp_path, "name=broken"), stdout=subprocess.DEVNULL)
    log = out / "broken" / "trials" / "001" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + _PATIENCE_S
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _kill_with_all_it_started(driver)
    finished = out / "broken" / "trials" / "000" / "seed-0" / "model.pt"
    stamp = finished.stat().st_mtime_ns

    resumed = subprocess.run(_command(tmp_path, "name=broken", "--resume"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert finished.stat().st_mtime_ns == stamp
    unbroken = subprocess.run(_command(tmp_path, "name=unbroken"), capture_output=True, text=True)
    assert unbroken.returncode == 0, unbroken.stderr
    assert "optimag train" in unbroken.stdout
    tables = [
        pq.read_table(out / name / "trials.parquet").drop_columns(["seconds"]).to_pylist()
        for name in ("broken", "unbroken")
    ]
    assert tables[0] == tables[1]
    assert [row["status"] for row in tables[0]] == ["finished"] * 3
    for trial in ("000", "001", "002"):
        one, other = (
            torch.load(out / name / "trials" / trial / "seed-0" / "model.pt")["model"]
            for name in ("broken", "unbroken")
        )
        assert all(torch.equal(one[name], other[name]) for name in other)
