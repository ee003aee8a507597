"""A store appears whole or not at all, is the same for the same graph, and is refused when damaged."""

import errno
import os
import pickle
import queue
import shutil
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pyarrow as pa
import pytest

from optimag_dist.files import sole_writer
from optimag_dist.store import GraphStore, features, ingest, staging
from optimag_dist.store.arrow_files import ArrowFile
from optimag_dist.types import InputError

# The package exports a function of this name.
INGEST = import_module("optimag_dist.store.ingest")


@pytest.fixture
def make(write_graph, tmp_path):
    """make(folder, number) → schema of a graph whose first feature is ``number``."""

    def write(folder="in", number=1.0, **keys):
        nodes = {"id": ["a", "b", "c"], "x": [[number, 2.0], None, [3.0, 4.0]], "y": ["u", None, "v"]}
        edges = {"src": ["a", "b"], "dst": ["b", "c"]}
        return write_graph(tmp_path / folder, nodes, edges, {"m": {"column": "x"}}, label="y", **keys)

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_hash_is_of_the_content(make, tmp_path):
    first = ingest(make(), tmp_path / "out" / "s1")
    same = ingest(make("elsewhere", name="other"), tmp_path / "out" / "s2")
    assert first.content_hash == same.content_hash
    assert first.name != same.name
    other = ingest(make("changed", number=1.5), tmp_path / "out" / "s3")
    directed = ingest(make("directed", directed=True), tmp_path / "out" / "s4")
    classes = ingest(make("classes", classes=["v", "u"]), tmp_path / "out" / "s5")
    hashes = {store.content_hash for store in (first, other, directed, classes)}
    assert len(hashes) == 4


def test_hash_does_not_depend_on_csv_or_parquet_or_row_groups(write_graph, tmp_path):
    edges = {"src": [1, 2], "dst": [2, 3]}
    modalities = {"m": {"columns": ["p"]}}
    nodes = {"id": [1, 2, 3], "p": [0.5, None, 2.5], "t": ["a", None, "b"]}
    keys = {"attributes": {"t": {"column": "t", "kind": "text"}}}
    stores = [
        ingest(write_graph(tmp_path / ending, nodes, edges, modalities, ending=ending, **keys), tmp_path / f"s{ending}")
        for ending in ("csv", "parquet")
    ]
    assert stores[0].content_hash == stores[1].content_hash


def test_same_content_is_left_alone(make, tmp_path, capsys):
    out = tmp_path / "out" / "store"
    ingest(make(), out)
    (out / "ppr").mkdir()
    stamp = (out / "meta.json").stat().st_mtime_ns
    capsys.readouterr()
    for overwrite in (False, True):
        ingest(make(), out, overwrite=overwrite)
        assert "already" in capsys.readouterr().out
    assert (out / "meta.json").stat().st_mtime_ns == stamp
    assert (out / "ppr").is_dir()
    assert names(out.parent) == ["store"]


def test_other_content_needs_overwrite(make, tmp_path):
    out = tmp_path / "out" / "store"
    old = ingest(make(), out)
    schema = make("changed", number=9.0)
    with pytest.raises(InputError, match=r"holds another graph.*overwrit"):
        ingest(schema, out)
    assert GraphStore.open(out).content_hash == old.content_hash
    new = ingest(schema, out, overwrite=True)
    assert new.gather("m", np.array([0])).tolist() == [[9.0, 2.0]]
    assert names(out.parent) == ["store"]
    # Who still holds the old one keeps reading it; who would reopen it by path is told.
    assert old.gather("m", np.array([0])).tolist() == [[1.0, 2.0]]
    cargo = pickle.dumps(old)
    with pytest.raises(InputError, match="replaced"):
        pickle.loads(cargo)


@pytest.mark.parametrize("content", ["file", "folder"])
def test_never_replaces_what_is_no_store(make, tmp_path, content):
    out = tmp_path / "out"
    if content == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "meta.json").write_text("mine")
    with pytest.raises(InputError, match="not a graph store"):
        ingest(make(), out, overwrite=True)
    assert (out if content == "file" else out / "meta.json").read_text() == "mine"


