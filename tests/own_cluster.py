"""A Ray cluster of a test's own: its user, token, ports and folders, and no process of anyone else's in danger."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

BIN = Path(sys.executable).parent
_MARK = "OPTIMAG_TEST_USER"


@dataclass(frozen=True)
class Cluster:
    """``ray start --head`` of two CPUs that asks for a token.

    Attributes:
        home: of its user; the token lies in it.
        environment: of a client that has the token.
        gcs: ``host:port`` at which nodes and drivers join.
        dashboard: ``http://host:port``.
    """

    home: Path
    environment: Mapping[str, str]
    gcs: str
    dashboard: str

    def optimag(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """What ``optimag`` says, run in the home."""
        done = subprocess.run(
            [sys.executable, "-m", "optimag_dist.cli", *arguments],
            cwd=self.home,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@contextmanager
def own_user(home: Path, **environment: str) -> Iterator[dict[str, str]]:
    """The environment of a user whose home is ``home``; every process that has it ends with the block."""
    mark = uuid.uuid4().hex
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", _MARK: mark}
    try:
        yield {**inherited, **own, **environment}
    finally:
        # Until none is left: one may be starting another.
        while any([_kill(pid, mark.encode()) for pid in psutil.pids()]):
            time.sleep(0.2)


def _kill(pid: int, mark: bytes) -> bool:
    """End the process if it carries ``mark``."""
    try:
        # Not by psutil: Ray's own processes write their titles over the start of this block, where it stops reading.
        if mark not in Path(f"/proc/{pid}/environ").read_bytes():
            return False
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


@contextmanager
def own_cluster(home: Path, **environment: str) -> Iterator[Cluster]:
    """A cluster whose nodes and clients have ``environment`` beside their own."""
    gcs, dashboard, client, agent = (free_port() for _ in range(4))
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text(uuid.uuid4().hex * 2)
    with (
        short_folder() as temporary,
        own_user(home, RAY_AUTH_MODE="token", **environment) as env,
        (home / "head.log").open("w") as log,
    ):
        head = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000"),
                *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={temporary}"),
                f"--dashboard-agent-listen-port={agent}",
            ],
            env=env,
            cwd=home,
            stdout=log,
            stderr=log,
        )
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(lambda: head.poll() is not None or _is_well(url), 120, "a head that answers")
        assert head.poll() is None, (home / "head.log").read_text()
        yield Cluster(home, env, f"127.0.0.1:{gcs}", url)


def short_folder() -> tempfile.TemporaryDirectory:
    """For Ray's sockets, whose paths must be short."""
    return tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


def _is_well(url: str) -> bool:
    try:
        return requests.get(f"{url}/api/gcs_healthz", timeout=5).ok
    except requests.RequestException:
        return False
