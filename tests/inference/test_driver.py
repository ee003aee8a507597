"""``optimag embed`` and ``predict``: right, the same however cut, resumable, and clear about what does not fit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from typer.testing import CliRunner

from optimag_dist.cli import app
from optimag_dist.inference.driver import infer
from optimag_dist.inference.ids import read_ids
from optimag_dist.inference.options import EmbedOptions, PredictOptions
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.options import validate_options
from optimag_dist.store import GraphStore
from optimag_dist.types import Diverged, InputError

from .dense_oracle import CLOSE, dense

pytestmark = pytest.mark.usefixtures("ray_session")


def _read(out: Path) -> dict[str, list]:
    parts = json.loads((out / "_meta.json").read_text())["parts"]
    assert sorted(p["file"] for p in parts) == sorted(p.name for p in out.glob("*.parquet"))
    return pa.concat_tables([pq.read_table(out / part["file"]) for part in parts]).to_pydict()


def _contents(out: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_ino, p.read_bytes()) for p in out.glob("part-*.parquet")}


def _dense(directory: Path, store: GraphStore) -> tuple[torch.Tensor, TrainedModel]:
    trained = TrainedModel.open(directory, torch.device("cpu"))
    with torch.inference_mode():
        return dense(trained.model, store), trained


@pytest.mark.parametrize("backbone", ["sage", "gcn", "mlp"])
@pytest.mark.parametrize("block_size", [83, 42, 17])
def test_embeddings_are_the_dense_models_under_the_users_ids(
    backbone: str, block_size: int, store: GraphStore, make_model, tmp_path: Path
) -> None:
    expected, trained = _dense(make_model(backbone), store)
    options = EmbedOptions(block_size=block_size, per_modality=True)
    out = infer(trained.path, store, tmp_path / "out", options, progress=False)
    assert len(list(out.glob("part-*.parquet"))) == -(-83 // block_size)
    found = _read(out)
    everyone = np.arange(store.num_nodes)
    assert found["id"] == store.ids(everyone)
    torch.testing.assert_close(torch.tensor(found["embedding"]), expected, **CLOSE)
    with torch.inference_mode():
        encoded = trained.model.encode({m: torch.from_numpy(store.gather(m, everyone)) for m in store.modalities})
    for name, embedding in encoded.items():
        rows = found[f"embedding:{name}"]
        assert [row is not None for row in rows] == store.present(name).tolist()
        here = np.flatnonzero(store.present(name))
        torch.testing.assert_close(torch.tensor([rows[i] for i in here]), embedding[here], **CLOSE)
    assert not (out / ".layers").exists()


def test_predictions_are_classes_with_their_probabilities(store: GraphStore, make_model, tmp_path: Path) -> None:
    expected, trained = _dense(make_model(), store)
    with torch.inference_mode():
        probabilities = trained.classifier.linear(expected).softmax(1)
    options = PredictOptions(block_size=30, probabilities=True)
    out = infer(trained.path.parent, store, tmp_path / "out", options, progress=False)
    found = _read(out)
    assert found["id"] == store.ids(np.arange(store.num_nodes))
    torch.testing.assert_close(torch.tensor(found["probabilities"]), probabilities, **CLOSE)
    best = [int(np.argmax(row)) for row in found["probabilities"]]
    assert found["label"] == [trained.classes[i] for i in best]
    assert found["probability"] == [row[i] for row, i in zip(found["probabilities"], best, strict=True)]
    assert len(set(found["label"])) > 1
    assert json.loads((out / "_meta.json").read_text())["classes"] == list(trained.classes)


@pytest.mark.parametrize("fanouts", [None, (3, 2)])
def test_a_list_of_nodes_gets_the_rows_of_all_nodes_in_its_own_order(
    fanouts: tuple[int, ...] | None, store: GraphStore, make_model, tmp_path: Path
) -> None:
    model = make_model()
    options = EmbedOptions(fanouts=fanouts, block_size=20, seed=4)
    everyone = _read(infer(model, store, tmp_path / "all", options, progress=False))
    by_id = dict(zip(everyone["id"], everyone["embedding"], strict=True))
    (tmp_path / "ids.txt").write_text("n3\nn80\nn0\n" + "\n".join(f"n{i}" for i in range(40, 70)))
    ids = read_ids(tmp_path / "ids.txt", store)
    found = _read(infer(model, store, tmp_path / "some", options, user_ids=ids, progress=False))
    assert found["id"] == ids
    torch.testing.assert_close(torch.tensor(found["embedding"]), torch.tensor([by_id[i] for i in ids]), **CLOSE)
    pq.write_table(pa.table({"id": ids}), tmp_path / "ids.parquet")
    assert read_ids(tmp_path / "ids.parquet", store) == ids


def test_half_precision_is_the_rounded_single(store: GraphStore, make_model, tmp_path: Path) -> None:
    model = make_model()
    single, half = (
        _read(infer(model, store, tmp_path / dtype, EmbedOptions(dtype=dtype), progress=False))
        for dtype in ("float32", "float16")
    )
    assert np.array_equal(np.float16(half["embedding"]), np.array(single["embedding"], np.float16))


# -- interrupted -----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from optimag_dist.inference import driver
from optimag_dist.inference.options import EmbedOptions
from optimag_dist.ray_session import ensure_ray
from optimag_dist.store import GraphStore

@contextmanager
def kill_after(*_, **__):
    seen = []
    def advance(rows):
        seen.append(rows)
        if len(seen) == int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance

driver.progress_bar = kill_after
ensure_ray(sys.argv[1])
driver.infer(Path(sys.argv[2]), GraphStore.open(sys.argv[3]), Path(sys.argv[4]), EmbedOptions(block_size=9))
"""


