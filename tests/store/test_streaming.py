"""Tables in several files, read in pieces: the same store as from one file, and estimates of what that takes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from optimag_dist.store import edges, ingest
from optimag_dist.store.importers import open_source
from optimag_dist.store.ingest import estimate_needs
from optimag_dist.types import InputError

N, M, PARTS = 300, 2000, 4


@pytest.fixture
def folder(tmp_path):
    """nodes and edges whole and in parts, in Parquet and CSV, ids that need looking up."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(10 * N)[:N]
    nodes = pa.table({"id": ids, "p": rng.random(N).round(6), "y": rng.integers(0, 3, N)})
    ends = pa.table({"src": rng.choice(ids, M), "dst": rng.choice(ids, M)})
    for name, table in {"nodes": nodes, "edges": ends}.items():
        for ending, write in {"parquet": pq.write_table, "csv": pa.csv.write_csv}.items():
            write(table, tmp_path / f"{name}.{ending}")
            step = len(table) // PARTS
            for part in range(PARTS):
                rows = table.slice(part * step, step)
                write(rows, tmp_path / f"{name}-{part}.{ending}")
    return tmp_path


def write_schema(folder, nodes, edges):
    schema = {
        "name": "g",
        "nodes": {"file": nodes, "id": "id", "label": "y"},
        "modalities": {"m": {"columns": ["p"]}},
        "edges": {"file": edges, "source": "src", "target": "dst"},
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    return folder / "schema.yaml"


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("batch", [7, 1 << 18])
def test_parts_equal_the_whole(folder, monkeypatch, ending, batch):
    whole = ingest(write_schema(folder, "nodes.parquet", "edges.parquet"), folder / "whole")
    monkeypatch.setattr(edges, "BATCH_EDGES", batch)
    listed = [f"edges-{part}.{ending}" for part in range(PARTS)]
    for number, files in enumerate([(f"nodes-*.{ending}", f"edges-?.{ending}"), (f"nodes.{ending}", listed)]):
        store = ingest(write_schema(folder, *files), folder / f"store{number}")
        assert store.content_hash == whole.content_hash


def test_lookup_skipped_for_counting_ids_gives_the_same(tmp_path):
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, N, (M, 2))
    stores = []
    for ids in (np.arange(N), np.arange(N) + 5):
        pq.write_table(pa.table({"id": ids, "p": np.arange(N) * 1.0, "y": np.arange(N)}), tmp_path / "nodes.parquet")
        ends = {"src": ids[pairs[:, 0]].astype(np.int32), "dst": ids[pairs[:, 1]]}
        pq.write_table(pa.table(ends), tmp_path / "edges.parquet")
        schema = write_schema(tmp_path, "nodes.parquet", "edges.parquet")
        stores.append(ingest(schema, tmp_path / f"store{len(stores)}"))
    for part in ("indptr", "indices"):
        assert np.array_equal(getattr(stores[0].topology, part), getattr(stores[1].topology, part))
    pq.write_table(pa.table({"src": [0, N + 4], "dst": [5, 6]}), tmp_path / "edges.parquet")
    with pytest.raises(InputError, match=r"edges\.parquet, column 'src', row 1: 0 is not the id"):
        ingest(schema, tmp_path / "store3")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_message_names_the_part_and_its_row(folder, ending):
    table = pq.read_table(folder / "edges-2.parquet")
    column = table["src"].to_numpy().copy()
    column[10] = -1
    write = pq.write_table if ending == "parquet" else pa.csv.write_csv
    write(table.set_column(0, "src", pa.array(column)), folder / f"edges-2.{ending}")
    schema = write_schema(folder, f"nodes.{ending}", f"edges-?.{ending}")
    with pytest.raises(InputError, match=rf"edges-2\.{ending}, column 'src', row 11: '?-1'? is not the id of any node"):
        ingest(schema, folder / "store")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("none-*.parquet", "no file has such a name"),
        (["edges-0.parquet", "none.parquet"], "none.parquet: no such file"),
        (["edges-0.parquet", "edges-1.csv"], r"edges-1\.csv: edges-0\.parquet is of another kind"),
        (["edges-0.parquet", "odd.parquet"], r"odd\.parquet, column 'src': holds large_string, but edges-0"),
        (["edges-0.parquet", "other.parquet"], r"other\.parquet: no column 'dst'"),
        ([], "edges.file"),
    ],
)
def test_parts_that_do_not_fit(folder, files, words):
    pq.write_table(pa.table({"src": ["a"], "dst": [1]}), folder / "odd.parquet")
    pq.write_table(pa.table({"src": [1]}), folder / "other.parquet")
    with pytest.raises(InputError, match=words):
        ingest(write_schema(folder, "nodes.parquet", files), folder / "store")
    assert not (folder / "store").exists()


def test_estimate_of_disk_holds_and_is_no_more_than_a_few_times_too_much(tmp_path):
    """Against the bytes on the disk, scratch files included, at the moment when the store is put in place."""
    rng = np.random.default_rng(0)
    n, m, width = 20_000, 200_000, 8
    np.savez(tmp_path / "g.npz", edges=rng.integers(0, n, (m, 2)), x_a=rng.random((n, width)))
    source = open_source(tmp_path / "g.npz")
    _, disk = estimate_needs(source, source.ids())
    store = ingest(tmp_path / "g.npz", tmp_path / "store")
    size = sum(path.stat().st_size for path in store.path.iterdir())
    assert size <= disk <= 4 * size


def test_estimate_of_memory_grows_with_nodes_and_hardly_with_edges(tmp_path):
    def memory(n, m):
        np.savez(tmp_path / "g.npz", edges=np.zeros((m, 2), np.int32), x_a=np.zeros((n, 1), np.float16))
        source = open_source(tmp_path / "g.npz")
        return estimate_needs(source, source.ids())[0]

    base = memory(1000, 1000)
    assert 30 * 10**6 < memory(10**6, 1000) - base < 200 * 10**6
    # Beyond the window (2²⁶ arcs) nothing grows; below it an undirected edge takes 8 bytes.
    assert memory(1000, 10**6) - base < 50 * 10**6
