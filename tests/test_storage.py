"""Stores, PPR, runs and results in places that are reached by a URI; S3 by its protocol, the rest by fsspec's memory.

Ray's workers have a cache of their own (``workers_cache``), as workers on another host would.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
import torch
from typer.testing import CliRunner

from optimag_dist import locks, remote_copies
from optimag_dist.cli import app
from optimag_dist.inference.driver import infer
from optimag_dist.inference.evaluate import evaluate, write_evaluations
from optimag_dist.inference.options import EmbedOptions, EvaluateOptions
from optimag_dist.locks import sole_user
from optimag_dist.models import MultimodalModel
from optimag_dist.options import dump_options, load_options, parse_options, validate_options
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import RunTotals, compute_ppr
from optimag_dist.remote_copies import Mirror
from optimag_dist.storage import AnyPath, RemotePath, file_sizes, is_file, located, remove, remove_tree
from optimag_dist.store import GraphStore, ingest
from optimag_dist.tasks.node_classification import ClassifierHead
from optimag_dist.train import checkpoint
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.launch import launch
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.types import InputError, RunError

from .s3_server import ACCESS_KEY, BUCKET, S3, SECRET, serve_s3
from .tables import write_tables

NODES = 60
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def s3() -> Iterator[S3]:
    with serve_s3() as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


def make_source(folder: Path, seed: int = 0) -> Path:
    """A labelled ring with chords, two modalities, a stored split."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    ids = [f"n{i:02}" for i in range(NODES)]
    nodes = {
        "id": ids,
        "kind": ["a" if i % 2 else "b" for i in range(NODES)],
        "part": [("train", "val", "test")[i // 2 % 3] for i in range(NODES)],
        "x": [[i % 2 + rng.normal(), rng.normal()] for i in range(NODES)],
        "y": [[rng.normal(), i % 2 - rng.normal(), 1.0] for i in range(NODES)],
    }
    edges = ((ids[i], ids[(i + step) % NODES]) for step in (2, 5) for i in range(NODES))
    return write_tables(folder, nodes, edges, ("x", "y"), label="kind", split="part")


def quiet_ingest(source: Path, place: str | Path, **options: bool) -> GraphStore:
    return ingest(source, place, say=lambda line: None, **options)


def make_model(store: GraphStore, directory: Path) -> None:
    """``directory``/model.pt with random weights."""
    data = {"sampling": {"fanouts": [-1, -1]}, "model": {"hidden": 8, "embedding": 4}}
    config = validate_options(VariantConfig, data, "test")
    widths = {name: modality.width for name, modality in store.modalities.items()}
    model = MultimodalModel(widths, 2, config.model)
    state = {
        "model": model.state_dict(),
        "heads": {"": ClassifierHead(model, len(store.classes)).state_dict()},
        "config": config.model_dump(mode="json"),
        "widths": widths,
        "classes": list(store.classes),
        "store": store.content_hash,
    }
    checkpoint.save(directory / "model.pt", state)


# -- URIs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        (f"s3://{ACCESS_KEY}:{SECRET}@bucket/a?region=x", "s3://bucket/a?region=x"),
        (f"s3://{ACCESS_KEY}:with/slash{SECRET}@bucket/a", "s3://bucket/a"),
        (f"az://box/a?account_key={SECRET}&x=1&sig={SECRET}", "az://box/a?x=1"),
        (f"s3://bucket/a?endpoint_override=http://me:{SECRET}@host:1", "s3://bucket/a?endpoint_override=http://host:1"),
    ],
)
def test_secrets_reach_neither_text_nor_files(uri: str, shown: str, tmp_path: Path) -> None:
    place = located(uri)
    assert isinstance(place, RemotePath)
    assert str(place) == shown
    assert SECRET not in repr(place)
    config = parse_options(RunConfig, ["name=run", f"store={uri}", f"out={uri}"], "test")
    assert config.store == place, "the program itself goes on with the secrets"
    dump_options(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert SECRET not in text
    assert ACCESS_KEY not in text
    assert str(load_options(RunConfig, tmp_path / "config.yaml").store) == shown


@pytest.mark.parametrize(
    ("said", "meant"),
    [("~/runs", "{home}/runs"), ("runs", "{here}/runs"), ("exp:1", "{here}/exp:1"), ("file:///a%20b", "/a b")],
)
def test_a_path_is_absolute_from_the_door_on(
    said: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow takes a:b for a URI, and workers have working directories of their own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    expected = Path(meant.format(home=tmp_path / "home", here=tmp_path))
    config = parse_options(RunConfig, ["name=run", f"store={said}", f"out={said}"], "test")
    assert (config.store, config.out) == (expected, expected)
    assert parse_options(RunConfig, ["name=run", "store=x"], "test").location == tmp_path / "runs" / "run"


def test_a_home_is_written_out_where_shells_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert CliRunner().invoke(app, ["data", "get", "openmoji", "--out=~/tables"]).exit_code == 0
    assert (tmp_path / "home" / "tables" / "schema.yaml").is_file()


@pytest.mark.parametrize("said", ["", "a\0b"])
def test_what_is_no_path_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="needed a path, got an empty text or one with a NUL in it"):
        located(said)


def test_a_uri_is_used_like_a_path() -> None:
    place = located("s3://bucket/a/?region=x")
    assert isinstance(place, RemotePath)
    assert (place / "b c" / "d").uri == "s3://bucket/a/b%20c/d?region=x"
    assert (place / "b c").name == "b c"
    assert (place / "b" / "c").parent == place / "b"
    assert located("file:///some/where%20else") == Path("/some/where else")
    assert located("plain/path") == Path("plain/path").absolute()


@pytest.mark.parametrize("scheme", ["s3", "memory"])
def test_files_go_there_and_come_back(scheme: str, s3: S3, tmp_path: Path) -> None:
    folder = located(s3.uri("some/folder") if scheme == "s3" else f"memory://{tmp_path.name}/folder")
    assert isinstance(folder, RemotePath)
    assert file_sizes(folder) == {}
    assert not is_file(folder / "big")
    # More than one part of a multipart upload.
    content = np.random.default_rng(0).bytes(11 << 20)
    (tmp_path / "big").write_bytes(content)
    (folder / "big").publish(tmp_path / "big")
    (folder / "with a space" / "small").publish(tmp_path / "big")
    assert file_sizes(folder) == {"big": len(content)}
    assert file_sizes(folder, below=True) == {"big": len(content), "with a space/small": len(content)}
    (folder / "big").fetch(tmp_path / "deep" / "back")
    assert (tmp_path / "deep" / "back").read_bytes() == content
    (tmp_path / "big").write_bytes(b"new")
    (folder / "big").publish(tmp_path / "big")
    assert (folder / "big").cached().read_bytes() == (folder / "big").read() == b"new"
    remove_tree(folder)
    assert file_sizes(folder, below=True) == {}
    remove(folder / "big")


def test_what_was_there_stays_until_the_new_is_whole(s3: S3, tmp_path: Path) -> None:
    place = located(s3.uri("x"))
    assert isinstance(place, RemotePath)
    (tmp_path / "file").write_bytes(b"old")
    place.publish(tmp_path / "file")
    s3.refuse = lambda method, key: method == "PUT"
    (tmp_path / "file").write_bytes(b"new")
    with pytest.raises(InputError, match="not allowed"):
        place.publish(tmp_path / "file")
    assert s3.objects == {"x": b"old"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s3: s3.uri("store", bucket="elsewhere"), "elsewhere/store.*nothing there"),
        (lambda s3: s3.uri("store"), f"{BUCKET}/store.*nothing there"),
        (lambda s3: s3.uri("store", key_pair=f"NOBODY:{SECRET}"), "not allowed.*AWS_ACCESS_KEY_ID"),
        (lambda s3: f"s3://{ACCESS_KEY}:{SECRET}@b/x?endpoint_override=http://127.0.0.1:9", "not reachable"),
        (lambda s3: f"tape://{ACCESS_KEY}:{SECRET}@b/x", "unknown kind of storage"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(make: Callable[[S3], str], words: str, s3: S3) -> None:
    with pytest.raises(InputError, match=words) as told:
        GraphStore.open(make(s3))
    assert SECRET not in str(told.value)


# -- graph stores --------------------------------------------------------------------------------------------------


def test_a_store_is_sent_and_copied_once(s3: S3, source: Path, tmp_path: Path, cache_home: Path) -> None:
    here = quiet_ingest(source, tmp_path / "store")
    made = quiet_ingest(source, s3.uri("store"))
    assert made.content_hash == here.content_hash
    assert s3.names("store") == {file.name for file in here.path.iterdir()}
    assert ("GET", "store/topology.arrow") not in s3.log, "what was sent is kept as the copy"

    shutil.rmtree(cache_home)
    with ThreadPoolExecutor(4) as processes:
        opened = list(processes.map(GraphStore.open, [s3.uri("store")] * 4))
    assert s3.log.count(("GET", "store/topology.arrow")) == 1
    opened[0].verify()
    assert {store.path for store in opened} == {opened[0].path}
    assert str(opened[0].location).startswith(f"s3://{BUCKET}/store?")
    assert opened[0].path.is_relative_to(cache_home)


def test_half_a_store_is_refused_and_finished_by_the_next_ingest(s3: S3, source: Path) -> None:
    s3.refuse = lambda method, key: method == "PUT" and key.endswith("nodes.arrow")
    with pytest.raises(InputError, match=r"nodes\.arrow"):
        quiet_ingest(source, s3.uri("store"))
    with pytest.raises(InputError, match=r"half of one \(no meta.json\)"):
        GraphStore.open(s3.uri("store"))
    s3.refuse = lambda method, key: False
    quiet_ingest(source, s3.uri("store")).verify()


def test_another_store_is_replaced_only_on_request(s3: S3, source: Path, tmp_path: Path) -> None:
    first = quiet_ingest(source, s3.uri("store"))
    before = dict(s3.objects)
    other = make_source(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="holds another graph"):
        quiet_ingest(other, s3.uri("store"))
    assert s3.objects == before
    second = quiet_ingest(other, s3.uri("store"), overwrite=True)
    assert GraphStore.open(s3.uri("store")).content_hash == second.content_hash != first.content_hash
    first.verify()
    s3.objects["folder/thesis.tex"] = b"years of work"
    with pytest.raises(InputError, match=r"has thesis\.tex in it"):
        quiet_ingest(source, s3.uri("folder"), overwrite=True)


def test_a_damaged_store_is_not_used(s3: S3, source: Path, cache_home: Path) -> None:
    quiet_ingest(source, s3.uri("store"))
    shutil.rmtree(cache_home)
    s3.objects["store/topology.arrow"] = s3.objects["store/topology.arrow"][:-1]
    with pytest.raises(InputError, match=r"topology\.arrow"):
        GraphStore.open(s3.uri("store"))
    with pytest.raises(InputError, match=r"topology\.arrow"):
        GraphStore.open(s3.uri("store"))


@pytest.mark.parametrize("place", [100, -100])
def test_a_damaged_copy_is_fetched_again(s3: S3, source: Path, cache_home: Path, place: int) -> None:
    made = quiet_ingest(source, s3.uri("store"))
    file, log = made.path / "topology.arrow", len(s3.log)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    again = GraphStore.open(s3.uri("store"))
    again.verify()
    assert s3.log[log:].count(("GET", "store/topology.arrow")) == 1
    s3.objects["store/topology.arrow"] = bytes(content)
    shutil.rmtree(cache_home)
    with pytest.raises(InputError, match=r"store.*what was copied from there.*topology\.arrow: damaged"):
        GraphStore.open(s3.uri("store"))


# -- working copies ------------------------------------------------------------------------------------------------


def test_a_mirror_sends_in_order_and_the_newest(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(method: str, key: str) -> bool:
        if method == "PUT":
            begun.set()
            go_on.wait(60)
        return False

    s3.refuse = wait
    with Mirror(located(s3.uri("run")), "test") as mirror:
        mirror.fetch()
        for name in ("first", "log", "checkpoint"):
            (mirror.path / name).write_text("1")
            mirror.publish(mirror.path / name)
        assert begun.wait(60)
        # The log waits, and so is sent once, before the checkpoint, as it is now.
        (mirror.path / "log").write_text("1 2")
        mirror.publish(mirror.path / "log")
        go_on.set()
    assert s3.objects == {"run/first": b"1", "run/log": b"1 2", "run/checkpoint": b"1"}
    assert [key for method, key in s3.log if method == "PUT"] == ["run/first", "run/log", "run/checkpoint"]


def test_a_mirror_tries_again_and_then_says_so(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_copies, "_PAUSES_S", (0.01,))
    refused = iter([True])
    s3.refuse = lambda method, key: method == "PUT" and next(refused, False)
    mirror = Mirror(located(s3.uri("run")), "test")
    mirror.fetch()
    (mirror.path / "file").write_text("1")
    mirror.publish(mirror.path / "file")
    mirror.flush()
    assert s3.names("run") == {"file"}
    s3.refuse = lambda method, key: method == "PUT"
    (mirror.path / "file").write_text("22")
    mirror.publish_all()
    with pytest.raises(InputError, match="run/file"):
        mirror.flush()
    with pytest.raises(InputError, match="run/file"):
        mirror.publish(mirror.path / "file")


def test_a_mirror_begins_with_what_is_there(s3: S3, tmp_path: Path) -> None:
    s3.objects |= {"run/a/keep": b"1", "run/a/leave": b"2"}
    mirror = Mirror(located(s3.uri("run")), "test")
    mirror.fetch()
    (mirror.path / "stale").write_text("of an earlier life")
    mirror.fetch(lambda name: name.endswith("keep"))
    assert [file.name for file in mirror.path.rglob("*") if file.is_file()] == ["keep"]
    here = Mirror(tmp_path / "here", "test")
    here.fetch()
    here.publish_all()
    assert here.path == tmp_path / "here"


# -- with Ray ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_RENEW_S", 0.05), ("_STALE_S", 0.5), ("_SETTLE_S", 0.02)):
        monkeypatch.setattr(locks, name, seconds)


def _refuse(place: AnyPath, holder: str) -> None:
    raise RunError(holder)


def test_a_remote_directory_has_one_user_at_a_time(s3: S3, quick_locks: None, cache_home: Path) -> None:
    """Two hosts, by their caches: each has locks of its own, and both see the file that is renewed."""
    place = located(s3.uri("runs/shop"))
    with sole_user(place):
        assert s3.names("runs") == {".shop.lock"}
        with pytest.MonkeyPatch.context() as other:
            other.setenv("XDG_CACHE_HOME", str(cache_home / "other"))
            with pytest.raises(RunError, match=rf"pid {os.getpid()} on host"), sole_user(place, _refuse):
                pass
    assert s3.names("runs") == set()
    # Left by a process that was killed.
    s3.objects["runs/.shop.lock"] = b"pid 1 on host gone\nx"
    with sole_user(place, _refuse):
        assert str(os.getpid()) in s3.objects["runs/.shop.lock"].decode()


def test_who_was_held_up_for_too_long_learns_that_another_took_over(
    s3: S3, quick_locks: None, cache_home: Path
) -> None:
    with pytest.raises(RunError, match="another process took this directory over"), sole_user(located(s3.uri("run"))):
        s3.objects[".run.lock"] = b"another\nx"


def test_ppr_lies_beside_a_remote_store(
    s3: S3, source: Path, tmp_path: Path, cache_home: Path, ray_session: None
) -> None:
    store = quiet_ingest(source, s3.uri("store"))
    options = PPROptions(block_size=16)
    here = compute_ppr(quiet_ingest(source, tmp_path / "here"), options, progress=False)

    made = compute_ppr(store, options, progress=False)
    names = {f"ppr/{made.key}/{file.name}" for file in here.path.iterdir() if not file.name.startswith(".")}
    assert {name for name in s3.names("store") if name.startswith("ppr/")} == names
    np.testing.assert_array_equal(made.submatrix(np.arange(NODES)), here.submatrix(np.arange(NODES)))

    # Another host, another day: found, and of a damaged one the lost block is computed.
    shutil.rmtree(cache_home)
    totals = RunTotals()
    found = compute_ppr(GraphStore.open(s3.uri("store")), options, progress=False, totals=totals)
    assert totals.blocks == 0
    assert PPRArtefact.open(found.location).key == made.key
    del s3.objects[f"store/ppr/{made.key}/block-000002.arrow"]
    compute_ppr(store, options, progress=False, totals=totals).verify()
    assert totals.blocks == 1
    assert {name for name in s3.names("store") if name.startswith("ppr/")} == names

    with pytest.raises(InputError, match="placement=sharded needs the store"):
        compute_ppr(store, PPROptions(placement="sharded"), progress=False)


def test_ppr_that_cannot_be_finished_is_refused(s3: S3, source: Path, ray_session: None) -> None:
    store = quiet_ingest(source, s3.uri("store"))
    s3.refuse = lambda method, key: method == "PUT" and key.endswith("meta.json")
    with pytest.raises(InputError, match=r"meta\.json"):
        compute_ppr(store, PPROptions(block_size=16), progress=False)
    folder = next(key for key in s3.objects if "/ppr/" in key).rpartition("/")[0]
    with pytest.raises(InputError, match="half of one"):
        PPRArtefact.open(s3.uri(folder))
    s3.refuse = lambda method, key: False
    totals = RunTotals()
    compute_ppr(store, PPROptions(block_size=16), progress=False, totals=totals)
    assert totals.blocks == 0, "blocks that were sent are kept"


def test_embeddings_go_to_and_come_from_uris(
    s3: S3, source: Path, tmp_path: Path, cache_home: Path, ray_session: None
) -> None:
    store = quiet_ingest(source, tmp_path / "store")
    make_model(store, tmp_path / "fit")
    options = EmbedOptions(block_size=16)
    here = infer(tmp_path / "fit", store, tmp_path / "here", options, progress=False)
    adopt_remote = quiet_ingest(source, s3.uri("store"))
    model = located(s3.uri("fit"))
    assert isinstance(model, RemotePath)
    (model / "model.pt").publish(tmp_path / "fit" / "model.pt")
    shutil.rmtree(cache_home)

    there = infer(model, adopt_remote, located(s3.uri("out")), options, progress=False)
    assert s3.names("out") == {file.name for file in Path(str(here)).iterdir() if not file.name.startswith(".")}
    for index in range(4):
        part = pq.read_table(pa.BufferReader(s3.objects[f"out/part-{index:06d}.parquet"]))
        assert part.equals(pq.read_table(tmp_path / "here" / f"part-{index:06d}.parquet"))
    meta = json.loads(s3.objects["out/_meta.json"])
    assert meta["store_path"].startswith(f"s3://{BUCKET}/store?")
    assert SECRET not in s3.objects["out/_meta.json"].decode()

    s3.log.clear()
    infer(model, adopt_remote, there, options, progress=False)
    assert not [key for method, key in s3.log if method == "PUT"], "a finished result is left as it is"
    scores = evaluate(model, adopt_remote, EvaluateOptions(), progress=False)
    write_evaluations(scores, located(s3.uri("scores.json")), checkpoint=model, store=adopt_remote)
    assert json.loads(s3.objects["scores.json"])["accuracy"] == scores[0].metrics["accuracy"]
    assert s3.names("fit") == {"model.pt"}


RECIPE = {
    "name": "run",
    "sampling": {"groups": 2, "targets": 6, "group_size": 12, "fanouts": [3, 3]},
    "model": {"hidden": 8, "embedding": 4},
    "train": {"epochs": 6, "patience": 100},
    "workers": {"count": 1, "max_failures": 0},
    "checkpoint": {"every": 2},
}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_goes_on_from_an_empty_cache(
    s3: S3,
    source: Path,
    tmp_path: Path,
    cache_home: Path,
    workers_cache: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers killed while the second checkpoint is on its way, all caches lost: the same weights as without."""
    for name, value in (("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)):
        monkeypatch.setenv(name, value)
    quiet_ingest(source, s3.uri("store"))
    config = validate_options(RunConfig, {**RECIPE, "store": s3.uri("store"), "out": s3.uri("runs")}, "test")
    checkpoints = 0

    def kill_at_the_second_checkpoint(method: str, key: str) -> bool:
        nonlocal checkpoints
        checkpoints += method == "PUT" and key.endswith("checkpoint.pt")
        if checkpoints != 2:
            return False
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
        return True

    s3.refuse = kill_at_the_second_checkpoint
    with pytest.raises((RunError, ray.train.WorkerGroupError), match="died"):
        launch(config)
    assert "checkpoint.pt" in s3.names("runs/run/default/seed-0")
    assert "result.json" not in s3.names("runs/run/default/seed-0")

    s3.refuse = lambda method, key: False
    shutil.rmtree(cache_home)
    shutil.rmtree(workers_cache)
    with pytest.raises(InputError, match="there is a run here already"):
        launch(config)
    assert str(launch(config, resume=True)).startswith(f"s3://{BUCKET}/runs/run")
    kept = s3.names("runs/run")
    assert {"config.yaml", "results.parquet", "metrics.parquet"} <= kept
    # What the fit would have come to, never interrupted, without Ray.
    store, threads = GraphStore.open(s3.uri("store")), torch.get_num_threads()
    torch.set_num_threads(config.workers.cpus)
    expected = Fit("default", 0, config.resolve()["default"], tmp_path / "expected")
    run_fit(expected, store, compute_ppr(store, config.ppr, progress=False), Worker())
    torch.set_num_threads(threads)
    assert {f"default/seed-0/{file.name}" for file in expected.directory.iterdir() if file.is_file()} <= kept
    assert SECRET not in s3.objects["runs/run/config.yaml"].decode()
    (tmp_path / "model.pt").write_bytes(s3.objects["runs/run/default/seed-0/model.pt"])
    weights = [checkpoint.load(folder / "model.pt", CPU)["model"] for folder in (expected.directory, tmp_path)]
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name

    runner = CliRunner().invoke(app, ["report", s3.uri("runs/run")])
    assert runner.exit_code == 0, runner.output
    assert SECRET not in runner.output
    assert b"<html" in s3.objects["runs/run/report.html"]
