"""A store appears whole or not at all, is the same for the same graph, and is refused when damaged."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from optimag_dist.store import GraphStore, ingest, layout
from optimag_dist.store.writer import ArrowFile
from optimag_dist.types import InputError


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
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["write", "fsync", "rename"])
def test_failure_leaves_nothing_and_keeps_the_old(make, tmp_path, monkeypatch, standing, error, place):
    out = tmp_path / "out" / "store"
    if standing:
        ingest(make(), out)
    schema = make("changed", number=9.0)

    def fail(*_):
        raise error

    real_rename = os.rename

    def fail_to_publish(source, target):
        # Only the step that puts the new store in place: the old one has been moved away by then.
        if ".tmp-" in str(source):
            raise error
        real_rename(source, target)

    if place == "write":
        monkeypatch.setattr(ArrowFile, "write", fail)
    else:
        monkeypatch.setattr(layout.os, place, fail if place == "fsync" else fail_to_publish)
    with pytest.raises(type(error)):
        ingest(schema, out, overwrite=True)
    monkeypatch.undo()
    if standing:
        assert names(out.parent) == ["store"]
        assert GraphStore.open(out).gather("m", np.array([0])).tolist() == [[1.0, 2.0]]
    else:
        assert not out.parent.exists()


KILLED = """
import os, signal, sys
from optimag_dist.store import ingest, layout
real = os.rename
def die(source, target):
    if ".tmp-" in str(source):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
layout.os.rename = die
ingest(sys.argv[1], sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("standing", [False, True])
def test_killed_process_is_cleaned_up_after(make, tmp_path, standing):
    out = tmp_path / "out" / "store"
    if standing:
        ingest(make(), out)
    schema = make("changed", number=9.0)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(schema), str(out)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    left = names(out.parent)
    assert len(left) == (2 if standing else 1)
    assert all(name.startswith((".store.tmp-", ".store.old-")) for name in left)
    with pytest.raises(InputError, match="an interrupted overwrite left the old one" if standing else "no such graph"):
        GraphStore.open(out)
    if standing:
        # The next ingest, here of the old graph, first brings the old store back and then finds it is the same.
        assert ingest(make(), out).gather("m", np.array([0])).tolist() == [[1.0, 2.0]]
    else:
        ingest(schema, out)
    assert names(out.parent) == ["store"]


def test_running_ingest_of_another_process_is_left_alone(make, tmp_path):
    out = tmp_path / "out" / "store"
    out.parent.mkdir()
    other = out.parent / f".store.tmp-{os.getppid()}"
    other.mkdir()
    neighbour = out.parent / ".store2.tmp-999999999"
    neighbour.mkdir()
    own = out.parent / f".store.tmp-{os.getpid()}"
    own.mkdir()
    ingest(make(), out)
    assert names(out.parent) == sorted([other.name, neighbour.name, "store"])


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
            "version": text.replace('"version": 1', '"version": 2'),
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
