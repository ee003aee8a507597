"""Bytes on the disk change: whatever reads them says so in a sentence, or gives what it gave before."""

import hashlib
import json
import multiprocessing
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from optimag_dist import integrity
from optimag_dist.inference.parts import Parts
from optimag_dist.ppr import PPRArtefact, PPROptions, ppr_topk
from optimag_dist.ppr.artefact import artefact_key, block_name, read_block, write_block
from optimag_dist.ppr.topk import push_sources
from optimag_dist.sampling import LocalSource
from optimag_dist.store import (
    GraphStore,
    LinkSplitOptions,
    Partition,
    PartitionOptions,
    ingest,
    partition_store,
    split_links,
)
from optimag_dist.store.arrow_files import ArrowMap, write_topology
from optimag_dist.store.csr import graph_hash
from optimag_dist.store.layout import BATCH_ROWS, TOPOLOGY, read_meta, write_meta
from optimag_dist.train import checkpoint
from optimag_dist.types import CSR, InputError

CPU = torch.device("cpu")
NODES = 12
PPR = PPROptions(k=4, block_size=8)


def quietly(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once."""
    monkeypatch.setattr(integrity, "_SETTLED_NS", 0)
    monkeypatch.setattr(integrity, "_passed", set())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything."""
    folder = tmp_path_factory.mktemp("whole")
    ring = [(u, (u + step) % NODES) for u in range(NODES) for step in (1, 2)]
    features = np.random.default_rng(0).normal(size=(NODES, 3)).astype(np.float32)
    nodes = {
        "id": [f"node {u}" for u in range(NODES)],
        "y": ["ab"[u % 2] for u in range(NODES)],
        "part": [("train", "val", "test")[u % 3] for u in range(NODES)],
        "x": [None if u == 5 else row.tolist() for u, row in enumerate(features)],
        "title": [None if u == 3 else f"title {u}" for u in range(NODES)],
    }
    pq.write_table(pa.table(nodes), folder / "nodes.parquet")
    ends = {"src": [f"node {u}" for u, _ in ring], "dst": [f"node {v}" for _, v in ring]}
    pq.write_table(pa.table(ends), folder / "edges.parquet")
    schema = {
        "name": "ring",
        "nodes": {"file": "nodes.parquet", "id": "id", "label": "y", "split": "part"},
        "modalities": {"m": {"column": "x"}},
        "attributes": {"title": {"column": "title", "kind": "text"}},
        "edges": {"file": "edges.parquet", "source": "src", "target": "dst"},
    }
    (folder / "schema.yaml").write_text(json.dumps(schema), encoding="utf-8")
    ingested = ingest(folder / "schema.yaml", folder / "ingested", say=quietly)
    store = split_links(ingested, folder / "store", LinkSplitOptions(val=0.1, test=0.1, negatives=2), say=quietly)
    partition_store(store, PartitionOptions(parts=2, method="hash", features=True), progress=False)
    os.rename(next((store.path / "partitions").glob("hash*")), folder / "partition")
    shutil.rmtree(store.path / "partitions")
    make_artefact(store, folder / "ppr")
    checkpoint.save(folder / "model.pt", {"weights": {"w": torch.arange(40.0)}, "store": "abc", "classes": ["u", "v"]})
    return folder


def make_artefact(store: GraphStore, path: Path) -> None:
    """What `compute_ppr` writes, without Ray."""
    digest = graph_hash(store.topology)
    blocks = []
    for index, first in enumerate(range(0, NODES, PPR.block_size)):
        sources = np.arange(first, min(first + PPR.block_size, NODES))
        rows = push_sources(store.topology, sources, teleport=PPR.teleport, eps=PPR.eps, k=PPR.k)
        arrays = rows.indptr, rows.indices, rows.values, rows.bounds
        blocks.append(write_block(path / block_name(index), artefact_key(digest, PPR), first, *arrays))
    PPRArtefact.finish(path, NODES, PPR, digest, blocks)


# Everything that can be read, as plain values.


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def read_store(path: Path) -> Any:
    store = GraphStore.open(path)
    everyone = np.arange(store.num_nodes)
    links = [(part.sources, part.targets, part.negatives) for part in (store.links.val, store.links.test)]
    csr, rows = store.topology, LocalSource(store)
    facts = store.name, store.classes, store.directed, store.content_hash, store.ids(everyone), store.summary()
    arrays = csr.indptr, csr.indices, store.labels, store.split, store.present("m"), store.gather("m", everyone)
    read = rows.neighbours(everyone, 2, 7), rows.features("m", everyone), ppr_topk(csr.indptr, csr.indices, everyone)
    return plain([facts, arrays, links, store.attribute("title", everyone), store.has_attribute("title"), read])


def read_partition(path: Path) -> Any:
    partition = Partition.open(path)
    arrays = [partition.part, partition.row, partition.degrees, *partition.rows(np.arange(NODES))]
    for part in range(2):
        flat, starts = partition.feature_file(part, "m")
        arrays += [partition.shard(part).nodes, flat[starts[0] :], partition.present(part, "m")]
    return plain([partition.meta.model_dump(exclude={"version", "files"}), arrays])


def read_artefact(path: Path) -> Any:
    artefact = PPRArtefact.open(path)
    everyone = np.arange(NODES)
    arrays = [artefact.submatrix(everyone), artefact.bounds(everyone), artefact.mass(everyone)]
    return plain([artefact.graph_hash, artefact.key, artefact.options.model_dump(), arrays, artefact.rows(everyone)])


def read_model(path: Path) -> Any:
    return plain(checkpoint.load(path, CPU))


READERS: dict[str, Callable[[Path], Any]] = {
    "store": read_store,
    "partition": read_partition,
    "ppr": read_artefact,
    "model.pt": read_model,
}
FILES = [
    *(f"store/{name}.arrow" for name in ("nodes", "topology", "links", "modality-m", "attribute-title")),
    *(f"partition/{name}.arrow" for name in ("assignment", "shard-00000", "shard-00001.m")),
    *(f"ppr/{block_name(index)}" for index in (0, 1)),
    *(f"{kind}/meta.json" for kind in ("store", "partition", "ppr")),
    "model.pt",
]


def as_older_program_wrote(folder: Path) -> None:
    """Take away the checksums."""
    for meta in folder.glob("*/meta.json"):
        record = json.loads(meta.read_text(encoding="utf-8"))
        del record["checksum"]
        if "version" in record:
            record["version"] = 1
        for file in [*record.get("files", {}).values(), *record.get("blocks", [])]:
            file.pop("segments", None)
            file.pop("checksum", None)
        meta.write_text(json.dumps(record), encoding="utf-8")
    torch.save(checkpoint.load(folder / "model.pt", CPU), folder / "model.pt")


def copied(whole: Path, folder: Path, older: bool) -> Path:
    shutil.copytree(whole, folder)
    if older:
        as_older_program_wrote(folder)
    return folder


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_told_or_changes_nothing(whole: Path, tmp_path: Path, name: str, older: bool) -> None:
    folder = copied(whole, tmp_path / "copy", older)
    kind, file = name.partition("/")[0], folder / name
    expected = READERS[kind](whole / kind)
    assert READERS[kind](folder / kind) == expected
    content = file.read_bytes()
    # A prime, so that flips fall on every place within a word.
    places = [*range(0, len(content), max(1, len(content) // 60 | 1)), len(content) - 1]
    unnoticed = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= (1, 0x80, 0xFF)[place % 3]
        file.write_bytes(damaged)
        try:
            came = READERS[kind](folder / kind)
        except InputError as error:
            came = error
        if isinstance(came, InputError):
            assert str(folder) in str(came)
        else:
            # In the older descriptions of stores and partitions some entries stood unprotected.
            assert came == expected or (older and kind != "ppr" and file.name == "meta.json"), f"byte {place}"
            unnoticed += 1
    if not older and name.endswith(".arrow"):
        assert unnoticed == 0
    assert unnoticed < len(places) * 0.7


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "folder", "pipe", "long"])
def test_what_is_no_whole_file_is_told(whole: Path, tmp_path: Path, name: str, damage: str) -> None:
    folder = copied(whole, tmp_path / "copy", older=False)
    file, content = folder / name, (folder / name).read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "pipe":
        os.mkfifo(file)
    elif damage != "gone":
        file.write_bytes({"cut": content[:-1], "empty": b"", "long": content + b"\0"}[damage])
    kind = name.partition("/")[0]
    with pytest.raises(InputError, match=kind):
        READERS[kind](folder / kind)


# Whoever wrote the files: their checksums fit, and what they hold cannot be.


def rewritten(whole: Path, folder: Path, csr: CSR) -> Path:
    """A store whose topology is ``csr``, with checksums to match."""
    shutil.copytree(whole / "store", folder)
    (folder / TOPOLOGY).unlink()
    meta = read_meta(whole / "store")
    files = {**meta.files, TOPOLOGY: write_topology(folder / TOPOLOGY, csr)}
    write_meta(folder, meta.model_copy(update={"files": files, "num_arcs": csr.num_arcs}))
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indices": {3: NODES}}, "row \\d does not hold"),
        ({"indices": {3: -1}}, "row \\d does not hold"),
        ({"indices": {0: 2**31 - 1}}, "row 0 does not hold"),
        ({"indices": {1: 0}}, "row 0 does not hold"),
        ({"indptr": {1: 2**40}}, "damaged"),
        ({"indptr": {1: -5}}, "damaged"),
        ({"indptr": {NODES: 5}}, "damaged"),
    ],
)
def test_neighbours_outside_the_graph_reach_no_kernel(
    whole: Path, tmp_path: Path, change: dict[str, dict[int, int]], words: str
) -> None:
    good = GraphStore.open(whole / "store").topology
    arrays = {"indptr": good.indptr.copy(), "indices": good.indices.copy()}
    for name, places in change.items():
        for place, value in places.items():
            arrays[name][place] = value
    store = GraphStore.open(rewritten(whole, tmp_path / "store", CSR(**arrays)))
    for _ in range(2):
        with pytest.raises(InputError, match=rf"topology\.arrow: damaged.*{words}|topology\.arrow: {words}"):
            LocalSource(store).neighbours(np.arange(NODES), -1, 0)


