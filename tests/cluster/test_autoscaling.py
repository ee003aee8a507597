"""A cluster without workers until something asks for them, by the autoscaler and node provider of Ray's own tests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from optimag_dist.datasets import dataset_schema
from optimag_dist.store import ingest

from .hosts import BIN, Host, obstacle, wait_until
from .recipe import write_recipe

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))]

OPTIMAG = BIN / "optimag"
ADDRESS = "10.77.0.1:6379"
# Three nodes of one CPU: of two trials with two workers each, both could hold half of what they need.
MOST_WORKERS = 3


def autoscaling_config() -> dict:
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    }
    worker = {
        "resources": {"CPU": 1, "object_store_memory": 100_000_000},
        "node_config": {},
        "min_workers": 0,
        "max_workers": MOST_WORKERS,
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": MOST_WORKERS,
        "idle_timeout_minutes": 0.2,
        "upscaling_speed": 10.0,
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            # The name is fixed in the provider.
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in commands},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("autoscaling")


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[Host]:
    """A head without CPUs, alone."""
    host = Host(1, folder, {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"})
    try:
        host.run("ip", "address", "add", f"{host.ip}/32", "dev", "lo")
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(autoscaling_config()))
        environment = {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        host.start_head(f"--autoscaling-config={config}", env=environment)
        yield host
    finally:
        host.end()


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    """A run of one fit by two workers with a CPU each."""
    store = ingest(dataset_schema("openmoji"), folder / "store", say=lambda line: None)
    return write_recipe(folder, store, {"train": {"epochs": 3, "kept_mass": "none"}})


def run_and_count(head: Host, folder: Path, *command: str) -> int:
    """Run ``optimag`` to its end; the most nodes that were there meanwhile."""
    most = 0
    with open(folder / "said.log", "wb") as log:
        running = head.popen(OPTIMAG, *command, "--address", ADDRESS, stdout=log, stderr=log)

        def ended() -> bool:
            nonlocal most
            most = max(most, head.alive())
            return running.poll() is not None

        try:
            wait_until(ended, f"the end of optimag {command[0]}", seconds=240)
        finally:
            running.kill()
    assert running.returncode == 0, (folder / "said.log").read_text()
    return most


def test_a_sweep_starts_without_workers_gets_them_in_whole_trials_and_leaves_none(
    head: Host, folder: Path, recipe: Path
) -> None:
    assert head.alive() == 1
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump({"space": {"optim.lr": {"grid": [0.001, 0.01]}}, "search": {"method": "grid"}}))
    most = run_and_count(head, folder, "tune", str(recipe), str(space), "name=sweep")
    assert 3 <= most <= 1 + MOST_WORKERS
    trials = pq.read_table(folder / "runs/sweep/trials.parquet").to_pylist()
    assert [trial["status"] for trial in trials] == ["finished", "finished"]
    wait_until(lambda: head.alive() == 1, "no workers any more")


@pytest.mark.slow
def test_a_run_starts_without_workers_and_leaves_none(head: Host, folder: Path, recipe: Path) -> None:
    wait_until(lambda: head.alive() == 1, "no workers any more")
    assert run_and_count(head, folder, "train", str(recipe), "name=run") >= 3
    assert (folder / "runs/run/default/seed-0/model.pt").exists()
    wait_until(lambda: head.alive() == 1, "no workers any more")
