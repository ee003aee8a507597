"""PPR and training over several hosts, and a host that is cut off: the same bits as on one."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from optimag_dist.datasets import dataset_schema
from optimag_dist.ppr import PPRArtefact, ppr_topk, symmetrise
from optimag_dist.store import GraphStore, PartitionOptions, ingest, partition_store

from .hosts import BIN, Cluster, obstacle, wait_until
from .recipe import write_recipe

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))]

OPTIMAG = BIN / "optimag"
PPR = ("eps=1e-3", "k=16", "block_size=200")
# A dead host is noticed after some 5 s instead of a minute.
SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hosts share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[Cluster]:
    with Cluster(2, folder / "hosts", SOON) as running:
        yield running


@pytest.fixture(scope="module")
def store(folder: Path) -> GraphStore:
    return ingest(dataset_schema("openmoji"), folder / "store", say=lambda line: None)


@pytest.fixture(scope="module")
def recipe(folder: Path, store: GraphStore) -> Path:
    """A run of one fit by two workers, of which one fits on a host."""
    changes = {"train.epochs": 40, "train.patience": 100, "checkpoint.every": 5, "workers.max_failures": 3}
    return write_recipe(folder, store, changes)


@pytest.fixture(scope="module")
def weights_of_one_host(folder: Path, recipe: Path) -> dict[str, torch.Tensor]:
    """What both workers on this host, without a cluster, end with."""
    subprocess.run([OPTIMAG, "train", recipe, "name=one-host"], check=True, stdout=subprocess.DEVNULL)
    return weights(folder / "runs/one-host")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "default/seed-0/model.pt")["model"]


def assert_same(came: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert came.keys() == expected.keys()
    for name in expected:
        assert torch.equal(came[name], expected[name]), name


@pytest.mark.parametrize("placement", [("placement=replicated",), ("placement=sharded", "actors=2")])
def test_ppr_of_two_hosts_has_the_bits_of_one_process(
    placement: tuple[str, ...], hosts: Cluster, store: GraphStore, folder: Path
) -> None:
    # The artefact lies in the store, and the placement is no part of its key.
    copy = folder / placement[0]
    shutil.copytree(store.path, copy)
    partition_store(GraphStore.open(copy), PartitionOptions(parts=5), progress=False)
    before = hosts.tasks()
    said = hosts.head.run(OPTIMAG, "ppr", str(copy), *PPR, *placement, "--address", hosts.address)
    assert len({node for task, node in hosts.tasks().items() if task not in before}) == 2
    assert ("fetched per node" in said) == ("placement=sharded" in placement)

    csr = symmetrise(store.topology)
    nodes = np.arange(store.num_nodes)
    expected = ppr_topk(csr.indptr, csr.indices, nodes, eps=1e-3, k=16)
    (artefact,) = (path for path in (copy / "ppr").iterdir() if path.is_dir())
    for came, needed in zip(PPRArtefact.open(artefact).rows(nodes), expected, strict=True):
        np.testing.assert_array_equal(came, needed)


def test_training_over_two_hosts_ends_with_the_weights_of_one(
    hosts: Cluster, folder: Path, recipe: Path, weights_of_one_host: dict[str, torch.Tensor]
) -> None:
    hosts.head.run(OPTIMAG, "train", str(recipe), "name=two-hosts", "--address", hosts.address)
    assert_same(weights(folder / "runs/two-hosts"), weights_of_one_host)


def test_a_host_cut_off_in_training_is_noticed_and_when_it_is_back_the_run_ends_as_if_nothing_had_been(
    hosts: Cluster, folder: Path, recipe: Path, weights_of_one_host: dict[str, torch.Tensor]
) -> None:
    records = folder / "runs/cut/default/seed-0/metrics.jsonl"
    with open(folder / "cut.log", "wb") as log:
        training = hosts.head.popen(
            OPTIMAG, "train", str(recipe), "name=cut", "--address", hosts.address, stdout=log, stderr=log
        )

        def well_under_way() -> bool:
            assert training.poll() is None, (folder / "cut.log").read_text()
            return records.exists() and len(records.read_text().splitlines()) >= 7

        wait_until(well_under_way, "seven epochs")
        hosts.cut(3)
        hosts.wait_for(2)
        assert training.poll() is None
        hosts.mend(3)
        # A host given up for dead learns so, and its Ray ends; what supervises it starts it again.
        hosts.wait_for_ray_to_end(3)
        hosts.start(3)
        assert training.wait(timeout=240) == 0, (folder / "cut.log").read_text()
    assert_same(weights(folder / "runs/cut"), weights_of_one_host)
