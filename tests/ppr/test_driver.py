"""Placements under supervision: the same artefact from actors that own shards, whatever dies on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner

from optimag_dist import cli
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import RunTotals, Sharded, compute_ppr
from optimag_dist.ppr.sharded import ShardedPusher, actor_bytes
from optimag_dist.store import GraphStore, PartitionOptions, partition_store
from optimag_dist.store.partition import find_partition
from optimag_dist.types import InputError

from .small_store import power_law_store

NUM_NODES = 400
OPTIONS = PPROptions(eps=1e-3, k=8, block_size=25)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """A directed power-law store and five nodes without edges, in seven shards."""
    store = power_law_store(tmp_path_factory.mktemp("graph"), NUM_NODES, isolated=5, directed=True)
    partition_store(store, PartitionOptions(parts=7, method="streaming"), progress=False)
    return store


@pytest.fixture(scope="module")
def replicated(store: GraphStore, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> PPRArtefact:
    return compute_ppr(store, OPTIONS, tmp_path_factory.mktemp("replicated"), progress=False)


def sharded(**changes: Any) -> PPROptions:
    return OPTIONS.model_copy(update={"placement": "sharded", "actors": 2, **changes})


def contents(artefact: PPRArtefact) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in artefact.path.iterdir() if file.name != ".lock"}


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_any_number_of_shards_gives_the_same_rows(
    store: GraphStore, replicated: PPRArtefact, tmp_path: Path, parts: int
) -> None:
    shutil.copytree(store.path, tmp_path / "store", ignore=shutil.ignore_patterns("partitions"))
    copy = GraphStore.open(tmp_path / "store")
    partition = partition_store(copy, PartitionOptions(parts=parts, method="hash"), progress=False)
    everyone = np.arange(NUM_NODES)
    pusher = ShardedPusher(partition.degrees, lambda nodes: [(nodes, *partition.rows(nodes))], OPTIONS)
    rows, _ = pusher.push(everyone)
    came = rows.indptr, rows.indices, rows.values, rows.bounds
    for mine, needed in zip(came, (*replicated.rows(everyone), replicated.bounds(everyone)), strict=True):
        np.testing.assert_array_equal(mine, needed)


def test_tiny_caches_and_requests_give_the_same_bytes(
    store: GraphStore, replicated: PPRArtefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what an actor may take is said before the run."""
    options = sharded(row_cache_mb=0.005, in_flight_mb=0.0001)
    totals = RunTotals()
    artefact = compute_ppr(store, options, tmp_path / "ppr", totals=totals)
    assert contents(artefact) == contents(replicated)
    assert (totals.blocks, totals.rows) == (16, NUM_NODES)
    assert totals.traffic.rounds > 0
    assert f"{totals.traffic.num_bytes / NUM_NODES:,.0f} bytes" in totals.line()
    said = capsys.readouterr().err.replace("\n", " ")
    needed = sum(actor_bytes(NUM_NODES, 2 * store.topology.num_arcs, options).values())
    assert "2 actors for 7 shards" in said
    assert f"at most {needed / 2**20:,.0f} MB each" in said


def test_killed_actor_is_replaced(
    store: GraphStore, replicated: PPRArtefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    original = Sharded._start
    monkeypatch.setattr(Sharded, "_start", lambda self, job: started.extend(original(self, job)) or started)
    killed = []

    class Killing(RunTotals):
        def add(self, other: RunTotals) -> None:
            super().add(other)
            if self.blocks in (2, 6):
                ray.kill(started[1], no_restart=False)
                killed.append(self.blocks)

    totals = Killing()
    artefact = compute_ppr(store, sharded(actors=3), tmp_path / "ppr", progress=False, totals=totals)
    assert killed == [2, 6]
    assert contents(artefact) == contents(replicated)
    assert totals.blocks == 16


def test_killed_driver_resumes_at_the_last_finished_block(
    store: GraphStore, replicated: PPRArtefact, tmp_path: Path
) -> None:
    path = tmp_path / "ppr"
    options = sharded(actors=1, block_size=2)
    code = (
        "import json, sys; from optimag_dist.ppr.driver import *; from optimag_dist.store import GraphStore; "
        "compute_ppr(GraphStore.open(sys.argv[1]), PPROptions(**json.loads(sys.argv[2])), sys.argv[3])"
    )
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path), json.dumps(options.model_dump(mode="json")), str(path)],
        env={**os.environ, "RAY_ADDRESS": address},
    )
    while process.poll() is None and len(list(path.glob("block-*"))) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(InputError, match="unfinished"):
        PPRArtefact.open(path)
    finished = len(list(path.glob("block-*")))
    totals = RunTotals()
    artefact = compute_ppr(store, options, path, progress=False, totals=totals)
    assert 3 <= finished < NUM_NODES // 2
    assert totals.blocks <= NUM_NODES // 2 - finished
    for came, needed in zip(artefact.rows(np.arange(NUM_NODES)), replicated.rows(np.arange(NUM_NODES)), strict=True):
        np.testing.assert_array_equal(came, needed)