@pytest.mark.parametrize("change", [{"indices": NODES}, {"indices": -1}, {"values": np.nan}, {"values": 2.0}])
def test_ppr_of_other_nodes_is_refused(whole: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(whole / "ppr", tmp_path / "ppr")
    meta = json.loads((tmp_path / "ppr/meta.json").read_text(encoding="utf-8"))
    good = read_block(tmp_path / "ppr" / block_name(0))
    arrays = {name: getattr(good, name).copy() for name in ("offsets", "indices", "values", "bounds")}
    for name, value in change.items():
        arrays[name][2] = value
    block = write_block(tmp_path / "ppr" / block_name(0), meta["key"], 0, *arrays.values())
    blocks = [block, read_block(tmp_path / "ppr" / block_name(1)).record()]
    PPRArtefact.finish(tmp_path / "ppr", NODES, PPR, meta["graph_hash"], blocks)
    with pytest.raises(InputError, match=r"block-000000\.arrow: damaged"):
        PPRArtefact.open(tmp_path / "ppr")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("store", {"num_nodes": -1}),
        ("store", {"num_nodes": 10**400}),
        ("store", {"num_nodes": "many"}),
        ("store", {"num_nodes": NODES + 1}),
        ("store", {"modalities": [{"name": "../../m", "width": 3, "dtype": "float32"}]}),
        ("store", {"modalities": [{"name": "m", "width": 2**40, "dtype": "float32"}]}),
        ("store", {"modalities": [{"name": "m", "width": 4, "dtype": "float32"}]}),
        ("store", {"classes": ["a"]}),
        ("store", {"files": {}}),
        ("partition", {"parts": 3}),
        ("partition", {"part_nodes": [7, 5]}),
        ("partition", {"files": {"../x": {"size": 1, "digest": "0" * 64}}}),
        ("ppr", {"num_nodes": 10**9}),
        ("ppr", {"num_nodes": 0}),
        ("ppr", {"blocks": []}),
        ("ppr", {"blocks": 7}),
        ("ppr", {"options": {"teleport": 5}}),
        ("ppr", {"key": "0" * 32}),
    ],
)
def test_a_description_that_cannot_be_is_told(whole: Path, tmp_path: Path, kind: str, change: dict[str, Any]) -> None:
    shutil.copytree(whole / kind, tmp_path / kind)
    path = tmp_path / kind / "meta.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record = {name: value for name, value in record.items() if name != "checksum"} | change
    if kind == "store":
        # Whoever forges it forges the hash.
        content = {name: value for name, value in record.items() if name not in ("format", "version", "name", "files")}
        content["digests"] = {name: file["digest"] for name, file in record["files"].items()}
        del content["content_hash"]
        record["content_hash"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=str(tmp_path / kind)):
        READERS[kind](tmp_path / kind)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b"null", b"1" * 5_000, b'{"format": []}'])
