"""``optimag encode``: right, the same however cut and by however many, resumable, and clear about what does not fit."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from typer.testing import CliRunner

from optimag_dist.cli import app
from optimag_dist.datasets import dataset_schema
from optimag_dist.encoding import driver
from optimag_dist.encoding.block import ABSENT, BAD, PRESENT, BlockEncoder, EncodeOptions
from optimag_dist.encoding.driver import encode
from optimag_dist.models.encoder_networks import EFFICIENTNET
from optimag_dist.models.pretrained import load_features, make_reader
from optimag_dist.options import parse_options
from optimag_dist.store import GraphStore, ingest, staging
from optimag_dist.store.layout import BATCH_ROWS
from optimag_dist.types import InputError, RunError

from ..raw_store import BROKEN, NUM_NODES, has_picture, has_text, make_raw_store, picture_of, text_of
from ..s3_server import serve_s3
from ..tables import write_tables
from ..tiny_models import save_text_model

# Ray Data reads its own old settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data")

EVERYONE = np.arange(NUM_NODES)
PICTURES = {"modality": "looks", "attribute": "photo", "model": EFFICIENTNET, "image_size": 32, "batch_size": 8}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return make_raw_store(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_text_model(tmp_path_factory.mktemp("models")))


@pytest.fixture
def words(bert: str) -> dict[str, object]:
    return {"modality": "words", "attribute": "title", "model": bert, "max_length": 20, "dtype": "float32"}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks are encoded in this process, and listed as they are."""
    done: list[int] = []

    def encoded(job: driver.Job, blocks: list[int]) -> Iterator[tuple[int, bytes]]:
        actor = driver._Encode(job, "cpu")
        for block in reversed(blocks):
            (row,) = actor(pa.table({"item": [block]})).to_pylist()
            if row["error"]:
                raise InputError(row["error"])
            done.append(row["block"])
            yield row["block"], row["part"]

    monkeypatch.setattr(driver, "_encoded", encoded)
    monkeypatch.setattr(driver, "ensure_ray", lambda: None)
    return done


def _encode(store: GraphStore, out: Path | str, options: dict[str, object], **more: object) -> GraphStore:
    return encode(store, out, EncodeOptions(**options), progress=False, **({"say": lambda line: None} | more))


def _oracle(options: dict[str, object], kind: str) -> np.ndarray:
    """(n, width) one node at a time; zeros where there is nothing."""
    wanted = EncodeOptions(**options)
    network, width = load_features(wanted, kind)
    value_of: Callable[[int], object] = text_of if kind == "text" else picture_of
    out = np.zeros((NUM_NODES, width), np.float32)
    with torch.inference_mode():
        for node in EVERYONE:
            raw, present = make_reader(wanted, kind).read([value_of(node)])
            if present[0]:
                out[node] = network(torch.from_numpy(raw))[0]
    return out


# -- right -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block_size", "batch_size"), [(40, 16), (7, 3)])
def test_texts_and_pictures_are_what_the_network_gives_of_each(
    store: GraphStore, words: dict, here: list, tmp_path: Path, block_size: int, batch_size: int
) -> None:
    sizes = {"block_size": block_size, "batch_size": batch_size}
    made = _encode(store, tmp_path / "one", words | sizes)
    assert made.present("words").tolist() == [has_text(node) for node in EVERYONE]
    np.testing.assert_allclose(made.gather("words", EVERYONE), _oracle(words, "text"), rtol=1e-4, atol=1e-5)
    made = _encode(made, tmp_path / "two", PICTURES | {"dtype": "float32"} | sizes)
    assert made.present("looks").tolist() == [has_picture(node) for node in EVERYONE]
    np.testing.assert_allclose(made.gather("looks", EVERYONE), _oracle(PICTURES, "image"), rtol=1e-3, atol=1e-4)


def test_half_precision_is_the_rounded_single(store: GraphStore, words: dict, here: list, tmp_path: Path) -> None:
    single = _encode(store, tmp_path / "single", words).gather("words", EVERYONE)
    half = _encode(store, tmp_path / "half", words | {"dtype": "float16"}).gather("words", EVERYONE)
    assert half.dtype == np.float16
    assert np.array_equal(half, single.astype(np.float16))


