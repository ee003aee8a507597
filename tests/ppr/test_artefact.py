"""The artefact on disk: computed by Ray, resumed, damaged, read. `ppr_topk` on the whole graph is the reference."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from optimag_dist.ppr import PPRArtefact, PPROptions, ppr_topk
from optimag_dist.ppr.driver import RunTotals, compute_ppr
from optimag_dist.store import GraphStore
from optimag_dist.types import InputError

from .small_store import power_law_store

NUM_NODES = 230
OPTIONS = PPROptions(eps=1e-3, k=8, block_size=50)


def make_store(folder: Path, directed: bool) -> GraphStore:
    return power_law_store(folder, NUM_NODES, isolated=10, directed=directed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return make_store(tmp_path_factory.mktemp("undirected"), directed=False)


@pytest.fixture
def artefact(store: GraphStore, ray_session: None, tmp_path: Path) -> PPRArtefact:
    return compute_ppr(store, OPTIONS, tmp_path / "ppr", progress=False)


def reference(store: GraphStore, options: PPROptions = OPTIONS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    topology = store.topology
    return ppr_topk(
        topology.indptr,
        topology.indices,
        np.arange(store.num_nodes),
        teleport=options.teleport,
        eps=options.eps,
        k=options.k,
    )


def assert_rows(artefact: PPRArtefact, needed: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    for came, expected in zip(artefact.rows(np.arange(artefact.num_nodes)), needed, strict=True):
        np.testing.assert_array_equal(came, expected)


def inodes(path: Path) -> dict[str, int]:
    """A file that is written again gets another inode, because it is renamed into place."""
    return {file.name: file.stat().st_ino for file in path.glob("block-*")}


def test_equals_ppr_topk_and_lists_every_node(artefact: PPRArtefact, store: GraphStore) -> None:
    assert (artefact.num_nodes, artefact.options) == (NUM_NODES, OPTIONS)
    assert sorted(inodes(artefact.path)) == [f"block-{i:06d}.arrow" for i in range(5)]
    assert_rows(artefact, reference(store))
    artefact.verify()


def test_directed_store_gives_the_undirected_graphs_artefact(
    artefact: PPRArtefact, store: GraphStore, ray_session: None, tmp_path: Path
) -> None:
    directed = make_store(tmp_path, directed=True)
    other = compute_ppr(directed, OPTIONS, progress=False)
    assert other.path == directed.path / "ppr" / artefact.key
    assert (other.key, other.graph_hash) == (artefact.key, artefact.graph_hash)
    assert_rows(other, reference(store))


def test_block_size_changes_neither_rows_nor_key(artefact: PPRArtefact, store: GraphStore, tmp_path: Path) -> None:
    other = compute_ppr(store, OPTIONS.model_copy(update={"block_size": 230}), tmp_path / "other", progress=False)
    assert other.key == artefact.key
    assert len(inodes(other.path)) == 1
    assert_rows(other, reference(store))


@pytest.mark.parametrize("change", [{"teleport": 0.2}, {"eps": 2e-3}, {"k": 9}])
def test_other_options_are_another_artefact(
    artefact: PPRArtefact, store: GraphStore, tmp_path: Path, change: dict[str, float]
) -> None:
    options = OPTIONS.model_copy(update=change)
    with pytest.raises(InputError, match="other options"):
        compute_ppr(store, options, artefact.path, progress=False)
    artefact.verify()
    other = compute_ppr(store, options, tmp_path / "other", progress=False)
    assert other.key != artefact.key
    assert_rows(other, reference(store, options))


def test_finished_artefact_is_not_touched(artefact: PPRArtefact, store: GraphStore) -> None:
    before = inodes(artefact.path)
    again = compute_ppr(store, OPTIONS.model_copy(update={"block_size": 7}), artefact.path, progress=False)
    assert inodes(again.path) == before
    assert again.options == OPTIONS


def test_only_the_lost_block_is_computed_again(artefact: PPRArtefact, store: GraphStore) -> None:
    before = inodes(artefact.path)
    (artefact.path / "meta.json").unlink()
    (artefact.path / "block-000002.arrow").unlink()
    (artefact.path / ".block-000002.arrow.left.tmp").write_bytes(b"half a block")
    after = compute_ppr(store, OPTIONS, artefact.path, progress=False)
    del before["block-000002.arrow"]
    assert {name: inodes(after.path)[name] for name in before} == before
    assert not list(after.path.glob(".block*"))
    assert_rows(after, reference(store))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_value(file: Path) -> None:
    """Change a number in place: same size, still valid Arrow."""
    content = bytearray(file.read_bytes())
    with pa.memory_map(str(file)) as source:
        values = pa.ipc.open_file(source).get_batch(0).column("values").values
    needle = values.to_numpy()[:16].tobytes()
    content[content.index(needle)] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_value, Path.unlink])
def test_damage_is_found_and_only_that_block_repaired(
    artefact: PPRArtefact, store: GraphStore, damage: Callable[[Path], None]
) -> None:
    before = inodes(artefact.path)
    del before["block-000003.arrow"]
    damage(artefact.path / "block-000003.arrow")
    with pytest.raises(InputError, match=r"block-000003\.arrow.*optimag ppr"):
        PPRArtefact.open(artefact.path).verify()
    repaired = compute_ppr(store, OPTIONS, artefact.path, progress=False)
    assert {name: inodes(repaired.path)[name] for name in before} == before
    repaired.verify()
    assert_rows(repaired, reference(store))


def test_interrupted_run_resumes(store: GraphStore, ray_session: None, tmp_path: Path) -> None:
    class Interrupting(RunTotals):
        def add(self, other: RunTotals) -> None:
            super().add(other)
            if self.blocks == 2:
                raise KeyboardInterrupt

    path = tmp_path / "ppr"
    with pytest.raises(KeyboardInterrupt):
        compute_ppr(store, OPTIONS, path, progress=False, totals=Interrupting())
    with pytest.raises(InputError, match="unfinished"):
        PPRArtefact.open(path)
    before = inodes(path)
    assert len(before) >= 2
    resumed = compute_ppr(store, OPTIONS, path, progress=False)
    assert {name: inodes(path)[name] for name in before} == before
    assert_rows(resumed, reference(store))


def test_failing_block_is_named_and_the_rest_kept(store: GraphStore, ray_session: None, tmp_path: Path) -> None:
    path = tmp_path / "ppr"
    obstacle = path / "block-000004.arrow"
    obstacle.mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"block 4 of 5 \(nodes 200 to 229\)(.|\n)*Is a directory"):
        compute_ppr(store, OPTIONS, path, progress=False)
    before = inodes(path)
    obstacle.rmdir()
    finished = compute_ppr(store, OPTIONS, path, progress=False)
    kept = set(before) - {obstacle.name}
    assert kept
    assert {name: before[name] for name in kept} == {name: inodes(path)[name] for name in kept}
    assert_rows(finished, reference(store))


def test_blocks_of_another_artefact_are_not_overwritten(artefact: PPRArtefact, store: GraphStore) -> None:
    (artefact.path / "meta.json").unlink()
    before = inodes(artefact.path)
    with pytest.raises(InputError, match="other options"):
        compute_ppr(store, OPTIONS.model_copy(update={"k": 5}), artefact.path, progress=False)
    assert inodes(artefact.path) == before


def test_submatrix_and_mass(artefact: PPRArtefact, store: GraphStore) -> None:
    indptr, indices, values = reference(store)
    dense = np.zeros((NUM_NODES, NUM_NODES), np.float32)
    dense[np.repeat(np.arange(NUM_NODES), np.diff(indptr)), indices] = values
    rng = np.random.default_rng(1)
    for size in (0, 1, 60, NUM_NODES):
        nodes = rng.permutation(NUM_NODES)[:size]
        block = artefact.submatrix(nodes)
        assert (block.dtype, block.shape) == (np.float32, (size, size))
        np.testing.assert_array_equal(block, dense[np.ix_(nodes, nodes)])
        # Sums of at most eight float32 terms in float64, rounded once.
        np.testing.assert_allclose(artefact.mass(nodes), dense[nodes].sum(1, dtype=np.float64), rtol=2**-24)
    repeated = np.array([3, 200, 3])
    np.testing.assert_array_equal(artefact.submatrix(repeated), dense[np.ix_(repeated, repeated)])
    assert artefact.mass([NUM_NODES - 1]).tolist() == [1.0]


def test_pickles_as_its_path(artefact: PPRArtefact) -> None:
    pickled = pickle.dumps(artefact)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).submatrix([1, 2, 3]), artefact.submatrix([1, 2, 3]))


@pytest.mark.parametrize("bad", [[0, NUM_NODES], [-1], [0.5], [[1]]])
def test_bad_node_ids(artefact: PPRArtefact, bad: list[object]) -> None:
    for method in (artefact.rows, artefact.submatrix, artefact.mass):
        with pytest.raises(InputError, match="node_ids"):
            method(bad)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        PPRArtefact.open(tmp_path / "nowhere")


def test_other_format(artefact: PPRArtefact) -> None:
    meta = artefact.path / "meta.json"
    record = json.loads(meta.read_text(encoding="utf-8")) | {"format": 99}
    del record["checksum"]
    meta.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match="99"):
        PPRArtefact.open(artefact.path)
