"""A job on this machine: its steps in turn, where they run, how they end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..own_cluster import wait_for

OPTIMAG = (sys.executable, "-m", "optimag_dist.cli")
JOBS = Path(__file__).parents[2] / "jobs"


def _submit(*arguments: str, cwd: Path, status: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_API_SERVER_ADDRESS"}
    done = subprocess.run(
        [*OPTIMAG, "submit", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_ingest_and_ppr_run_here_by_their_recipes_and_again(tmp_path: Path) -> None:
    recipe = tmp_path / "both.yaml"
    steps = [line for name in ("ingest", "ppr") for line in (JOBS / f"{name}.yaml").read_text().splitlines()]
    commands = "\n".join(line for line in steps if line.startswith("  - ")).replace(" {overrides}", "", 1)
    recipe.write_text(f"name: both\nparameters: {{source: data/openmoji/schema.yaml, store: s}}\nsteps:\n{commands}\n")
    said = _submit("both.yaml", "k=4", cwd=tmp_path)
    assert "step 3 of 3: optimag ppr s k=4" in said
    assert len(list(tmp_path.glob("s/ppr/*/meta.json"))) == 1
    again = _submit("both.yaml", "k=4", "--local", cwd=tmp_path)
    assert "holds this very graph already" in again
    assert "pushes" not in again


def test_the_first_step_that_fails_ends_the_job_with_its_status(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nsteps: [data list, 'report nowhere', data list]")
    said = _submit("job.yaml", cwd=tmp_path, status=2)
    assert "step 2 of 3 ended with status 2" in said
    assert "step 3 of 3:" not in said


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nsteps: [data list]")
    said = _submit("job.yaml", "directory=/not/here", cwd=tmp_path, status=2)
    assert "directory /not/here is not on this machine" in said


SLEEPER = """#!/bin/sh
touch started
exec sleep 60
"""
TWO_STEPS = """
import sys, pathlib, optimag_dist.submit
sys.executable = "./sleeper"
sys.exit(optimag_dist.submit.run_steps([["one"], ["two"]], pathlib.Path.cwd(), None))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_the_step_and_its_end_is_waited_for(tmp_path: Path, number: int, status: int) -> None:
    (tmp_path / "sleeper").write_text(SLEEPER)
    (tmp_path / "sleeper").chmod(0o755)
    job = subprocess.Popen([sys.executable, "-c", TWO_STEPS], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "started").exists(), 60, "a step that runs")
    job.send_signal(number)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == status
    assert "step 1 of 2" in said
    assert "step 2 of 2" not in said