def test_only_the_modality_is_new(store: GraphStore, words: dict, here: list, tmp_path: Path) -> None:
    made = _encode(store, tmp_path / "made", words)
    made.verify()
    assert list(made.modalities) == ["facts", "image", "words"]
    assert (made.modalities["words"].width, made.modalities["words"].dtype) == (32, "float32")
    for file in store.path.glob("*.arrow"):
        same = os.path.samefile(file, made.path / file.name)
        assert same == (file.name != "nodes.arrow")
    assert made.ids(EVERYONE) == store.ids(EVERYONE)
    assert np.array_equal(made.present("facts"), store.present("facts"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]
    store.verify()


def test_a_modality_of_that_name_is_replaced(store: GraphStore, words: dict, here: list, tmp_path: Path) -> None:
    made = _encode(store, tmp_path / "made", words | {"modality": "facts"})
    made.verify()
    assert list(made.modalities) == ["facts", "image"]
    assert made.modalities["facts"].width == 32
    assert made.present("facts").tolist() == [has_text(node) for node in EVERYONE]
    np.testing.assert_allclose(made.gather("facts", EVERYONE), _oracle(words, "text"), rtol=1e-4, atol=1e-5)
    assert store.modalities["facts"].width == 3
    store.verify()


def test_blocks_are_cut_anew_into_the_stores_batches(words: dict, here: list, tmp_path: Path) -> None:
    """More nodes than a batch of the store's file, in blocks that do not divide it; half the texts are missing."""
    n = BATCH_ROWS + 3_000
    ids = [f"n{i}" for i in range(n)]
    has_title = np.arange(n) // 7 % 2 == 1
    titles = ["red cat" if there else None for there in has_title]
    columns = {"id": ids, "x": [[float(i)] for i in range(n)], "title": titles}
    schema = write_tables(tmp_path, columns, [(ids[0], ids[-1])], ["x"])
    schema.write_text(schema.read_text() + "attributes: {title: {column: title, kind: text}}\n")
    store = ingest(schema, tmp_path / "store", say=lambda line: None)
    assert BATCH_ROWS % 5_000
    made = _encode(store, tmp_path / "made", words | {"block_size": 5_000})
    made.verify()
    assert np.array_equal(made.present("words"), has_title)
    rows = made.gather("words", np.arange(n))
    assert not rows[~has_title].any()
    np.testing.assert_allclose(rows[has_title], np.tile(rows[7], (has_title.sum(), 1)), rtol=1e-4, atol=1e-5)


def test_the_shipped_features_are_made_again(tmp_path: Path) -> None:
    """Those of the names, by the same network in the hands of another library."""
    store = ingest(dataset_schema("openmoji"), tmp_path / "store", say=lambda line: None)
    nodes = np.random.default_rng(0).choice(store.num_nodes, 48, replace=False)
    options = EncodeOptions(modality="text", attribute="name", model="minilm", dtype="float32")
    batch = BlockEncoder(store, options, torch.device("cpu")).encode(nodes)
    found = batch.column("features").flatten().to_numpy().reshape(len(nodes), -1)
    shipped = store.gather("text", nodes).astype(np.float32)
    cosine = (found * shipped).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(shipped, axis=1)
    assert cosine.min() > 0.999


# -- by Ray, interrupted -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from optimag_dist.encoding import driver
from optimag_dist.encoding.block import EncodeOptions
from optimag_dist.ray_session import ensure_ray
from optimag_dist.store import GraphStore

@contextmanager
def kill_after(*_, **__):
    seen = []
    def advance(rows):
        seen.append(rows)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance

driver.progress_bar = kill_after
ensure_ray(sys.argv[1])
options = EncodeOptions.model_validate_json(sys.argv[4])
driver.encode(GraphStore.open(sys.argv[2]), Path(sys.argv[3]), options)
"""


def _parts(out: Path) -> dict[str, int]:
    return {part.name: part.stat().st_ino for part in (out.parent / f".{out.name}.encode").rglob("part-*.arrow")}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_killed_and_gone_on_with_by_two_actors_is_what_one_makes(
    store: GraphStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PICTURES | {"block_size": 6, "batch_size": 4}
    whole = _encode(store, tmp_path / "whole", options)
    assert whole.present("looks").tolist() == [has_picture(node) for node in EVERYONE]
    broken = tmp_path / "broken"
    address = ray.get_runtime_context().gcs_address
    arguments = [address, str(store.path), str(broken), EncodeOptions(**options).model_dump_json()]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not broken.exists()
    before = _parts(broken)
    assert 3 <= len(before) < 7
    finished: dict[str, int] = {}
    publish = staging.publish

    def look(stage: object, target: Path) -> None:
        finished.update(_parts(broken))
        publish(stage, target)

    monkeypatch.setattr(staging, "publish", look)
    made = _encode(store, broken, options | {"concurrency": 2})
    assert made.content_hash == whole.content_hash
    assert len(finished) == 7
    assert before.items() <= finished.items()
    assert not _parts(broken)


class FailsOnce(GraphStore):
    """A store of whose nodes those beyond the first block cannot be read at first, for no fault of the input."""

    def __reduce__(self) -> tuple:
        return FailsOnce, (self.path, self._meta)

    def attribute(self, name: str, node_ids: np.ndarray) -> list:
        marker = self.path.parent / "failed"
        if node_ids.max() >= 20 and not marker.exists():
            marker.touch()
            raise OSError("the disk is on fire")
        return super().attribute(name, node_ids)


@pytest.mark.usefixtures("ray_session")
def test_a_block_that_fails_is_told_and_the_rest_is_kept(store: GraphStore, tmp_path: Path) -> None:
    fragile = FailsOnce(store.path, store._meta)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    out, options = tmp_path / "out", PICTURES | {"block_size": 20}
    try:
        with pytest.raises(RunError, match=r"'looks' failed; what is finished is kept(.|\n)*the disk is on fire"):
            _encode(fragile, out, options)
        assert not out.exists()
        made = _encode(fragile, out, options)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert made.present("looks").sum() == sum(map(has_picture, EVERYONE))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_command_on_the_shipped_graph(tmp_path: Path) -> None:
    store = ingest(dataset_schema("openmoji"), tmp_path / "store", say=lambda line: None)
    keys = ["modality=text", "attribute=name", "model=minilm", "block_size=500", "concurrency=2"]
    done = CliRunner().invoke(app, ["encode", str(store.path), str(tmp_path / "made"), *keys])
    assert done.exit_code == 0, done.output
    assert "modality text: 384 × float16" in done.output
    made, everyone = GraphStore.open(tmp_path / "made"), np.arange(store.num_nodes)
    found, shipped = (s.gather("text", everyone).astype(np.float32) for s in (made, store))
    cosine = (found * shipped).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(shipped, axis=1)
    assert cosine.min() > 0.999


def test_interrupted_it_goes_on_with_what_was_finished(
    store: GraphStore, words: dict, here: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, out = words | {"block_size": 9}, tmp_path / "out"
    whole = _encode(store, tmp_path / "whole", options)
    assert here == [4, 3, 2, 1, 0]
    in_process = driver._encoded

    def interrupted(job: driver.Job, blocks: list[int]) -> Iterator[tuple[int, bytes]]:
        for count, made in enumerate(in_process(job, blocks)):
            if count == 2:
                raise KeyboardInterrupt
            yield made

    monkeypatch.setattr(driver, "_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _encode(store, out, options)
    monkeypatch.setattr(driver, "_encoded", in_process)
    assert sorted(_parts(out)) == ["part-000003.arrow", "part-000004.arrow"]
    assert not out.exists()
    here.clear()
    part = next(tmp_path.rglob("part-000003.arrow"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert _encode(store, out, options).content_hash == whole.content_hash
    assert here == [3, 2, 1, 0], "the damaged one too"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 3},
        {"model": "gpt2"},
        {"model": "the same with other words"},
        {"dtype": "float16"},
        {"modality": "more"},
    ],
)
def test_parts_of_other_options_are_not_mixed_in(
    store: GraphStore, words: dict, here: list, tmp_path: Path, change: dict
) -> None:
    options, out = words | {"block_size": 20}, tmp_path / "out"
    if change.get("model") == "gpt2":
        change = {"model": str(save_text_model(tmp_path, "gpt2"))}
    elif change.get("model") == "the same with other words":
        change = {"model": str(shutil.copytree(words["model"], tmp_path / "model"))}
        tokenizer = tmp_path / "model/tokenizer.json"
        tokenizer.write_text(tokenizer.read_text().replace('"cat"', '"dog "').replace('"dog"', '"cat"'))
    whole = _encode(store, tmp_path / "whole", options | change)
    _leave_before_the_end(store, out, options)
    assert len(_parts(out)) == 2
    here.clear()
    assert _encode(store, out, options | change).content_hash == whole.content_hash
    assert here == [1, 0]


def _leave_before_the_end(store: GraphStore, out: Path, options: dict[str, object]) -> None:
    """All parts are there, and no store."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_tell_bad_pictures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _encode(store, out, options)


def test_what_has_ended_is_not_repeated(store: GraphStore, words: dict, here: list, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = _encode(store, out, words)
    inode = (out / "meta.json").stat().st_ino
    here.clear()
    said: list[str] = []
    again = _encode(store, out, words | {"concurrency": 2}, say=said.append)
    assert again.content_hash == first.content_hash
    assert (out / "meta.json").stat().st_ino == inode
    assert here == []
    assert "already" in said[0]
    assert again.notes("words")["store"] == store.content_hash
    assert again.notes("facts") == {}


def test_a_store_in_the_cloud(
    store: GraphStore, words: dict, here: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = _encode(store, tmp_path / "here", words)
    with serve_s3() as s3:
        made = _encode(store, s3.uri("store"), words)
        assert made.content_hash == expected.content_hash
        assert s3.names("store") == {file.name for file in expected.path.iterdir()}
        here.clear()
        s3.log.clear()
        assert _encode(store, s3.uri("store"), words).content_hash == expected.content_hash
        with pytest.raises(InputError, match="holds another graph"):
            _encode(store, s3.uri("store"), words | {"max_length": 3})
    assert here == []
    assert {method for method, _ in s3.log} <= {"GET", "HEAD"}
    assert not list((tmp_path / "cache").rglob("part-*.arrow"))


# -- broken pictures ---------------------------------------------------------------------------------------------------


def test_broken_pictures_are_counted_and_named(store: GraphStore, here: list, tmp_path: Path) -> None:
    said: list[str] = []
    made = _encode(store, tmp_path / "out", PICTURES | {"block_size": 9}, say=said.append)
    assert not made.present("looks")[list(BROKEN)].any()
    (line,) = said
    assert "'photo' does not decode for 2 nodes, which counted as nodes without: 'n6', 'n23'" in line
    encoder = BlockEncoder(store, EncodeOptions(**PICTURES), torch.device("cpu"))
    states = encoder.encode(EVERYONE).column("state").to_numpy()
    expected = [PRESENT if has_picture(i) else BAD if i in BROKEN else ABSENT for i in EVERYONE]
    assert states.tolist() == expected


def test_a_broken_picture_may_be_fatal(store: GraphStore, here: list, tmp_path: Path) -> None:
    options, out = PICTURES | {"block_size": 9, "on_bad_picture": "error"}, tmp_path / "out"
    words = r"'photo' of node 'n23' does not decode as a picture; mend it, or set on_bad_picture=mask"
    with pytest.raises(InputError, match=words):
        _encode(store, out, options)
    assert not out.exists()
    assert sorted(_parts(out)) == ["part-000003.arrow", "part-000004.arrow"]
    here.clear()
    # What was right is kept, and with the other choice the rest follows.
    _encode(store, out, options | {"on_bad_picture": "mask"})
    assert here == [2, 1, 0]


def test_a_broken_picture_that_was_masked_before_is_fatal_too(store: GraphStore, here: list, tmp_path: Path) -> None:
    _leave_before_the_end(store, tmp_path / "out", PICTURES)
    with pytest.raises(InputError, match="'n6'"):
        _encode(store, tmp_path / "out", PICTURES | {"on_bad_picture": "error"})
    assert not (tmp_path / "out").exists()


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribute": "name"}, r"no attribute 'name', it has nothing \(text\), photo \(image\), title \(text\)"),
        ({"attribute": "photo"}, "'photo' .*embeds no image"),
        ({"attribute": "nothing"}, "no node has a value in modality 'words'"),
        ({"model": "./nowhere"}, "no such folder"),
        ({"max_length": 25}, "cannot read 25 tokens"),
        ({"modality": "Facts"}, "differ in more than upper and lower case"),
        ({"modality": "../x"}, "may hold only letters"),
        ({"modality": "id"}, "is kept for the column of node ids"),
    ],
)
def test_bad_input(
    store: GraphStore, words: dict, here: list, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _encode(store, tmp_path / "out", words | change)
    assert not (tmp_path / "out").exists()
    assert here == ([0] if change == {"attribute": "nothing"} else [])


def test_features_beyond_half_precision(store: GraphStore, words: dict, tmp_path: Path) -> None:
    encoder = BlockEncoder(store, EncodeOptions(**words | {"dtype": "float16"}), torch.device("cpu"))
    loud = torch.nn.Sequential(encoder.network, torch.nn.Threshold(-1e9, 0))
    loud.register_forward_hook(lambda module, seen, out: out * 1e9)
    encoder.network = loud
    with pytest.raises(InputError, match=r"features of node 'n0' are not finite: float16 ends at 65504.*=float32"):
        encoder.encode(EVERYONE)


def test_what_stands_in_the_way(store: GraphStore, words: dict, here: list, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the store to read"):
        _encode(store, store.path, words)
    other = _encode(store, tmp_path / "out", words | {"max_length": 3})
    here.clear()
    with pytest.raises(InputError, match="holds another graph"):
        _encode(store, tmp_path / "out", words)
    assert here == []
    assert _encode(store, tmp_path / "out", words, overwrite=True).content_hash != other.content_hash
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="not a graph store"):
        _encode(store, tmp_path / "mine", words, overwrite=True)


def test_options_are_checked() -> None:
    good = ["modality=text", "attribute=name", "model=minilm"]
    for overrides, message in (
        (good[1:], "'modality' is missing"),
        ([*good, "tuning=full"], "unknown key 'tuning'"),
        ([*good, "block_size=1000000"], "block_size"),
        ([*good, "dtype=float64"], "dtype"),
    ):
        with pytest.raises(InputError, match=message):
            parse_options(EncodeOptions, overrides, "optimag encode")


@pytest.mark.usefixtures("ray_session")
def test_a_gpu_that_is_not_there(store: GraphStore, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="device=cuda, but the Ray cluster has no GPU"):
        _encode(store, tmp_path / "out", PICTURES | {"device": "cuda"})
