"""Changed edges in a store with PPR artefacts, against a store ingested afresh and exact PPR of the changed graph."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from optimag_dist.ppr import PPRArtefact, PPROptions, update
from optimag_dist.ppr.artefact import artefact_key, block_name, write_block
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ppr.topk import push_sources
from optimag_dist.ppr.update import ArtefactUpdate, UpdateOptions, update_ppr
from optimag_dist.store import GraphStore
from optimag_dist.store.csr import graph_hash
from optimag_dist.store.layout import old_store
from optimag_dist.types import InputError

from . import small_store
from .ppr_oracle import exact_ppr, power_law, undirected_dense

NUM_NODES = 240
OPTIONS = PPROptions(eps=1e-3, k=8, block_size=50)
FLOAT32_BELOW = 2.0**-23

Edge = tuple[int, int]


def user_id(node: int) -> str:
    return f"n{node:03d}"


def base_edges() -> set[Edge]:
    """A power-law graph, and nodes from 220 on without edges but for one pair."""
    csr = power_law(220, 3, seed=0)
    sources = np.repeat(np.arange(220), np.diff(csr.indptr))
    return {(int(u), int(v)) for u, v in zip(sources, csr.indices, strict=True) if u < v} | {(230, 231)}


def make_store(folder: Path, edges: Iterable[Edge], directed: bool = False) -> GraphStore:
    ends = [[user_id(node) for node in side] for side in zip(*sorted(edges), strict=True)]
    return small_store.make_store(folder, [user_id(node) for node in range(NUM_NODES)], ends, directed=directed)


def add_artefact(store: GraphStore, options: PPROptions = OPTIONS) -> PPRArtefact:
    """What `compute_ppr` writes, without Ray."""
    digest = graph_hash(store.topology)
    key = artefact_key(digest, options)
    path = store.path / "ppr" / key
    checksums = []
    for index, first in enumerate(range(0, NUM_NODES, options.block_size)):
        nodes = np.arange(first, min(first + options.block_size, NUM_NODES))
        rows = push_sources(store.topology, nodes, teleport=options.teleport, eps=options.eps, k=options.k)
        block = rows.indptr, rows.indices, rows.values, rows.bounds
        checksums.append(write_block(path / block_name(index), key, first, *block))
    PPRArtefact.finish(path, NUM_NODES, options, digest, checksums)
    return PPRArtefact.open(path)


def write_changes(path: Path, inserted: Iterable[Edge], deleted: Iterable[Edge]) -> Path:
    rows = [(u, v, "insert") for u, v in inserted] + [(u, v, "delete") for u, v in deleted]
    columns = [list(column) for column in zip(*rows, strict=True)]
    ends = [[user_id(node) for node in column] for column in columns[:2]]
    table = pa.table({"source": ends[0], "target": ends[1], "op": columns[2]})
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def quietly(store: Path, edges: Path, out: Path | None = None, slack: float = 1.0) -> list[ArtefactUpdate]:
    return update_ppr(store, edges, out, UpdateOptions(slack=slack), progress=False, say=lambda line: None)


def assert_bounds_hold(artefact: PPRArtefact, store: GraphStore) -> None:
    exact = exact_ppr(undirected_dense(store.topology), artefact.options.teleport)
    degree = np.diff(store.topology.indptr)
    indptr, indices, values = artefact.rows(np.arange(NUM_NODES))
    for s, bound in enumerate(artefact.bounds(np.arange(NUM_NODES))):
        row = slice(indptr[s], indptr[s + 1])
        stored = np.zeros(NUM_NODES)
        stored[indices[row]] = values[row]
        promised = np.ones(NUM_NODES, bool) if row.stop - row.start < artefact.options.k else stored > 0
        wrong = np.abs(exact[s] - stored) - bound * degree - FLOAT32_BELOW * stored
        assert (wrong[promised] <= 1e-12).all()


def rows_of(artefact: PPRArtefact) -> list[tuple[bytes, bytes]]:
    indptr, indices, values = artefact.rows(np.arange(artefact.num_nodes))
    return [(indices[a:b].tobytes(), values[a:b].tobytes()) for a, b in itertools.pairwise(indptr)]


# An edge between far nodes, an end that had none, a pair taken apart, and one whose nodes stay connected.
INSERTED = [(3, 219), (10, 225)]
DELETED = [(230, 231)]


def test_store_and_artefact_are_those_of_the_changed_graph(tmp_path: Path) -> None:
    edges = base_edges()
    deleted = [*DELETED, min(edges)]
    old = make_store(tmp_path / "old", edges)
    artefact = add_artefact(old)
    fresh_store = make_store(tmp_path / "fresh", edges - set(deleted) | set(INSERTED))
    fresh = add_artefact(fresh_store)
    (done,) = quietly(old.path, write_changes(tmp_path / "changes.parquet", INSERTED, deleted), tmp_path / "new")
    new, updated = GraphStore.open(tmp_path / "new"), PPRArtefact.open(done.path)

    assert new.content_hash == fresh_store.content_hash
    new.verify()
    for file in ("nodes.arrow", "modality-x.arrow"):
        assert os.path.samefile(new.path / file, old.path / file)
    assert (updated.path, updated.key) == (new.path / "ppr" / fresh.key, fresh.key)
    updated.verify()
    assert_bounds_hold(updated, new)
    assert done.worst_bound <= 2

    before, after, needed = rows_of(artefact), rows_of(updated), rows_of(fresh)
    renewed = [s for s in range(NUM_NODES) if updated.bounds([s]) == fresh.bounds([s]) and after[s] == needed[s]]
    kept = [s for s in range(NUM_NODES) if s not in renewed]
    assert 8 <= done.renewed <= len(renewed) < 150
    assert all(after[s] == before[s] for s in kept)
    assert all(updated.bounds([s]) > artefact.bounds([s]) for s in kept)
    # The old store has not changed.
    GraphStore.open(old.path).verify()
    PPRArtefact.open(artefact.path).verify()


def test_without_slack_every_reached_row_is_fresh(tmp_path: Path) -> None:
    edges = base_edges()
    old = make_store(tmp_path / "old", edges)
    add_artefact(old)
    fresh = add_artefact(make_store(tmp_path / "fresh", edges | set(INSERTED)))
    (done,) = quietly(old.path, write_changes(tmp_path / "c.csv", INSERTED, []), tmp_path / "new", slack=0)
    updated = PPRArtefact.open(done.path)
    far = 238
    assert done.renewed < NUM_NODES
    assert [row for s, row in enumerate(rows_of(updated)) if s != far] == [
        row for s, row in enumerate(rows_of(fresh)) if s != far
    ]
    assert updated.bounds(np.arange(NUM_NODES)).max() <= np.nextafter(np.float32(OPTIONS.eps), np.float32(1))


def test_many_small_updates_in_place_add_up_honestly(tmp_path: Path) -> None:
    store = make_store(tmp_path, base_edges())
    add_artefact(store)
    rng = np.random.default_rng(3)
    edges = base_edges()
    renewed = []
    for step in range(12):
        pair = tuple(sorted(int(x) for x in rng.choice(220, 2, replace=False)))
        inserted, deleted = ([], [pair]) if pair in edges else ([pair], [])
        edges ^= {pair}
        (done,) = quietly(store.path, write_changes(tmp_path / f"{step}.csv", inserted, deleted))
        renewed.append(done.renewed)
    new = GraphStore.open(store.path)
    assert (new.num_arcs, max(renewed) < NUM_NODES) == (2 * len(edges), True)
    assert len(list((store.path / "ppr").iterdir())) == 1
    assert_bounds_hold(PPRArtefact.open(done.path), new)


def test_blocks_that_change_as_a_whole_go_through_ray(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = base_edges()
    old = make_store(tmp_path / "old", edges)
    # The third block holds the nodes from 220 on, most of which have no edge.
    options = OPTIONS.model_copy(update={"block_size": 110})
    add_artefact(old, options)
    deleted = sorted(edges)[::7]
    monkeypatch.setattr(update, "_LOCAL_ROWS", 10)
    changes = write_changes(tmp_path / "changes.parquet", INSERTED, deleted)
    (done,) = quietly(old.path, changes, tmp_path / "new")
    new = GraphStore.open(tmp_path / "new")
    updated = PPRArtefact.open(done.path)
    updated.verify()
    assert_bounds_hold(updated, new)
    fresh = compute_ppr(new, options, tmp_path / "fresh", progress=False)
    assert rows_of(updated)[:220] == rows_of(fresh)[:220]
    assert done.renewed == 220 + 1


def test_every_option_set_is_updated_and_unfinished_ones_are_told(tmp_path: Path) -> None:
    store = make_store(tmp_path, base_edges())
    add_artefact(store)
    add_artefact(store, OPTIONS.model_copy(update={"k": 3, "teleport": 0.3}))
    unfinished = add_artefact(store, OPTIONS.model_copy(update={"k": 5})).path
    (unfinished / "meta.json").unlink()
    (store.path / "partitions").mkdir()
    lines: list[str] = []
    changes = write_changes(tmp_path / "c.csv", INSERTED, [])
    done = update_ppr(store.path, changes, progress=False, say=lines.append)
    assert {PPRArtefact.open(each.path).options.k for each in done} == {8, 3}
    assert any(unfinished.name in line and "unfinished" in line for line in lines)
    assert any("optimag partition" in line for line in lines)
    for each in done:
        assert_bounds_hold(PPRArtefact.open(each.path), GraphStore.open(store.path))


def test_store_without_artefact_is_rewired(tmp_path: Path) -> None:
    store = make_store(tmp_path, base_edges())
    assert quietly(store.path, write_changes(tmp_path / "c.csv", INSERTED, DELETED)) == []
    expected = make_store(tmp_path / "fresh", (base_edges() | set(INSERTED)) - set(DELETED))
    assert GraphStore.open(store.path).content_hash == expected.content_hash


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("n001", "n999", "insert")], r"c\.csv, column 'target', row 1: 'n999'"),
        ([("n230", "n231", "delete"), ("n007", "", "insert")], r"c\.csv, column 'target', row 2: .*empty"),
        ([("n230", "n231", "remove")], r"c\.csv, column 'op', row 1: needed 'insert' or 'delete', got 'remove'"),
        ([("n230", "n231", "delete"), ("n005", "n005", "insert")], r"row 2: .*'n005' to 'n005' joins a node to itself"),
        ([("n230", "n233", "insert"), ("n233", "n230", "insert")], r"row 2: .*'n233' to 'n230' stands in an"),
        ([("n231", "n230", "insert")], r"row 1: .*'n231' to 'n230' is in the graph already"),
        ([("n231", "n232", "delete")], r"row 1: .*'n231' to 'n232' is not in the graph"),
        ([], "no rows"),
    ],
)
def test_changes_that_do_not_fit_are_named_and_nothing_changes(
    tmp_path: Path, rows: list[tuple[str, str, str]], message: str
) -> None:
    store = make_store(tmp_path, base_edges())
    artefact = add_artefact(store)
    lines = ["source,target,op", *(",".join(row) for row in rows)]
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        quietly(store.path, tmp_path / "c.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert GraphStore.open(store.path).content_hash == store.content_hash
    PPRArtefact.open(artefact.path).verify()


def test_stores_that_must_not_be_changed(tmp_path: Path) -> None:
    changes = write_changes(tmp_path / "c.csv", INSERTED, [])
    directed = make_store(tmp_path / "directed", base_edges(), directed=True)
    with pytest.raises(InputError, match="directed"):
        quietly(directed.path, changes)
    store = make_store(tmp_path / "undirected", base_edges())
    (store.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        quietly(store.path, changes)
    with pytest.raises(InputError, match="taken"):
        quietly(store.path, changes, directed.path)
    with pytest.raises(InputError, match="no such file"):
        quietly(store.path, tmp_path / "nowhere.csv", tmp_path / "new")
    (store.path / "notes.txt").unlink()
    block = add_artefact(store).path / block_name(1)
    content = block.read_bytes()
    block.write_bytes(content[:1500] + bytes([content[1500] ^ 1]) + content[1501:])
    with pytest.raises(InputError, match="block-000001"):
        quietly(store.path, changes)
    assert GraphStore.open(store.path).content_hash == store.content_hash


def test_two_updates_at_once_both_count(tmp_path: Path) -> None:
    store = make_store(tmp_path, base_edges())
    add_artefact(store)
    files = [write_changes(tmp_path / f"{edge[0]}.csv", [edge], []) for edge in INSERTED]
    threads = [threading.Thread(target=quietly, args=(store.path, file)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    new = GraphStore.open(store.path)
    assert new.num_arcs == store.num_arcs + 2 * len(INSERTED)
    (path,) = (store.path / "ppr").iterdir()
    assert PPRArtefact.open(path).graph_hash == graph_hash(new.topology)
    assert_bounds_hold(PPRArtefact.open(path), new)


def test_killed_before_it_is_published_leaves_the_old_one_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path, base_edges())
    artefact = add_artefact(store)
    changes = write_changes(tmp_path / "c.parquet", INSERTED, DELETED)
    program = (
        "import os, sys, signal\n"
        "from optimag_dist.ppr import update\n"
        "update.publish = lambda stage, target: os.kill(os.getpid(), signal.SIGKILL)\n"
        "update.update_ppr(sys.argv[1], sys.argv[2])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(store.path), str(changes)], check=False)
    assert killed.returncode == -signal.SIGKILL
    same = GraphStore.open(store.path)
    same.verify()
    assert same.content_hash == store.content_hash
    PPRArtefact.open(artefact.path).verify()
    # As a process leaves it that is killed between the two renames of publishing.
    store.path.rename(old_store(store.path))
    (done,) = quietly(store.path, changes)
    assert_bounds_hold(PPRArtefact.open(done.path), GraphStore.open(store.path))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
