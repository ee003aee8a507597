"""One batch, wherever its rows come from: a mapped store, or owners that hold a part of the graph each."""

import pickle
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from optimag_dist.sampling import (
    GroupLoader,
    LocalSource,
    SamplingOptions,
    SeedBatcher,
    ShardedSource,
    ShardServer,
    nodes_alone,
)
from optimag_dist.sampling.kernels import gather_float16
from optimag_dist.store import GraphStore, Partition, PartitionOptions, ingest, partition_store
from optimag_dist.store.layout import BATCH_ROWS
from optimag_dist.types import GroupBatch, InputError

NUM_NODES = BATCH_ROWS + 700


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """More nodes than a record batch holds; one modality of each dtype, every ninth node without the second."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("rows")
    single = rng.normal(size=(NUM_NODES, 3)).astype(np.float32)
    single[::9] = np.nan
    np.save(folder / "half.npy", rng.normal(size=(NUM_NODES, 6)).astype(np.float16))
    np.save(folder / "single.npy", single)
    pq.write_table(pa.table({"id": np.arange(NUM_NODES)}), folder / "nodes.parquet")
    ends = rng.integers(0, [[NUM_NODES], [400]], (2, 4 * NUM_NODES))
    pq.write_table(pa.table({"src": ends[0], "dst": ends[1]}), folder / "edges.parquet")
    schema = {
        "name": "rows",
        "nodes": {"file": "nodes.parquet", "id": "id"},
        "modalities": {
            "half": {"file": "half.npy", "dtype": "float16"},
            "single": {"file": "single.npy", "dtype": "float32"},
        },
        "edges": {"file": "edges.parquet", "source": "src", "target": "dst"},
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    return ingest(folder / "schema.yaml", folder / "store")


@pytest.fixture(scope="module")
def partition(store: GraphStore) -> Partition:
    return partition_store(store, PartitionOptions(parts=7, method="hash", features=True), progress=False)


def sharded(partition: Partition, num_owners: int) -> ShardedSource:
    owners = [ShardServer(Partition.open(partition.path)) for _ in range(num_owners)]
    return ShardedSource(
        partition, num_owners, lambda owner, question, *args: partial(getattr(owners[owner], question), *args)
    )


def _tensors(batch: GroupBatch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    batch.map(keep)
    return found


def _batches(loader: GroupLoader, batcher: SeedBatcher) -> list[GroupBatch]:
    return [group for step in loader.epoch([(batcher, nodes_alone)], 1) for group in step.groups]


@pytest.mark.parametrize("num_owners", [1, 2, 5])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_owners_and_threads_do_not_change_a_bit_of_any_batch(
    store: GraphStore, partition: Partition, num_owners: int, num_threads: int
) -> None:
    options = SamplingOptions(batcher="uniform", targets=8, group_size=20, fanouts=(4, 3), eval_fanouts=(-1, 5))
    batcher = SeedBatcher(np.arange(0, NUM_NODES, 200), NUM_NODES, None, options, seed=3)
    expected = _batches(GroupLoader(LocalSource(store), None, options, seed=3, messages=True, num_threads=1), batcher)
    rows = sharded(partition, num_owners)
    found = _batches(GroupLoader(rows, None, options, seed=3, messages=True, num_threads=num_threads), batcher)
    assert len(found) == len(expected) > 6
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.num_targets == theirs.num_targets
        assert all(torch.equal(a, b) for a, b in zip(_tensors(ours), _tensors(theirs), strict=True))


def test_rows_are_what_the_store_says(store: GraphStore) -> None:
    rows = pickle.loads(pickle.dumps(LocalSource(store)))
    nodes = np.random.default_rng(1).integers(0, NUM_NODES, 3000)
    nodes[:4] = 0, BATCH_ROWS - 1, BATCH_ROWS, NUM_NODES - 1
    for modality in ("half", "single"):
        found = rows.features(modality, nodes)
        assert found.dtype == np.float32
        assert np.array_equal(found, store.gather(modality, nodes).astype(np.float32))
        assert np.array_equal(rows.present(modality, nodes), store.present(modality)[nodes])
    assert np.array_equal(rows.degrees(nodes), np.diff(store.topology.indptr)[nodes])
    assert rows.features("half", np.empty(0, np.int64)).shape == (0, 6)
    for bad in (-1, NUM_NODES):
        with pytest.raises(IndexError, match="node ids"):
            rows.features("half", np.array([3, bad]))


def test_every_finite_half_becomes_its_float() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16))]
    out = np.empty((len(halves), 1), np.float32)
    gather_float16(halves, np.arange(0, len(halves), BATCH_ROWS), np.arange(len(halves)), out)
    assert np.array_equal(out[:, 0].view(np.uint32), halves.view(np.float16).astype(np.float32).view(np.uint32))


def test_dgl_cannot_sample_rows_that_lie_elsewhere(partition: Partition) -> None:
    options = SamplingOptions(sampler="dgl")
    with pytest.raises(InputError, match=r"sampling\.sampler=keyed"):
        GroupLoader(sharded(partition, 1), None, options, seed=0, messages=True)


def test_shards_without_features_cannot_be_trained_on(store: GraphStore) -> None:
    bare = partition_store(store, PartitionOptions(parts=2, method="hash"), progress=False)
    with pytest.raises(InputError, match="shards without features; run `optimag partition` with features=true"):
        sharded(bare, 1)