@pytest.mark.parametrize("kind", ["store", "partition", "ppr"])
def test_a_description_that_is_none_is_told(whole: Path, tmp_path: Path, kind: str, content: bytes) -> None:
    shutil.copytree(whole / kind, tmp_path / kind)
    (tmp_path / kind / "meta.json").write_bytes(content)
    with pytest.raises(InputError, match=r"meta\.json|PPR format"):
        READERS[kind](tmp_path / kind)


# Once for each file, user and host.


class Counted:
    """A verification that counts how often it is asked for."""

    def __init__(self, passes: bool = True) -> None:
        self.calls = 0
        self._passes = passes

    def __call__(self) -> None:
        self.calls += 1
        if not self._passes:
            raise InputError("damaged")


def ask(file: Path, verify: Callable[[], None], monkeypatch: pytest.MonkeyPatch, expected: str = "") -> None:
    """As a new process would."""
    monkeypatch.setattr(integrity, "_passed", set())
    integrity.verified_once([file.stat()], expected, verify)


def test_what_has_passed_is_not_verified_again(settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, verify = tmp_path / "file", Counted()
    file.write_bytes(b"one")
    for _ in range(3):
        ask(file, verify, monkeypatch)
    assert verify.calls == 1
    assert stat.S_IMODE((tmp_path / "cache/optimag/verified").stat().st_mode) == 0o700
    ask(file, verify, monkeypatch, expected="something else")
    assert verify.calls == 2
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    ask(file, verify, monkeypatch)
    assert verify.calls == 3, "the same size and time, and yet changed"
    file.rename(tmp_path / "old")
    file.write_bytes(b"two")
    ask(file, verify, monkeypatch)
    assert verify.calls == 4


def test_what_was_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    file, verify = tmp_path / "file", Counted()
    file.write_bytes(b"one")
    for _ in range(2):
        integrity.verified_once([file.stat()], "", verify)
    assert verify.calls == 2


def test_damage_is_not_remembered(settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"one")
    for _ in range(2):
        with pytest.raises(InputError, match="damaged"):
            ask(tmp_path / "file", Counted(passes=False), monkeypatch)
    verify = Counted()
    ask(tmp_path / "file", verify, monkeypatch)
    assert verify.calls == 1


@pytest.mark.parametrize("folder", ["open to others", "a link", "a file", "nowhere", "no home"])
def test_without_a_folder_of_its_own_nothing_is_trusted(
    settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path, folder: str
) -> None:
    own_cache.mkdir()
    if folder == "nowhere":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    elif folder == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    elif folder == "a file":
        (own_cache / "optimag").write_bytes(b"")
    elif folder == "a link":
        (own_cache / "optimag").mkdir()
        (tmp_path / "others").mkdir(mode=0o700)
        (own_cache / "optimag/verified").symlink_to(tmp_path / "others")
    else:
        (own_cache / "optimag/verified").mkdir(parents=True)
        (own_cache / "optimag/verified").chmod(0o777)
    (tmp_path / "file").write_bytes(b"one")
    verify = Counted()
    for _ in range(2):
        ask(tmp_path / "file", verify, monkeypatch)
    assert verify.calls == 2


def test_a_store_is_read_without_a_cache_from_folders_that_cannot_be_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    shutil.copytree(whole, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((tmp_path / "copy").rglob("*"))
    for kind, read in READERS.items():
        assert read(tmp_path / "copy" / kind) == read(whole / kind)
    assert sorted((tmp_path / "copy").rglob("*")) == before


def _read_and_count(path: Path, log: Path) -> None:
    real = ArrowMap._verify

    def counting(file: ArrowMap) -> None:
        with log.open("a") as lines:
            lines.write("1\n")
        real(file)

    ArrowMap._verify = counting  # type: ignore[method-assign]
    read_store(path)


def test_twenty_readers_at_once_verify_once(settled: None, whole: Path, tmp_path: Path) -> None:
    expected = read_store(whole / "store")
    shutil.copytree(whole / "store", tmp_path / "store")
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=_read_and_count, args=(tmp_path / "store", tmp_path / "log")) for _ in range(20)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * 20
    assert len((tmp_path / "log").read_text().split()) == 5, "once for each file"
    assert read_store(tmp_path / "store") == expected


def test_few_rows_of_a_large_file_need_not_all_of_it(tmp_path: Path) -> None:
    n = 2 * BATCH_ROWS
    np.savez(tmp_path / "big.npz", edges=np.array([[0, 1]]), x_m=np.ones((n, 2), np.float32))
    store = ingest(tmp_path / "big.npz", tmp_path / "store", say=quietly)
    file = store.path / "modality-m.arrow"
    content = bytearray(file.read_bytes())
    content[-20_000] ^= 1
    file.write_bytes(content)
    damaged = GraphStore.open(store.path)
    assert damaged.gather("m", np.array([BATCH_ROWS - 1])).tolist() == [[1, 1]]
    with pytest.raises(InputError, match=r"modality-m\.arrow: damaged"):
        damaged.gather("m", np.array([0, BATCH_ROWS]))
    with pytest.raises(InputError, match=r"modality-m\.arrow: damaged"):
        LocalSource(damaged)


# What is kept of a run that was cut short.


def test_kept_parts_of_results_are_verified(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "a-key", 5, 5)
    lists = pa.array([[1.0, 2], None, [3, 4], [5, 6], [7, 8]], pa.list_(pa.float32()))
    parts.write_part(0, pa.table({"id": list("abcde"), "embedding": lists, "label": pa.array(range(5))}))
    parts.write_activations(0, 0, np.arange(10, dtype=np.float32).reshape(5, 2))
    for file, is_whole in (
        (parts.part(0), lambda: parts.has_part(0)),
        (parts.activations(0, 0), lambda: parts.has_activations(0, 0)),
    ):
        assert is_whole()
        content = file.read_bytes()
        before = pq.read_table(file) if file.suffix == ".parquet" else None
        for place in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[place] ^= 0xFF
            file.write_bytes(damaged)
            try:
                unnoticed = is_whole()
            except InputError:
                continue
            assert not unnoticed or (before is not None and pq.read_table(file).equals(before)), place
        file.write_bytes(content)
        assert is_whole()