def test_empty_folder_may_be_filled(make, tmp_path):
    (tmp_path / "out").mkdir()
    assert ingest(make(), tmp_path / "out").num_nodes == 3


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("error", [OSError("broken disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["write", "fsync", "rename"])
def test_failure_puts_nothing_in_place_and_keeps_the_old(make, tmp_path, monkeypatch, standing, error, place):
    out = tmp_path / "out" / "store"
    if standing:
        ingest(make(), out)
    schema = make("changed", number=9.0)

    def fail(*_):
        raise error

    real_rename = os.rename

    def fail_to_publish(source, target):
        # Only the step that puts the new store in place: the old one has been moved away by then.
        if Path(source).name == "store" and Path(source).parent.name == ".store.partial":
            raise error
        real_rename(source, target)

    if place == "write":
        monkeypatch.setattr(ArrowFile, "write", fail)
    else:
        monkeypatch.setattr(staging.os, place, fail if place == "fsync" else fail_to_publish)
    with pytest.raises(type(error)):
        ingest(schema, out, overwrite=True)
    monkeypatch.undo()
    # The last step leaves finished files for the next attempt.
    left = [".store.partial"] if place == "rename" else []
    if standing:
        assert names(out.parent) == [*left, "store"]
        assert GraphStore.open(out).gather("m", np.array([0])).tolist() == [[1.0, 2.0]]
    else:
        assert names(out.parent) == left if left else not out.parent.exists()
    assert ingest(schema, out, overwrite=True).gather("m", np.array([0])).tolist() == [[9.0, 2.0]]
    assert names(out.parent) == ["store"]


# Dies as the power does: at the call of ``PLACE`` that has ``PART`` in its first argument.
KILLED = """
import os, signal, sys
from optimag_dist.store import ingest, staging, topology
place, part, schema, out = sys.argv[1:]
owner = {"rename": os, "finish": staging.Staging, "_sort_rows": topology}[place]
real = getattr(owner, place)
def die(*arguments, **facts):
    if part in " ".join(map(str, arguments)):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **facts)
setattr(owner, place, die)
ingest(schema, out, overwrite=True)
"""


def kill(place, part, schema, out):
    command = [sys.executable, "-c", KILLED, place, part, str(schema), str(out)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr


@pytest.mark.parametrize("standing", [False, True])
def test_killed_while_publishing(make, tmp_path, standing):
    out = tmp_path / "out" / "store"
    if standing:
        ingest(make(), out)
    schema = make("changed", number=9.0)
    kill("rename", ".store.partial/store", schema, out)
    assert names(out.parent) == [*([".store.old"] if standing else []), ".store.partial"]
    with pytest.raises(InputError, match="an interrupted overwrite left the old one" if standing else "no such graph"):
        GraphStore.open(out)
    if standing:
        # The next ingest, here of the old graph, first brings the old store back and then finds it is the same.
        assert ingest(make(), out).gather("m", np.array([0])).tolist() == [[1.0, 2.0]]
    else:
        ingest(schema, out)
    assert names(out.parent) == ["store"]


@pytest.mark.parametrize(
    ("place", "part", "kept"),
    [("_sort_rows", "", ""), ("finish", "modality-m", "topology.arrow")],
)
def test_killed_half_way_goes_on(make, tmp_path, capsys, place, part, kept):
    schema = make()
    expected = ingest(schema, tmp_path / "whole").content_hash
    out = tmp_path / "out" / "store"
    kill(place, part, schema, out)
    assert names(out.parent) == [".store.partial"]
    with pytest.raises(InputError, match="no such graph store"):
        GraphStore.open(out)
    with pytest.raises(InputError, match="not a graph store"):
        GraphStore.open(out.parent / ".store.partial")
    capsys.readouterr()
    store = ingest(schema, out)
    said = capsys.readouterr().out
    assert (f"kept from an interrupted run: {kept}\n" if kept else "") in said
    assert ("interrupted" in said) == bool(kept)
    assert store.content_hash == expected
    store.verify()
    assert names(out.parent) == ["store"]


@pytest.mark.parametrize("damaged", ["a byte less", "store/modality-m.arrow", "modality-m.arrow"])
def test_only_what_still_fits_is_kept(make, tmp_path, monkeypatch, capsys, damaged):
    out = tmp_path / "out" / "store"
    partial = out.parent / ".store.partial"

    def interrupt(schema):
        with monkeypatch.context() as patch:
            patch.setattr(staging, "publish", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                ingest(schema, out)
        assert names(partial) == ["modality-m.arrow", "progress.json", "store"]
        capsys.readouterr()

    schema = make()
    interrupt(schema)
    interrupt(schema := make(number=5.0))  # other input: made anew
    (partial / "progress.json").write_text("{")
    interrupt(schema)
    if damaged == "a byte less":
        path = partial / "store" / "modality-m.arrow"
        path.write_bytes(path.read_bytes()[:-1])
    else:
        # The mask of who has a value stands beside the store.
        content = bytearray((partial / damaged).read_bytes())
        content[len(content) // 2] ^= 1
        (partial / damaged).write_bytes(content)
    store = ingest(schema, out)
    assert store.present("m").tolist() == [True, False, True]
    assert "kept from an interrupted run: topology.arrow, columns-m.arrow\n" in capsys.readouterr().out
    assert store.gather("m", np.array([0])).tolist() == [[5.0, 2.0]]
    assert names(out.parent) == ["store"]


def test_second_process_waits_for_the_first(make, tmp_path):
    out = tmp_path / "store"
    said = queue.SimpleQueue()
    waiting = threading.Thread(target=ingest, args=(make(), out), kwargs={"say": said.put}, daemon=True)
    with sole_writer(tmp_path / ".store.partial"):
        waiting.start()
        while "waiting for it to end" not in said.get(timeout=60):
            pass
        assert not out.exists()
        # As the first process does at its end.
        shutil.rmtree(tmp_path / ".store.partial")
    waiting.join(timeout=60)
    assert GraphStore.open(out).num_nodes == 3
    assert names(tmp_path) == ["in", "store"]


def test_full_disk(make, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out" / "store"
    real = ArrowFile.write

    def fill(file, *columns):
        if file._path.name == "modality-m.arrow":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, *columns)

    monkeypatch.setattr(ArrowFile, "write", fill)
    schema = make()
    with pytest.raises(InputError, match=r"disk is full after [\d,]+ of at most [\d,]+ bytes; nothing was put"):
        ingest(schema, out)
    monkeypatch.undo()
    assert names(out.parent) == [".store.partial"]
    assert names(out.parent / ".store.partial" / "store") == ["topology.arrow"]
    assert "the same command goes on from there" in capsys.readouterr().out
    ingest(schema, out)
    assert "kept from an interrupted run: topology.arrow" in capsys.readouterr().out
    assert names(out.parent) == ["store"]


def test_full_device_is_told_from_other_errors():
    """/dev/full refuses every byte, as a full disk does."""
    file = ArrowFile(Path("/dev/full"), pa.schema([("a", pa.int64())]))
    with pytest.raises(OSError, match="No space left") as caught, file:
        file.write(pa.array(np.arange(1 << 17)))
    assert caught.value.errno == errno.ENOSPC


def test_too_small_a_disk_is_refused_before_anything_is_written(make, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(InputError, match=r"needs about [\d,]+ bytes of disk and .* has 10; free some"):
        ingest(make(), tmp_path / "out" / "store")
    assert names(tmp_path) == ["in"]


def test_too_little_memory_is_said(make, tmp_path, monkeypatch):
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    lines = []
    ingest(make(), tmp_path / "store", say=lines.append)
    assert lines[0].startswith("needs up to about")
    assert "more memory than there is" in lines[1]


def test_input_changed_while_it_is_read(make, tmp_path, monkeypatch):
    schema = make()

    def touch(reader, noted):
        os.utime(tmp_path / "in" / "edges.parquet", (1, 1))
        return features.checked_blocks(reader, noted)

    monkeypatch.setattr(INGEST, "checked_blocks", touch)
    with pytest.raises(InputError, match="was changed while it was read"):
        ingest(schema, tmp_path / "store")
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("damage", ["cut", "missing", "no meta", "half meta", "version", "foreign", "edited", "hash"])
def test_half_a_store_is_refused(make, tmp_path, damage):
    out = tmp_path / "store"
    ingest(make(), out)
    meta = out / "meta.json"
    text = meta.read_text()
    if damage == "cut":
        path = out / "modality-m.arrow"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        (out / "topology.arrow").unlink()
    elif damage == "no meta":
        meta.unlink()
    else:
        changed = {
            "half meta": text[: len(text) // 2],
            "version": text.replace('"version": 2', '"version": 3'),
            "foreign": '{"format": "other"}',
            "edited": text.replace('"num_nodes": 3', '"num_nodes": 4'),
            "hash": text.replace('"content_hash": "', '"content_hash": "0'),
        }[damage]
        assert changed != text
        meta.write_text(changed)
    with pytest.raises(InputError, match="run optimag ingest again") as caught:
        GraphStore.open(out)
    assert str(out) in str(caught.value)
    with pytest.raises(InputError, match="overwrit"):
        ingest(make(), out)
    assert ingest(make(), out, overwrite=True).num_nodes == 3


@pytest.mark.parametrize("name", ["nodes.arrow", "topology.arrow", "modality-m.arrow"])
def test_verify_notices_changed_values(make, tmp_path, name):
    """The same size, other bytes: opening is cheap and does not see it, verify does."""
    out = tmp_path / "store"
    store = ingest(make(), out)
    store.verify()
    # The last value stands before the footer; find it by what it is.
    value = {
        "nodes.arrow": b"abc",
        "topology.arrow": np.array([1, 0, 2, 1], np.int32).tobytes(),
        "modality-m.arrow": np.array([3, 4], np.float32).tobytes(),
    }[name]
    content = (out / name).read_bytes()
    assert content.count(value) == 1
    shutil.copy(out / name, out / "spare")
    (out / name).write_bytes(content.replace(value, value[::-1]))
    with pytest.raises(InputError, match=rf"{name}: damaged"):
        GraphStore.open(out).verify()
    with pytest.raises(InputError, match=r"damaged.*overwrit"):
        ingest(make(), out)
    os.replace(out / "spare", out / name)
    GraphStore.open(out).verify()
