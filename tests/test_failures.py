"""Runs that lose a worker, a host or their driver end as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
import torch

from optimag_dist.train.log import read_records

from .csv_graph import write_csv_graph
from .own_cluster import BIN, free_port, own_user, wait_for

OPTIMAG = (sys.executable, "-m", "optimag_dist.cli")
LONG = ("train.epochs=40", "train.patience=40", "checkpoint.every=2")
FITS = [f"{variant}/seed-{seed}" for variant in ("sage", "sage+optimag") for seed in (0, 1)]

pytestmark = pytest.mark.cluster


@dataclass
class Training:
    """``optimag train`` as a process of a session of its own, with all that it has started."""

    folder: Path
    driver: subprocess.Popen

    @classmethod
    def start(cls, folder: Path, *arguments: str) -> "Training":
        with (folder / "log").open("a") as log:
            command = [*OPTIMAG, "train", "train.yaml", *LONG, *arguments]
            return cls(folder, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True))

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text()

    def processes(self) -> dict[int, str]:
        """Live processes of the session (Ray's daemons stay in it), with their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.driver.pid and state != "Z":
                found[int(folder.name)] = command
        return found

    def workers(self) -> list[int]:
        return [pid for pid, command in self.processes().items() if "RayTrainWorker" in command]

    def wait_for_checkpoint(self) -> None:
        checkpoint = self.folder / "runs/shop/sage/seed-0/checkpoint.pt"
        wait_for(lambda: checkpoint.exists() or self.driver.poll() is not None, 180, "a checkpoint")
        assert self.driver.poll() is None, self.said

    def end(self) -> None:
        for process in self.processes():
            os.kill(process, signal.SIGKILL)


def _folder(tmp_path: Path) -> Path:
    write_csv_graph(tmp_path)
    subprocess.run([*OPTIMAG, "ingest", "shop.yaml", "stores/shop"], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """Just past a checkpoint of its first fit."""
    run = Training.start(_folder(tmp_path), "workers.stall_timeout_s=20", "workers.max_failures=3")
    try:
        run.wait_for_checkpoint()
        yield run
    finally:
        run.end()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed."""
    folder = _folder(tmp_path_factory.mktemp("whole"))
    run = Training.start(folder)
    try:
        assert run.driver.wait(timeout=300) == 0, run.said
    finally:
        run.end()
    return folder / "runs/shop"


def _same_weights(run: Path, whole: Path) -> None:
    for fit in FITS:
        disturbed, plain = (
            torch.load(each / fit / "model.pt", weights_only=True)["model"] for each in (run / "runs/shop", whole)
        )
        assert all(torch.equal(disturbed[key], plain[key]) for key in plain), fit


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_a_run_that_resumes(training: Training) -> None:
    training.driver.send_signal(signal.SIGINT)
    assert training.driver.wait(timeout=60) == 130
    assert "go on with: optimag train train.yaml train.epochs=40" in training.said
    assert "Traceback" not in training.said
    wait_for(lambda: not training.processes(), 30, "every process gone")

    again = Training.start(training.folder, "train.epochs=6", "--resume")
    assert again.driver.wait(timeout=300) == 0, again.said
    assert (training.folder / "runs/shop/results.parquet").exists()


def test_a_killed_worker_is_replaced(training: Training, whole: Path) -> None:
    workers = training.workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert training.driver.wait(timeout=300) == 0, training.said
    _same_weights(training.folder, whole)


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_replaced(training: Training, whole: Path) -> None:
    """SIGSTOP: alive for the system, silent for everyone else; its peer waits in a collective for ever."""
    victim = training.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    wait_for(lambda: "killing it" in training.said, 180, "the stuck worker is named")
    (verdict,) = [line for line in training.said.splitlines() if "killing it" in line]
    assert f"pid {victim})" in verdict
    assert "no sign of life" in verdict
    assert training.driver.wait(timeout=300) == 0, training.said
    _same_weights(training.folder, whole)


def test_a_killed_driver_is_resumed(training: Training, whole: Path) -> None:
    training.driver.kill()
    training.driver.wait()
    wait_for(lambda: not training.workers(), 120, "the workers gone with their driver")
    again = Training.start(training.folder, "--resume")
    try:
        assert again.driver.wait(timeout=300) == 0, again.said
    finally:
        again.end()
    _same_weights(training.folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("TrainController", "runs/shop: a process died"),
        ("raylet/raylet", "the Ray session broke down, its raylet died"),
        ("gcs_server", "the Ray session broke down, its gcs_server died"),
    ],
)
def test_what_holds_the_workers_together_dies(victim: str, words: str, training: Training) -> None:
    os.kill(next(pid for pid, command in training.processes().items() if victim in command), signal.SIGKILL)
    assert training.driver.wait(timeout=180) == 1
    assert words in training.said
    assert "--resume" in training.said
    assert "Traceback" not in training.said


@pytest.mark.slow
def test_failures_used_up_are_one_line_and_a_remedy(tmp_path: Path) -> None:
    run = Training.start(_folder(tmp_path), "workers.max_failures=0", "train.epochs=4000", "train.patience=4000")
    try:
        run.wait_for_checkpoint()
        os.kill(run.workers()[1], signal.SIGKILL)
        assert run.driver.wait(timeout=120) == 1, run.said
    finally:
        run.end()
    assert "workers.max_failures=0 is used up" in run.said
    assert "go on with --resume" in " ".join(run.said.split())
    assert "Traceback" not in run.said


# -- hosts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hosts:
    """A cluster of several ``ray start``, each with a name."""

    home: Path
    environment: dict[str, str]
    address: str
    processes: dict[str, subprocess.Popen]

    def id_of(self, name: str) -> str:
        """Ray's of a node."""
        code = f"next(n['NodeID'] for n in ray.nodes() if n['Labels'].get('name') == {name!r})"
        program = f"import ray; ray.init({self.address!r}, log_to_driver=False, logging_level='ERROR'); print({code})"
        asked = [sys.executable, "-c", program]
        return subprocess.run(asked, env=self.environment, check=True, capture_output=True, text=True).stdout.split()[
            -1
        ]

    def of_the_workers(self) -> str | None:
        """Name of the node on which both workers are; None where there are not two."""
        for name, node in self.processes.items():
            if node.poll() is None:
                below = psutil.Process(node.pid).children(recursive=True)
                if sum("RayTrainWorker" in _command(process) for process in below) == 2:
                    return name
        return None


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A head without CPUs and three nodes of two."""
    home = _folder(tmp_path_factory.mktemp("hosts"))
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text(uuid.uuid4().hex * 2)
    host, port = ray.util.get_node_ip_address(), free_port()
    address = f"{host}:{port}"
    temporary = tempfile.mkdtemp(dir="/tmp")  # sockets lie within, whose paths must be short
    with own_user(home, RAY_AUTH_MODE="token", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5") as environment:
        of_head = ["--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={temporary}"]
        of_head += [f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        made = Hosts(home, environment, address, {})
        # One after the other: Ray gives a node half a minute to start.
        for name in ("head", "one", "two", "three"):
            mine = of_head if name == "head" else [f"--address={address}", "--num-cpus=2"]
            command = [BIN / "ray", "start", "--block", f"--labels=name={name}", "--object-store-memory=80000000"]
            started = home / f"{name}.log"
            with started.open("w") as log:
                made.processes[name] = subprocess.Popen([*command, *mine], env=environment, stdout=log, stderr=log)
            wait_for(lambda log=started: "will now block" in log.read_text(), 180, f"node {name}")
        yield made
    shutil.rmtree(temporary, ignore_errors=True)


def _losses(fit: Path) -> dict[int, float]:
    return {record["epoch"]: record["loss"] for record in read_records(fit / "metrics.jsonl")}


@pytest.mark.slow
def test_hosts_that_leave_with_and_without_notice(hosts: Hosts, whole: Path) -> None:
    fit = hosts.home / "runs/shop/sage/seed-0"
    # No checkpoint but those that are asked for, and those by the clock.
    endless = ("train.epochs=100000", "train.patience=100000", "checkpoint.every=100000")
    command = [*OPTIMAG, "train", "train.yaml", *endless, "checkpoint.every_s=30", "seeds=[0]"]
    with (hosts.home / "log").open("w") as log:
        address = ["--address", hosts.address]
        driver = subprocess.Popen([*command, *address], cwd=hosts.home, env=hosts.environment, stdout=log, stderr=log)

    def wait(condition: Callable[[], object], seconds: float, what: str) -> None:
        wait_for(lambda: condition() or driver.poll() is not None, seconds, what)
        assert driver.poll() is None, (hosts.home / "log").read_text()

    wait(lambda: len(_losses(fit)) > 3, 300, "epochs")
    leaving = hosts.of_the_workers()
    assert leaving is not None
    noticed = time.time()
    drain = [BIN / "ray", "drain-node", f"--address={hosts.address}", f"--node-id={hosts.id_of(leaving)}"]
    drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=25"]
    subprocess.run(drain, env=hosts.environment, check=True, capture_output=True)
    checkpoint = fit / "checkpoint.pt"
    wait(lambda: checkpoint.exists() and checkpoint.stat().st_mtime > noticed, 25, "a checkpoint before it leaves")
    wait(lambda: hosts.of_the_workers() not in (None, leaving), 180, "workers on another node")

    # This one is lost as a host is: nobody was told.
    lost = hosts.of_the_workers()
    assert lost is not None
    for process in [*psutil.Process(hosts.processes[lost].pid).children(recursive=True), hosts.processes[lost]]:
        process.kill()
    wait(lambda: hosts.of_the_workers() not in (None, leaving, lost), 240, "workers on the last node")
    before = max(40, len(_losses(fit)))
    wait(lambda: len(_losses(fit)) > before, 180, "epochs after both")
    ours, plain = _losses(fit), _losses(whole / "sage/seed-0")
    assert len(plain) == 40
    assert all(ours[epoch] == loss for epoch, loss in plain.items())