def test_poisoned_block_is_named_with_its_reason(store: GraphStore, replicated: PPRArtefact, tmp_path: Path) -> None:
    path = tmp_path / "ppr"
    obstacle = path / "block-000015.arrow"
    obstacle.mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"block 15 of 16 \(nodes 375 to 399\)") as raised:
        compute_ppr(store, sharded(actors=1), path, progress=False)
    assert re.search(r"block-000015\.arrow: Is a directory; a folder stands where a file is needed", str(raised.value))
    kept = {file.name for file in path.glob("block-*")} - {obstacle.name}
    assert kept
    obstacle.rmdir()
    totals = RunTotals()
    artefact = compute_ppr(store, sharded(actors=1), path, progress=False, totals=totals)
    assert totals.blocks <= 16 - len(kept)
    assert contents(artefact) == contents(replicated)


def test_cache_too_small_for_a_source_is_the_users_error(store: GraphStore, ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^row_cache_mb=0\.0002: .* set row_cache_mb="):
        compute_ppr(store, sharded(actors=1, row_cache_mb=0.0002), tmp_path / "ppr", progress=False)


def test_sharded_needs_a_partition(tmp_path: Path, store: GraphStore, ray_session: None) -> None:
    with pytest.raises(InputError, match="partition: no 'nowhere'"):
        compute_ppr(store, sharded(partition="nowhere"), tmp_path / "ppr", progress=False)
    assert not (tmp_path / "ppr").exists()


def optimag(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_inspect_shows_options_bounds_and_a_row(
    store: GraphStore, replicated: PPRArtefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "console", lambda: Console(width=200))
    said = optimag("ppr", "inspect", replicated.path, "--node", "17", "--store", store.path)
    everyone = np.arange(NUM_NODES)
    lengths = np.diff(replicated.rows(everyone)[0])
    for words in (
        "teleport=0.15 eps=0.001 k=8",
        "16 of 25 nodes",
        f"{(lengths < 8).sum()} (",
        f"{replicated.mass(everyone).mean(dtype=np.float64):.4f}",
        f"worst {replicated.bounds(everyone).max():.3g}",
    ):
        assert words in said
    _, indices, values = replicated.rows(np.array([17]))
    for name, value in zip(store.ids(indices), values, strict=True):
        assert re.search(rf"│ {name} +│ {value:.6f}", said)
    with pytest.raises(InputError, match="no node has the id 'x'"):
        optimag("ppr", "inspect", replicated.path, "--node", "x", "--store", store.path)
    with pytest.raises(InputError, match="--store"):
        optimag("ppr", "inspect", replicated.path, "--node", "17")


def test_partition_is_made_and_described(store: GraphStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "console", lambda: Console(width=200))
    said = optimag("partition", store.path, "parts=7", "method=streaming")
    meta = find_partition(store.path, store.content_hash, None).meta
    assert re.search(rf"streaming +│ 7 +│ {meta.edge_cut:.1%}", said)
    assert f"{max(meta.part_arcs):,}" in said
    with pytest.raises(InputError, match="did you mean 'parts'"):
        optimag("partition", store.path, "part=3")
