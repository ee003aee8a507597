"""Jobs on a real cluster of this test's own, which asks for a token."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..own_cluster import Cluster, own_cluster, wait_for

JOB = """
name: shop
parameters: {nobody: ""}
steps:
  - ingest '{here}/shop.yaml' stores/shop
  - ppr stores/shop --address={nobody} {overrides}
working_dir: files
"""
SHOP = """
name: shop
nodes: {file: items.csv, id: sku, label: kind}
modalities: {text: {columns: [a, b]}}
edges: {file: pairs.csv, source: x, target: y}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")
    (home / "files").mkdir()
    (home / "job.yaml").write_text(JOB)
    (home / "files/shop.yaml").write_text(SHOP)
    rows = [f"A-{i},{'tool' if i % 2 else 'toy'},{i % 3},{i % 5}\n" for i in range(30)]
    (home / "files/items.csv").write_text("sku,kind,a,b\n" + "".join(rows))
    (home / "files/pairs.csv").write_text("x,y\n" + "".join(f"A-{i},A-{(i + 1) % 30}\n" for i in range(30)))
    with own_cluster(home) as made:
        yield made


def ray_job(cluster: Cluster, command: str, job: str) -> str:
    """What ``ray job`` says, as the printed hints have a user call it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", command, job, "--address", cluster.dashboard],
        env={**cluster.environment, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout + done.stderr


@pytest.mark.cluster
def test_a_job_is_followed_to_its_end(cluster: Cluster) -> None:
    at = ("--address", cluster.dashboard)
    said = cluster.optimag("submit", "job.yaml", "k=4", "--follow", *at)
    assert "step 2 of 2: optimag ppr stores/shop --address= k=4" in said
    assert "30 nodes" in said
    assert said.rstrip().endswith("SUCCEEDED")
    # The relative paths lay where the job was submitted from, which this one node sees.
    assert len(list(cluster.home.glob("stores/shop/ppr/*/meta.json"))) == 1
    job = said.split("submitted: ")[1].split()[0]
    assert job.startswith("shop-")
    assert "30 nodes" in ray_job(cluster, "logs", job)


@pytest.mark.cluster
def test_a_job_that_fails_gives_its_status_and_its_reason(cluster: Cluster) -> None:
    at = ("--address", cluster.dashboard)
    said = cluster.optimag("submit", "job.yaml", "eps=-1", "--follow", *at, status=2)
    assert "step 2 of 2 ended with status 2" in said
    assert said.rstrip().endswith("FAILED")
    said = cluster.optimag("submit", "job.yaml", "directory=/not/here", "--follow", *at, status=2)
    assert "directory /not/here is not on this machine" in said


@pytest.mark.cluster
def test_ctrl_c_leaves_a_job_that_goes_on_until_it_is_stopped(cluster: Cluster) -> None:
    at = ("--address", cluster.dashboard)
    log = cluster.home / "said"
    with socket.socket() as silent, log.open("w") as said:
        # Its second step tries for minutes to join a cluster that does not speak.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        follower = subprocess.Popen(
            [sys.executable, "-m", "optimag_dist.cli", "submit", "job.yaml", "--follow", *at, f"nobody={nobody}"],
            cwd=cluster.home,
            env=cluster.environment,
            stdout=said,
            stderr=said,
        )
        wait_for(lambda: "step 2 of 2" in log.read_text() or follower.poll() is not None, 180, "a second step")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(timeout=60) == 130, log.read_text()
        assert "the job goes on. Come back: RAY_AUTH_MODE=token ray job logs --follow shop-" in log.read_text()
        job = log.read_text().split("submitted: ")[1].split()[0]
        assert "RUNNING" in ray_job(cluster, "status", job)
        assert "stopped" in ray_job(cluster, "stop", job)


@pytest.mark.cluster
def test_a_wrong_token_and_none_are_refused_with_the_remedy(cluster: Cluster, tmp_path: Path) -> None:
    at = ("--address", cluster.dashboard)
    for environment in ({"RAY_AUTH_TOKEN": "wrong"}, {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}):
        said = cluster.optimag("submit", "job.yaml", *at, status=2, **environment)
        assert "does not accept this user's token" in said
        assert "~/.ray/auth_token" in said


def test_who_does_not_answer_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nsteps: [doctor]")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "optimag_dist.cli", "submit", "job.yaml", "--address", address],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert f"nothing answers at {address}" in done.stderr
