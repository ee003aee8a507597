"""One fit: it learns, it resumes exactly, and its gradient does not depend on the number of workers."""

import json
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimag_dist.files import sole_writer
from optimag_dist.options import merge, validate_options
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import GroupLoader, LocalSource, SeedBatcher
from optimag_dist.store import GraphStore
from optimag_dist.tasks import make_task
from optimag_dist.train.callback import Signal, TrainerCallback
from optimag_dist.train.fit import Fit, Worker, run_fit, try_fit
from optimag_dist.train.log import read_records, read_result
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.train.parts import Parts
from optimag_dist.train.stalls import place
from optimag_dist.types import InputError


def _fit(recipe: dict, directory: Path, changes: Mapping[str, object] = MappingProxyType({}), **train: object) -> Fit:
    recipe = merge(recipe, {**changes, "train": train})
    return Fit("default", 0, validate_options(RunConfig, recipe, "recipe").resolve()["default"], directory)


class Killed(BaseException):
    pass


class Watcher(TrainerCallback):
    """Keeps what a fit tells; signals and kills at chosen places."""

    def __init__(self, signals: dict[int, Signal] | None = None, kill_at: tuple | None = None) -> None:
        self.records: list[dict] = []
        self.beats: list[tuple] = []
        self.files: list[str] = []
        self._signals, self._kill_at, self._steps = signals or {}, kill_at, 0

    def on_phase(self, phase: str, epoch: int, step: int) -> None:
        self.beats.append((phase, epoch, step))
        if self.beats[-1] == self._kill_at:
            raise Killed

    def on_epoch_end(self, record: dict) -> None:
        self.records.append(record)

    def on_save(self, path: Path) -> None:
        assert path.exists()
        self.files.append(path.name)

    def signal(self) -> Signal:
        self._steps += 1
        return self._signals.get(self._steps, Signal.GO_ON)


def _weights(directory: Path) -> dict[str, Tensor]:
    return torch.load(directory / "model.pt", weights_only=True)["model"]