@pytest.mark.parametrize(("after", "left"), [(14, 14), (24, 14)])
def test_a_killed_driver_goes_on_to_the_same_bytes(
    after: int, left: int, store: GraphStore, make_model, tmp_path: Path
) -> None:
    """Ten blocks and three stages: killed in the second, or in the last when the first layer is gone."""
    model, options = make_model(), EmbedOptions(block_size=9)
    whole = infer(model, store, tmp_path / "whole", options, progress=False)
    broken = tmp_path / "broken"
    address = ray.get_runtime_context().gcs_address
    arguments = [address, str(model), str(store.path), str(broken), str(after)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (broken / "_meta.json").exists()
    layers = {p: p.stat().st_ino for p in broken.rglob("*.npy")}
    before = _contents(broken)
    assert len(layers) + len(before) >= left
    assert bool(before) == (after == 24)
    infer(model, store, broken, options, progress=False)
    after_all = _contents(broken)
    assert {name: content for name, (_, content) in after_all.items()} == {
        name: content for name, (_, content) in _contents(whole).items()
    }
    assert {name: after_all[name][0] for name in before} == {name: inode for name, (inode, _) in before.items()}


class KillsItsFirstReader(GraphStore):
    """A store whose first reader is killed, as by the kernel for want of memory."""

    def __reduce__(self) -> tuple:
        return _die_once, (self.path, self.path.parent / "died")


def _die_once(path: Path, marker: Path) -> GraphStore:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return GraphStore.open(path)


def test_the_task_of_a_killed_worker_is_done_again(store: GraphStore, make_model, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        fragile = KillsItsFirstReader(store.path, store._meta)
        model, options = make_model(), EmbedOptions(block_size=40)
        found = infer(model, fragile, tmp_path / "out", options, progress=False)
        assert (store.path.parent / "died").exists()
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    whole = infer(model, store, tmp_path / "whole", options, progress=False)
    assert _read(found) == _read(whole)


def test_a_failing_block_names_its_nodes_and_the_rest_is_kept(store: GraphStore, make_model, tmp_path: Path) -> None:
    model, options = make_model("mlp"), EmbedOptions(block_size=30)
    obstacle = tmp_path / "out" / "part-000001.parquet"
    obstacle.mkdir(parents=True)
    first, last = store.ids(np.array([30, 59]))
    with pytest.raises(RuntimeError, match=rf"block 1 of 3 \(nodes '{first}' to '{last}'\)(.|\n)*Is a directory"):
        infer(model, store, tmp_path / "out", options, progress=False)
    obstacle.rmdir()
    assert _read(infer(model, store, tmp_path / "out", options, progress=False))["id"][30] == first


def test_a_finished_result_is_left_alone_and_a_damaged_part_made_again(
    store: GraphStore, make_model, tmp_path: Path
) -> None:
    model, options = make_model(), EmbedOptions(block_size=30)
    out = infer(model, store, tmp_path, options, progress=False)
    before = _contents(out)
    infer(model, store, tmp_path, options, progress=False)
    assert _contents(out) == before
    part = out / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    infer(model, store, tmp_path, options, progress=False)
    after = _contents(out)
    assert after["part-000001.parquet"][1] == before["part-000001.parquet"][1]
    assert after["part-000000.parquet"] == before["part-000000.parquet"]


# -- what does not fit -----------------------------------------------------------------------------------------------


def test_results_of_another_job_are_not_overwritten(store: GraphStore, make_model, tmp_path: Path) -> None:
    model = make_model()
    out = infer(model, store, tmp_path, EmbedOptions(), progress=False)
    before = _contents(out)
    for other, options in [
        (make_model(seed=1), EmbedOptions()),
        (model, EmbedOptions(fanouts=(2, 2))),
        (model, PredictOptions()),
    ]:
        with pytest.raises(InputError, match="another checkpoint"):
            infer(other, store, out, options, progress=False)
    (out / "_meta.json").unlink()
    with pytest.raises(InputError, match=r"part-000000\.parquet: made from another checkpoint"):
        infer(model, store, out, EmbedOptions(dtype="float16"), progress=False)
    assert _contents(out) == before


def test_another_store_is_refused_unless_meant(make_store, make_model, tmp_path: Path) -> None:
    model, other = make_model(), make_store(seed=1)
    with pytest.raises(InputError, match="allow_other_store=true"):
        infer(model, other, tmp_path / "out", EmbedOptions(), progress=False)
    assert not (tmp_path / "out").exists()
    expected, _ = _dense(model, other)
    found = _read(infer(model, other, tmp_path / "out", EmbedOptions(allow_other_store=True), progress=False))
    torch.testing.assert_close(torch.tensor(found["embedding"]), expected, **CLOSE)
    with pytest.raises(InputError, match="'text' of width 9, and the store has width 12"):
        infer(model, make_store(width=12), tmp_path / "wide", EmbedOptions(allow_other_store=True), progress=False)


def test_bad_input_is_named(store: GraphStore, make_model, tmp_path: Path) -> None:
    model = make_model()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no model\.pt"):
        infer(tmp_path / "empty", store, tmp_path / "out", EmbedOptions())
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.pt: not a readable checkpoint"):
        infer(tmp_path / "bad.pt", store, tmp_path / "out", EmbedOptions())
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="not a trained model"):
        infer(tmp_path / "checkpoint.pt", store, tmp_path / "out", EmbedOptions())
    with pytest.raises(InputError, match="2 message-passing layers"):
        infer(model, store, tmp_path / "out", EmbedOptions(fanouts=(3,)))
    with pytest.raises(InputError, match="fan-outs must be positive"):
        validate_options(EmbedOptions, {"fanouts": [0, 1]}, "embed")
    with pytest.raises(InputError, match="no node has the id 'nobody'"):
        infer(model, store, tmp_path / "out", EmbedOptions(), user_ids=["n1", "nobody"])
    with pytest.raises(InputError, match="'n1' is listed again at row 3"):
        infer(model, store, tmp_path / "out", EmbedOptions(), user_ids=["n1", "n2", "n1"])
    with pytest.raises(InputError, match="no such file"):
        read_ids(tmp_path / "nowhere.txt", store)
    pq.write_table(pa.table({"name": ["n1"]}), tmp_path / "ids.parquet")
    with pytest.raises(InputError, match="column 'id'"):
        read_ids(tmp_path / "ids.parquet", store)
    assert not (tmp_path / "out").exists()


def test_the_commands_write_what_their_options_ask_for(store: GraphStore, make_model, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("n7\nn2\n")
    places = [str(make_model()), str(store.path)]
    embed = ["embed", *places, str(tmp_path / "e"), "per_modality=true", "dtype=float16"]
    predict = ["predict", *places, str(tmp_path / "p"), "--nodes", str(tmp_path / "ids.txt")]
    for arguments in (embed, predict):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert arguments[3] in result.output
    embedding = pq.read_schema(tmp_path / "e/part-000000.parquet").field("embedding").type
    assert embedding == pa.list_(pa.float16(), 11)
    assert len(_read(tmp_path / "e")["embedding:image"]) == store.num_nodes
    assert list(_read(tmp_path / "p")) == ["id", "label", "probability"]
    assert _read(tmp_path / "p")["id"] == ["n7", "n2"]
    with pytest.raises(InputError, match="did you mean 'dtype'"):
        CliRunner().invoke(app, [*embed, "dtyp=float16"], catch_exceptions=False)


@pytest.mark.parametrize("kind", ["embed", "predict"])
def test_what_is_no_number_is_not_written(kind: str, store: GraphStore, make_model, tmp_path: Path) -> None:
    options = EmbedOptions(per_modality=True) if kind == "embed" else PredictOptions()
    path = make_model() / "model.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["encoders.1.4.weight"] *= 1e38
    torch.save(state, path)
    what = "the embedding of modality 'text' of node 'n" if kind == "embed" else "the state of node 'n1'"
    with pytest.raises(Diverged, match=rf"{what}.* is not finite: its numbers"):
        infer(path, store, tmp_path / "out", options, user_ids=None if kind == "embed" else ["n1"], progress=False)
    state["heads"][""]["linear.bias"][2] = torch.inf
    torch.save(state, path)
    with pytest.raises(InputError, match="1 of its weights are not finite, as its training had diverged; train again"):
        infer(path, store, tmp_path / "out", options, progress=False)
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": {"": 2}}, "not a trained model"),
        ({"heads": {"": {"linear.weight": 2}}}, "classifier do not fit"),
        ({"widths": {"text": -1}}, "not a trained model"),
        ({"kinds": 3}, "not a trained model"),
        ({"config": {"model": {"backbone_settings": {"depth": 1}}}}, "no model can be made .*'depth'"),
        ({"heads": {}}, "classifier do not fit"),
        ({"heads": {"": {"linear.weight": torch.zeros(3, 2), "linear.bias": torch.zeros(4)}}}, "classifier do not fit"),
        ({"model": {}}, "model.pt: its weights do not fit its own"),
        ({"classes": ["ant"]}, "classifier do not fit"),
    ],
)
def test_a_model_that_says_what_cannot_be_is_refused(changes, words, make_model) -> None:
    path = make_model() / "model.pt"
    torch.save(torch.load(path, weights_only=True) | changes, path)
    with pytest.raises(InputError, match=words):
        TrainedModel.open(path, torch.device("cpu")).classifier  # noqa: B018


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.popitem(), "Missing key"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "Unexpected key.*extra"),
        (lambda weights: weights.update({next(iter(weights)): torch.zeros(2, 3, 5)}), "size mismatch"),
        (lambda weights: weights.update({next(iter(weights)): "a text"}), "expected torch.Tensor"),
    ],
)
def test_weights_of_another_model_are_refused(change, words, make_model) -> None:
    path = make_model() / "model.pt"
    state = torch.load(path, weights_only=True)
    change(state["model"])
    torch.save(state, path)
    with pytest.raises(
        InputError, match=rf"(?s)model\.pt: its weights do not fit its own config.*train again.*{words}"
    ):
        TrainedModel.open(path, torch.device("cpu"))
