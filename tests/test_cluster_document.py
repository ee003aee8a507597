"""docs/cluster.md, run as it reads: two processes, the demo job, a sweep that loses a worker, its report."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from .own_cluster import free_port, own_user, short_folder

ROOT = Path(__file__).parents[1]

# It kills a worker and ends Ray by name: that must not reach anyone else's processes.
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the privilege to make a process namespace (unshare --pid)",
)
def test_the_two_process_cluster_runs_as_it_reads(tmp_path: Path) -> None:
    text = (
        (ROOT / "docs/cluster.md").read_text(encoding="utf-8").partition("\n## Two processes")[2].partition("\n## ")[0]
    )
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    program = "".join(blocks)
    for port in ("6379", "8265", "8266"):
        assert port in program
        program = program.replace(port, str(free_port()))
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    with short_folder() as short, own_user(tmp_path, RAY_TMPDIR=short) as environment:
        done = subprocess.run(
            [*ALONE, "bash", "-euo", "pipefail", "-c", program],
            cwd=tmp_path,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=(log := tmp_path / "log").open("w"),
            stderr=subprocess.STDOUT,
            check=False,
            timeout=900,
        )
    said = log.read_text()
    assert done.returncode == 0, said[-8000:]
    assert "ray stop" in program
    assert re.search(r"0\.0/2\.0 CPU", said)
    assert said.count("SUCCEEDED") >= 2
    assert os.path.getsize(tmp_path / "runs/sweep/report.html") > 10_000
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o077 == 0