def test_a_fit_learns_what_only_the_graph_tells(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    """With noise three times the classes' spread, a node's own features leave errors that its neighbourhood mends."""
    # So weak that the model without messages hardly hears of the graph by way of the regulariser.
    recipe["regulariser"] = {"weight": 1}
    sage = run_fit(_fit(recipe, tmp_path / "sage", epochs=60), planted_store, planted_ppr, Worker())
    recipe["model"] = {**recipe["model"], "backbone": "mlp"}
    mlp = run_fit(_fit(recipe, tmp_path / "mlp", epochs=60), planted_store, planted_ppr, Worker())
    assert sage["test/accuracy"] >= 0.85  # 49 test nodes: five seeds with either sampler lie between .9 and 1
    assert mlp["test/accuracy"] <= sage["test/accuracy"] - 0.1


@pytest.mark.parametrize("backbone", ["sage", "gcn", "mlp"])
def test_every_backbone_leaves_a_whole_fit_behind(
    backbone: str, recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    recipe["model"] = {**recipe["model"], "backbone": backbone}
    watcher = Watcher()
    fit = _fit(recipe, tmp_path / "fit", epochs=3)
    result = run_fit(fit, planted_store, planted_ppr, Worker(), watcher)
    records = watcher.records
    assert result == read_result(fit.directory)
    assert [r["epoch"] for r in records] == [0, 1, 2]
    assert records == [json.loads(line) for line in (fit.directory / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "alignment", "kept_ppr", "kept_mass/text", "val/accuracy", "val/macro_f1"} <= records[0].keys()
    assert any((fit.directory / "tensorboard").iterdir())
    kept = pq.read_table(fit.directory / "kept_mass.parquet").to_pydict()
    assert kept["id"] == planted_store.ids(np.arange(120))
    assert np.isfinite(kept["text"]).all()
    assert np.array_equal(np.isnan(kept["image"]), ~planted_store.present("image"))


def test_nodes_without_neighbours_are_not_judged(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, submatrix = [3, 40, 77], PPRArtefact.submatrix

    def without(ppr: PPRArtefact, nodes: np.ndarray) -> np.ndarray:
        cut = np.isin(nodes, alone)
        cut = (cut[:, None] | cut) & ~np.eye(len(nodes), dtype=bool)
        return np.where(cut, np.float32(0), submatrix(ppr, nodes))

    monkeypatch.setattr(PPRArtefact, "submatrix", without)
    fit = _fit(recipe, tmp_path / "fit", epochs=1)
    run_fit(fit, planted_store, planted_ppr, Worker())
    kept = pq.read_table(fit.directory / "kept_mass.parquet")
    assert np.flatnonzero(np.isnan(kept["text"].to_numpy())).tolist() == alone
    assert np.isnan(kept["image"].to_numpy()[alone]).all()


TIMES = ("seconds", "wait_s", "ufgw_s", "targets_per_s", "seeds_per_s")


def _same_fit(one: Path, two: Path) -> None:
    """Weights, kept mass and records are equal to the bit; only times may differ."""
    ours, theirs = _weights(one), _weights(two)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (one / "result.json").read_text() == (two / "result.json").read_text()
    kept = [pq.read_table(fit / "kept_mass.parquet") for fit in (one, two)]
    for name in ("text", "image"):
        assert np.array_equal(*(table[name].to_numpy() for table in kept), equal_nan=True)
    records = [
        [{k: v for k, v in record.items() if k not in TIMES} for record in read_records(fit / "metrics.jsonl")]
        for fit in (one, two)
    ]
    assert records[0] == records[1]


@pytest.fixture(scope="module")
def whole(planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit that nothing has disturbed: six epochs of a few steps."""
    folder = tmp_path_factory.mktemp("whole")
    run_fit(_short(folder), planted_store, planted_ppr, Worker())
    # Held at a share, whose state is in every checkpoint: positions within an epoch are in the middle of its sums.
    shares = [record["regulariser/share"] for record in read_records(folder / "metrics.jsonl")]
    assert shares[0] == 0 < shares[1] < shares[-1]
    return folder


def _short(directory: Path, changes: Mapping[str, object] = MappingProxyType({}), **train: object) -> Fit:
    recipe = {
        "name": "toy",
        "store": "none",
        "sampling": {"groups": 2, "targets": 4, "group_size": 16, "fanouts": [3, 3]},
        "model": {"hidden": 16, "embedding": 8, "dropout": 0.2},
        "optim": {"lr": 0.01},
        "train": {"epochs": 6},
        "checkpoint": {"every": 4},
    }
    return _fit(recipe, directory, changes, **train)


# Nodes of the planted graph's training part over two groups of four targets.
STEPS = 6


@settings(max_examples=8, deadline=None, phases=[Phase.generate])  # an example is a training: no shrinking
@given(data=st.data())
def test_a_fit_killed_anywhere_resumes_to_the_same_bits(
    data: st.DataObject, whole: Path, planted_store: GraphStore, planted_ppr: PPRArtefact
) -> None:
    """Whatever was last saved, and whether the kill comes in a step, an evaluation or the export."""
    phase = data.draw(st.sampled_from(["load", "step", "evaluate", "save", "test", "export"]))
    epoch, step = {
        "load": lambda: (data.draw(st.integers(0, 5)), data.draw(st.integers(0, STEPS))),
        "step": lambda: (data.draw(st.integers(0, 5)), data.draw(st.integers(0, STEPS - 1))),
        "evaluate": lambda: (data.draw(st.integers(1, 6)), 0),
        "save": lambda: (data.draw(st.sampled_from([4, 6])), 0),
        "test": lambda: (6, 0),
        "export": lambda: (6, data.draw(st.integers(0, 3))),
    }[phase]()
    saves = data.draw(st.lists(st.integers(1, 6 * STEPS), max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        fit = _short(Path(folder))
        with pytest.raises(Killed):
            run_fit(
                fit,
                planted_store,
                planted_ppr,
                Worker(),
                Watcher(dict.fromkeys(saves, Signal.SAVE), kill_at=(phase, epoch, step)),
            )
        run_fit(fit, planted_store, planted_ppr, Worker())
        _same_fit(fit.directory, whole)


@pytest.mark.parametrize("after", [1, STEPS, 3 * STEPS + 2])
def test_a_fit_asked_to_stop_saves_at_that_step_and_goes_on_from_it(
    after: int, whole: Path, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    fit = _short(tmp_path)
    stopped = Watcher({after: Signal.STOP})
    assert run_fit(fit, planted_store, planted_ppr, Worker(), stopped) is None
    assert stopped.files[-1] == "checkpoint.pt"
    assert not (tmp_path / "result.json").exists()
    # The signal is complied with one step later.
    epoch, step = divmod(after, STEPS)
    assert stopped.beats[-1] == ("save", epoch, step + 1)
    resumed = Watcher()
    run_fit(fit, planted_store, planted_ppr, Worker(), resumed)
    assert resumed.beats[0] == ("load", epoch, step + 1)
    _same_fit(tmp_path, whole)


def test_a_signal_to_save_is_complied_with_once(
    whole: Path, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    watcher = Watcher({3: Signal.SAVE, 2 * STEPS: Signal.SAVE})
    run_fit(_short(tmp_path), planted_store, planted_ppr, Worker(), watcher)
    saves = [beat for beat in watcher.beats if beat[0] == "save"]
    assert saves == [("save", 0, 4), ("save", 2, 1), ("save", 4, 0), ("save", 6, 0)]
    assert watcher.files.count("checkpoint.pt") == 4
    assert {"metrics.jsonl", "model.pt", "kept_mass.parquet", "result.json"} <= set(watcher.files)
    _same_fit(tmp_path, whole)


def test_long_epochs_are_saved_by_the_clock(
    planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    watcher = Watcher()
    run_fit(_short(tmp_path, {"checkpoint.every_s": 1e-9}, epochs=1), planted_store, planted_ppr, Worker(), watcher)
    # Due at every step; asked for after one step and complied with after the next, then asked for again.
    assert [step for phase, epoch, step in watcher.beats if phase == "save" and epoch == 0] == list(range(2, STEPS + 1))


def test_beats_go_forward(planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path) -> None:
    watcher = Watcher({5: Signal.SAVE})
    run_fit(_short(tmp_path), planted_store, planted_ppr, Worker(), watcher)
    places = [place(*beat) for beat in watcher.beats]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


def test_fewer_epochs_than_the_first_evaluation_waits_for(
    planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    long = _short(tmp_path, epochs=30, eval_every=20)
    assert run_fit(long, planted_store, planted_ppr, Worker(), Watcher({3 * STEPS: Signal.STOP})) is None
    result = run_fit(_short(tmp_path, epochs=2, eval_every=20), planted_store, planted_ppr, Worker())
    assert result is not None
    assert result["val/accuracy"] > 0
    assert (tmp_path / "model.pt").exists()


def test_the_record_tells_where_the_time_went(
    planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    watcher = Watcher()
    run_fit(_short(tmp_path, epochs=2), planted_store, planted_ppr, Worker(), watcher)
    for record in watcher.records:
        assert 0 < record["wait_s"] + record["ufgw_s"] < record["seconds"]
        # Every step has two groups of 16 seeds.
        assert record["seeds_per_s"] * record["seconds"] == pytest.approx(2 * 16 * STEPS)


def test_a_finished_fit_is_not_repeated(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    fit = _fit(recipe, tmp_path / "fit", epochs=2)
    first = run_fit(fit, planted_store, planted_ppr, Worker())
    again = Watcher()
    assert run_fit(fit, planted_store, planted_ppr, Worker(), again) == first
    assert not again.beats


def test_a_fit_waits_for_those_that_are_still_at_work_on_it(
    whole: Path, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    """The workers of a driver that was killed, which write one checkpoint more."""
    watcher, data = Watcher(), (planted_store, planted_ppr, Worker())
    with sole_writer(tmp_path):
        thread = threading.Thread(target=try_fit, args=(_short(tmp_path), *data, watcher))
        thread.start()
        before = Watcher({STEPS: Signal.STOP})
        assert run_fit(_short(tmp_path), *data, before) is None
        assert not watcher.beats
    thread.join()
    assert (before.beats[-1], watcher.beats[0]) == (("save", 1, 1), ("load", 1, 1))
    _same_fit(tmp_path, whole)


def test_another_configuration_does_not_take_up_a_checkpoint(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    fit = _fit(recipe, tmp_path / "fit", epochs=4)
    run_fit(fit, planted_store, planted_ppr, Worker())
    (fit.directory / "result.json").unlink()
    with pytest.raises(InputError, match="another configuration"):
        run_fit(_fit(recipe, fit.directory, {"optim.lr": 0.02}), planted_store, planted_ppr, Worker())
    (fit.directory / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        run_fit(fit, planted_store, planted_ppr, Worker())


@pytest.mark.parametrize(("name", "made_by"), [("fingerprint", "configuration"), ("store", "graph")])
def test_a_result_of_something_else_is_not_taken_over(
    name: str, made_by: str, recipe: dict, planted_store: GraphStore, tmp_path: Path
) -> None:
    result = {"variant": "default", "seed": 0, "test/accuracy": 1.0, name: "0" * 16}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=rf"result\.json: made by another {made_by}; train under another name, or del"):
        run_fit(_fit(recipe, tmp_path), planted_store, None, Worker())


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_a_damaged_record_is_told_or_changes_nothing(name: str, whole: Path, tmp_path: Path) -> None:
    content, expected = (whole / name).read_bytes(), read_result(whole)
    for index in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[index] ^= (1, 0x80)[index % 2]
        (tmp_path / name).write_bytes(damaged)
        try:
            came = read_result(tmp_path) if name == "result.json" else read_records(tmp_path / name)
        except InputError as error:
            came = str(error)
        # The lines of the curves have no checksum of their own; in its name a flip makes another key.
        if isinstance(came, str):
            assert str(tmp_path / name) in came
        elif name == "result.json":
            assert came.items() >= expected.items()


@pytest.mark.parametrize("content", ["[1]", "3", "null", "{}", "", "[" * 100_000])
def test_a_record_that_is_none_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match=r"result\.json: damaged .*delete it, and --resume ends the fit"):
        read_result(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n' + content + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: damaged .*delete the line"):
        read_records(tmp_path / "metrics.jsonl")


def test_patience_stops_early(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    for warm_up in (0, 5, 60):
        fit = _fit(recipe, tmp_path / str(warm_up), {"regulariser.warm_up": warm_up}, epochs=200, patience=3)
        result = run_fit(fit, planted_store, planted_ppr, Worker())
        assert result["epochs"] < 200
        # It does not run before the share has risen.
        assert result["epochs"] == max(result["best_epoch"] + 1, warm_up) + 3


# -- one gradient, however many workers ------------------------------------------------------------------------------


def _gradients(rank: int, world_size: int, config: VariantConfig, store_path: Path, ppr_path: Path, out: Path) -> None:
    """Gradients of an epoch's last step at the first weights, and the share's state, written by rank 0."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{out}.sync", rank=rank, world_size=world_size)
    fit = Fit("default", 0, config, out)
    store = GraphStore.open(store_path)
    parts = Parts(fit, store, PPRArtefact.open(ppr_path), Worker(rank, world_size))
    for batch in parts.loader.epoch(parts.sources, epoch=config.regulariser.warm_up):
        parts.optimiser.zero_grad()
        loss, _, _ = parts.parallel(batch)
        loss.backward()
        if parts.share is not None:
            parts.share.settle(world_size)
    if rank == 0:
        gradients = {name: p.grad for name, p in parts.model.named_parameters() if p.requires_grad}
        state = parts.share.state_dict() if parts.share is not None else {}
        torch.save({**gradients, **{f"share/{name}": x for name, x in state.items()}}, out)
    if world_size > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("regulariser", [{"kind": "local", "weight": 50}, {"share": 2}], ids=["weight", "share"])
def test_two_workers_have_the_gradient_of_one(
    regulariser: dict, recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    """With a group each, and so has what they measure of the share that the regulariser is held at."""
    recipe["model"], recipe["regulariser"] = {**recipe["model"], "dropout": 0.0}, regulariser
    config = _fit(recipe, tmp_path).config
    places = (config, planted_store.path, planted_ppr.path)
    _gradients(0, 1, *places, tmp_path / "one.pt")
    mp.spawn(_gradients, args=(2, *places, tmp_path / "two.pt"), nprocs=2)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    if "share" in regulariser:
        # λ is nothing in the first step alone, whatever the epoch.
        weight, _, _, _, steps = one["share/epoch"].tolist()
        assert weight > 0
        assert steps >= 2
    for name, gradient in one.items():
        # The sums differ in order alone: float32 rounding, relative to the parameter's largest gradient.
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-8)


def _stop_and_go_on(rank: int, store_path: Path, ppr_path: Path, folder: Path) -> None:
    """A fit of two ranks, and the same stopped within an epoch by the second rank and gone on with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/sync", rank=rank, world_size=2)
    data = GraphStore.open(store_path), PPRArtefact.open(ppr_path), Worker(rank, 2)
    run_fit(_short(folder / "whole", epochs=3), *data)
    cut = _short(folder / "cut", epochs=3)
    watcher = Watcher({STEPS + 2: Signal.STOP} if rank == 1 else {3: Signal.SAVE})
    assert run_fit(cut, *data, watcher) is None
    # Every rank has complied with both ranks' signals, at the same steps.
    assert [beat for beat in watcher.beats if beat[0] == "save"] == [("save", 0, 4), ("save", 1, 3)]
    assert run_fit(cut, *data) is not None
    dist.destroy_process_group()


def test_ranks_agree_on_a_signal_and_go_on_as_one(
    planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    mp.spawn(_stop_and_go_on, args=(planted_store.path, planted_ppr.path, tmp_path), nprocs=2)
    _same_fit(tmp_path / "cut", tmp_path / "whole")


def test_ranks_share_a_step_out_and_take_as_many_steps(planted_store: GraphStore, planted_ppr: PPRArtefact) -> None:
    options = validate_options(RunConfig, {"name": "x", "store": "x"}, "recipe").sampling.model_copy(
        update={"groups": 3, "targets": 8, "group_size": 20, "fanouts": (3,)}
    )
    task = make_task(VariantConfig().task, planted_store, seed=0)
    batcher = SeedBatcher(task.train, planted_store.num_nodes, planted_ppr, options, seed=0)
    rows = LocalSource(planted_store)
    alone, first, second = (
        list(
            GroupLoader(rows, planted_ppr, options, seed=0, messages=True, rank=rank, world_size=size).epoch(
                [(batcher, task.examples)], 0
            )
        )
        for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    assert len(alone) == len(first) == len(second) == batcher.steps_per_epoch
    for whole, a, b in zip(alone, first, second, strict=True):
        assert whole.num_items == a.num_items == b.num_items
        # Groups are dealt like cards: 0 and 2 to the first rank, 1 to the second.
        for mine, theirs in zip((a.groups[0], b.groups[0], a.groups[1]), whole.groups, strict=True):
            assert torch.equal(mine.node_ids, theirs.node_ids)
            assert torch.equal(mine.proximity, theirs.proximity)
            assert all(torch.equal(x.indices, y.indices) for x, y in zip(mine.blocks, theirs.blocks, strict=True))


def test_a_batch_says_what_the_store_says(planted_store: GraphStore, planted_ppr: PPRArtefact) -> None:
    options = validate_options(RunConfig, {"name": "x", "store": "x"}, "recipe").sampling.model_copy(
        update={"targets": 8, "group_size": 24}
    )
    task = make_task(VariantConfig().task, planted_store, seed=0)
    loader = GroupLoader(LocalSource(planted_store), planted_ppr, options, seed=0, messages=True)
    batcher = SeedBatcher(task.train, planted_store.num_nodes, planted_ppr, options, seed=0)
    for batch in loader.epoch([(batcher, task.examples)], 0):
        for group in batch.groups:
            nodes = group.node_ids.numpy()
            seeds = nodes[group.seed_rows.numpy()]
            targets = seeds[: group.num_targets]
            assert len(np.unique(nodes)) == len(nodes)
            assert nodes[: group.num_targets].tolist() == targets.tolist()
            assert group.labels["labels"].tolist() == task.labels[targets].tolist()
            for name in planted_store.modalities:
                assert np.array_equal(group.features[name].numpy(), planted_store.gather(name, nodes))
                assert np.array_equal(group.present[name].numpy(), planted_store.present(name)[nodes])
            assert np.array_equal(group.proximity.numpy(), planted_ppr.submatrix(seeds))
            assert 0 < group.kept_ppr <= 1
            assert np.array_equal(group.degrees.numpy(), np.diff(planted_store.topology.indptr)[nodes])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_fits_like_the_cpu(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    gpu, cpu = (
        run_fit(_fit(recipe, tmp_path / name, epochs=30), planted_store, planted_ppr, Worker(device=torch.device(name)))
        for name in ("cuda", "cpu")
    )
    # Dropout draws other numbers on another device: the same quality, not the same weights.
    assert gpu["test/accuracy"] >= cpu["test/accuracy"] - 0.1
